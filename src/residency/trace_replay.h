// Replay of routing traces through an eviction policy, and the bounds that no policy passes.
//
// The policy objects are the engine's own, and they are asked as the residency manager asks in
// decode: they hear of all accesses of the call, then each miss picks its victim (never one of the
// call), and what was read enters when the layer is done. There are no slots, no reads and no time.
// Tokens of the prompt go through one by one, as in decode, because the trace knows their order;
// they warm the cache and are not counted.
//
// Several traces in one call are a shift of domain: the policy and the cache go on from one to the
// next.
//
// Threads: functions without state. Cost: a token of 48 layers some 200 us with the heat policy.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "residency/routing_trace.h"

namespace moraine {

struct ReplayCount {
  uint64_t tokens = 0, lookups = 0, hits = 0;  // after the prompt
  double hit_rate() const {
    return lookups == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(lookups);
  }
  double misses_per_token() const {
    return tokens == 0 ? 0 : static_cast<double>(lookups - hits) / static_cast<double>(tokens);
  }
  ReplayCount& operator+=(const ReplayCount& other);
};

struct ReplayOptions {
  std::string policy = "heat";
  uint32_t slots = 0;      // at least top_k
  bool lookahead = false;  // tell the policy what the trace's routers expected, as OnPredicted
};

// One count a trace. kInvalidArgument: traces of different shapes, too few slots, an unknown
// policy, no lookahead in the trace.
Result<std::vector<ReplayCount>> ReplayTraces(std::span<const RoutingTrace> traces,
                                              const ReplayOptions& options);

// Belady's OPT: evicts what is used last again. It knows the future, counts and rules are the same.
// With bypass, a miss need not stay in the cache after its use.
Result<std::vector<ReplayCount>> ReplayOptimal(std::span<const RoutingTrace> traces, uint32_t slots,
                                               bool bypass);

// Tokens a second on a device that reads `bytes_per_second` and computes a token in
// `compute_seconds`. Overlapped is the bound max(compute, I/O), serial the sum; 0 if both are
// nothing.
struct DeviceModel {
  double bytes_per_second = 0, record_bytes = 0, compute_seconds = 0;
};
struct ProjectedSpeed {
  double overlapped = 0, serial = 0;
};
ProjectedSpeed ProjectSpeed(const ReplayCount& count, const DeviceModel& device);

}  // namespace moraine
