#include "base/clock.h"

#include <ctime>

namespace moraine {
namespace {

class MonotonicClock final : public Clock {
 public:
  int64_t NowNs() const override {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
  }
};

}  // namespace

const Clock& RealClock() {
  static const MonotonicClock clock;
  return clock;
}

}  // namespace moraine
