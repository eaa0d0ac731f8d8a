// SpeculationWatchdog: pauses reading ahead while it does not pay.
//
// Two judgements. Cheap and quick: a wrong read costs the drive as much as a right one saves, so reads
// of which fewer than half are used cannot pay; a pause lasts one period, since texts change. And the
// one that counts: trials, in which blocks of steps with and without reading ahead take turns; the mode
// whose steps were shorter stays until the next trial. That takes in what no rule knows: a hit rate
// that falls because the cache is small, a drive whose latency grows, a CPU that is short of time. Trials
// become rare while their verdict repeats: then they cost 1 % of the steps.
//
// A verdict rests on the two last trials, some 60 steps a mode whose lengths scatter by a quarter: a loss of
// 10 % is seen at once, one of 2 % after some trials.
//
// Threads: thread-compatible. No allocation.
#pragma once

#include <algorithm>
#include <cstdint>

namespace moraine {

class SpeculationWatchdog {
 public:
  // Long enough that a judgement rests on hundreds of reads, short enough (some seconds on a disk-bound
  // model) that a bad stretch costs little.
  static constexpr uint32_t kPeriodSteps = 64;
  // Fewer reads than this say nothing; speculation that reads so little costs nothing either.
  static constexpr uint64_t kMinimumReads = 32;
  // A trial: blocks that take turns, the first one reading ahead. The first steps of a block find the
  // cache and the drive as the other mode left them, and do not count.
  static constexpr uint32_t kBlockSteps = 10, kSettlingSteps = 2, kTrialBlocks = 8;
  static constexpr uint32_t kTrialSteps = kBlockSteps * kTrialBlocks;
  // Steps between two trials; doubled while the verdict stays.
  static constexpr uint32_t kFirstInterval = 192, kLongestInterval = 8192;

  // A decode step begins. issued and used: experts read ahead, and of those demanded, since the start.
  // last_step_ns: how long the step before it took; 0: unknown, or no decode step.
  void OnStep(uint64_t issued, uint64_t used, int64_t last_step_ns) {
    if (last_step_ns > 0) CountStep(last_step_ns);
    JudgePeriod(issued, used);
    if (steps_to_trial_ > 0) {
      --steps_to_trial_;
      return;
    }
    if (++trial_step_ > kTrialSteps) FinishTrial();
  }
  bool paused() const {
    if (InTrial()) return Block() % 2 != 0;
    return wasteful_ || slower_;
  }
  // The verdict of the trials so far.
  bool slower() const { return slower_; }

 private:
  bool InTrial() const { return trial_step_ > 0; }
  uint32_t Block() const { return (trial_step_ - 1) / kBlockSteps; }

  // Of the step that has ended, before trial_step_ moves on.
  void CountStep(int64_t ns) {
    if (!InTrial() || (trial_step_ - 1) % kBlockSteps < kSettlingSteps) return;
    Mean& mean = Block() % 2 != 0 ? without_ : with_;
    mean.sum_ns += static_cast<double>(ns);
    mean.steps += 1;
  }

  void JudgePeriod(uint64_t issued, uint64_t used) {
    if (steps_left_ > 0) {
      --steps_left_;
      return;
    }
    const uint64_t reads = issued - issued_before_, useful = used - used_before_;
    wasteful_ = reads >= kMinimumReads && 2 * useful < reads;
    issued_before_ = issued;
    used_before_ = used;
    steps_left_ = kPeriodSteps - 1;
  }

  void FinishTrial() {
    const bool was_slower = slower_;
    // Reading ahead has to be the slower one by something: it is the mode that adapts to the text.
    if (with_.steps > 0 && without_.steps > 0) slower_ = with_.ns() > 1.005 * without_.ns();
    interval_ = slower_ == was_slower ? std::min(2 * interval_, kLongestInterval) : kFirstInterval;
    steps_to_trial_ = interval_;
    trial_step_ = 0;
    for (Mean* mean : {&with_, &without_}) {
      mean->sum_ns /= 2;
      mean->steps /= 2;
    }
  }

  struct Mean {
    double sum_ns = 0, steps = 0;
    double ns() const { return sum_ns / steps; }
  };

  uint64_t issued_before_ = 0, used_before_ = 0;
  uint32_t steps_left_ = 0;
  bool wasteful_ = false, slower_ = false;
  uint32_t interval_ = kFirstInterval, steps_to_trial_ = kFirstInterval;
  uint32_t trial_step_ = 0;  // 1 to kTrialSteps: in a trial
  Mean with_, without_;
};

}  // namespace moraine
