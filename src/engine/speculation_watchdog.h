// SpeculationWatchdog: pauses reading ahead while it does not pay.
//
// Judges a period of decode steps by what its reads were worth: a wrong read costs the drive as much
// as a right one saves, so when fewer than half are used it cannot pay. A pause lasts one period; then
// speculation is tried again, since texts change.
//
// Threads: thread-compatible.
#pragma once

#include <cstdint>

namespace moraine {

class SpeculationWatchdog {
 public:
  // Long enough that a judgement rests on hundreds of reads, short enough (some seconds on a disk-bound
  // model) that a bad stretch costs little.
  static constexpr uint32_t kPeriodSteps = 64;
  // Fewer reads than this say nothing; speculation that reads so little costs nothing either.
  static constexpr uint64_t kMinimumReads = 32;

  // A decode step begins. issued and used: experts read ahead, and of those demanded, since the start.
  void OnStep(uint64_t issued, uint64_t used) {
    if (steps_left_ > 0) {
      --steps_left_;
      return;
    }
    const uint64_t reads = issued - issued_before_, useful = used - used_before_;
    paused_ = reads >= kMinimumReads && 2 * useful < reads;
    issued_before_ = issued;
    used_before_ = used;
    steps_left_ = kPeriodSteps - 1;
  }
  bool paused() const { return paused_; }

 private:
  uint64_t issued_before_ = 0, used_before_ = 0;
  uint32_t steps_left_ = 0;
  bool paused_ = false;
};

}  // namespace moraine
