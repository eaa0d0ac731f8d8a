// LinkSchedule: when copies would end on a link of a given rate, which carries one after the other.
//
// For emulating a slower link than the machine has (cuda/link_pacer.h). A copy begins when it was ready to
// and the link is free, and takes bytes / rate. What a copy begins late because somebody was told late that
// the one before had ended (timers, callbacks) is not the link's time: up to kSlackNs of it are not counted,
// so that many copies in a row take what their bytes take together. Longer gaps are idle time, and are lost.
//
// Threads: thread-safe; several streams share one link.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>

namespace moraine {

class LinkSchedule {
 public:
  // Between the end of a copy and the beginning of the next, a callback's return and another's call: 10 to 50 us
  // each, more on a busy machine.
  static constexpr int64_t kSlackNs = 300'000;

  explicit LinkSchedule(double bytes_per_s) : ns_per_byte_(1e9 / bytes_per_s) {}

  // When a copy ends that is ready at ready_ns. Times are of one clock and need not rise.
  int64_t EndOf(int64_t ready_ns, uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    if (ready_ns > free_ns_ + kSlackNs) fraction_ = 0;
    const int64_t begin_ns = ready_ns <= free_ns_ + kSlackNs ? free_ns_ : ready_ns;
    const double ns = static_cast<double>(bytes) * ns_per_byte_ + fraction_;
    free_ns_ = begin_ns + static_cast<int64_t>(ns);
    fraction_ = ns - static_cast<double>(static_cast<int64_t>(ns));
    return free_ns_;
  }

 private:
  const double ns_per_byte_;
  std::mutex mutex_;
  int64_t free_ns_ = INT64_MIN / 2;  // guarded by mutex_, as is fraction_
  double fraction_ = 0;              // of a nanosecond, that the last copy would have taken longer
};

}  // namespace moraine
