// What a soak has met, and whether the process is what it was.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "faulty_reader.h"

namespace moraine {

// Counted over all rounds.
struct Tally {
  uint64_t rounds = 0, requests = 0, finished = 0, tokens = 0, logits_checks = 0;
  uint64_t cancelled_waiting = 0, cancelled_in_prefill = 0, cancelled_in_decode = 0;
  uint64_t failed_io = 0, failed_corrupt = 0, failed_deadline = 0;
  uint64_t queue_full = 0, budgets = 0, budgets_refused = 0, warmings = 0, checkpoints = 0;
  uint64_t closed_while_running = 0;
  uint64_t healed = 0, quarantined = 0, retries = 0, evictions = 0, moved = 0, prefetched = 0;
};

// With no engine open.
struct ProcessSample {
  uint64_t resident_bytes = 0, heap_bytes = 0;
  uint64_t descriptors = 0;
};
ProcessSample SampleProcess();

struct SoakReport {
  uint64_t seed = 0;
  double seconds = 0;
  Tally tally;
  FaultCounts faults;
  std::vector<ProcessSample> samples;  // after each round, at least one

  // One line. passed: nothing has grown beyond its bound, and everything has happened at least once that
  // should in a run of this length.
  std::string ToJson(bool* passed) const;

 private:
  bool Flat() const;
  uint64_t Early(uint64_t ProcessSample::*field) const;
};

}  // namespace moraine
