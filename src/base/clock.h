// A clock that tests can inject: nothing in the engine calls steady_clock::now() directly except
// RealClock, so that simulated runs are deterministic and no test sleeps.
#pragma once

#include <cstdint>

namespace moraine {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary origin, never going backwards.
  virtual int64_t NowNs() const = 0;
};

// CLOCK_MONOTONIC. Thread-safe; lives for the whole process.
const Clock& RealClock();

class ManualClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_; }
  void AdvanceNs(int64_t delta_ns) { now_ns_ += delta_ns; }

 private:
  int64_t now_ns_ = 0;
};

}  // namespace moraine
