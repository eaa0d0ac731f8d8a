// StepTimes: what the engine thread did between two tokens of everybody's answers, so that a long wait for a
// token explains itself.
//
// A turn is the time from the end of one step to the end of the next, all that the thread does in between
// included; while a request runs, turns follow each other without a gap. Each is split into parts that sum to it,
// and its cause is the largest of them. PhaseStats says where a token's time goes on average; this says what the
// longest waits were about, and everything on the engine thread that is not a step is a part here.
//
// An answer waits for longer than a turn in one case: its request had to give its keys and values back
// (batch_scheduler.h) and computes them again. Hence waits of answers are counted as well.
//
// Threads: StepTimer is the engine thread's; StepStats is a value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/clock.h"

namespace moraine {

enum class StepPart : uint8_t {
  kDecode,   // computing answers
  kMixed,    // computing answers with a piece of a prompt beside them
  kPrompt,   // computing prompts, nobody answering
  kDrive,    // waiting for experts
  kResize,   // the memory budget changes
  kAdmit,    // taking requests from the queue, finding what prompts have in common with others
  kDeliver,  // picking tokens, sending events
  kSave,     // copying blocks of the prefix cache for its disk
  kRestore,  // waiting for the prefix cache's disk, with nothing to compute
  kPublish,  // statistics and snapshots for those who watch
  kProfile,  // copying what was learnt, to be saved
};
inline constexpr size_t kStepParts = 11;
const char* StepPartName(StepPart part);  // "decode", of metrics and JSON

// Durations in buckets of an octave, from 1 ms to 65 s; what is longer has a bucket of its own.
struct DurationCounts {
  static constexpr size_t kBuckets = 18;
  std::array<uint64_t, kBuckets> counts{};
  int64_t sum_ns = 0;
  int64_t longest_ns = 0;

  static int64_t BoundNs(size_t bucket) { return int64_t{1'000'000} << bucket; }  // not of the last
  void Add(int64_t ns);
  uint64_t total() const;
  // The bound below which this share lies; the longest where that is less; 0 if there are none.
  int64_t QuantileNs(double share) const;
};

struct StepStats {
  DurationCounts turns;
  DurationCounts waits;  // of an answer's next token; the first token's is no wait
  // Of waits during which the request gave its keys and values back.
  int64_t longest_preempted_ns = 0;
  // By part: time in all, turns that it was the cause of, and the longest of these.
  std::array<int64_t, kStepParts> part_ns{};
  std::array<uint64_t, kStepParts> caused{};
  std::array<int64_t, kStepParts> longest_ns{};

  // The cause of the longest turn.
  StepPart longest_cause() const;
  // A line for people; "" if there were no steps.
  std::string ToText() const;
};

class StepTimer {
 public:
  explicit StepTimer(const Clock& clock) : clock_(clock) {}

  // A turn begins; what has passed since the last end was idle.
  void Begin();
  // What has passed since the last call of Begin, Charge or End went into this.
  void Charge(StepPart part);
  // So much of what was charged was something else.
  void Move(StepPart from, StepPart to, int64_t ns);
  // The turn is over, and the next begins.
  void End();

  // now_ns: when an answer's token was delivered. Returns it, to be given as before_ns of the next one;
  // before_ns 0: the first.
  int64_t Token(int64_t before_ns, bool preempted);

  const StepStats& stats() const { return stats_; }

 private:
  const Clock& clock_;
  int64_t charged_until_ns_ = 0;
  std::array<int64_t, kStepParts> turn_{};
  StepStats stats_;
};

}  // namespace moraine
