// Synthetic routing for the replay test and the benchmark.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "residency/trace_replay.h"

namespace moraine {

// Decode as it is observed on published models: a popularity that is skewed by layer (Zipf over a
// permutation of the layer's own) and local in time (with probability `reuse` an expert is one of
// the last eight tokens').
inline RoutingTrace MakeSkewedTrace(uint64_t seed, uint32_t layers, uint32_t experts,
                                    uint32_t top_k, uint32_t tokens, double reuse = 0.55) {
  Random random(seed);
  RoutingTrace trace;
  trace.layers = layers;
  trace.experts = experts;
  trace.top_k = top_k;
  trace.prefill_tokens = tokens / 5;
  std::vector<std::vector<uint32_t>> order(layers, std::vector<uint32_t>(experts));
  for (std::vector<uint32_t>& permutation : order) {
    for (uint32_t i = 0; i < experts; ++i) permutation[i] = i;
    for (uint32_t i = experts; i > 1; --i) std::swap(permutation[i - 1], permutation[random.Below(i)]);
  }
  std::vector<double> cumulative(experts);
  double total = 0;
  for (uint32_t i = 0; i < experts; ++i) cumulative[i] = total += 1.0 / (i + 4);
  const auto by_popularity = [&](uint32_t layer) {
    const double point = random.Uniform() * total;
    uint32_t rank = 0;
    while (rank + 1 < experts && cumulative[rank] < point) ++rank;
    return order[layer][rank];
  };
  for (uint32_t token = 0; token < tokens; ++token) {
    for (uint32_t layer = 0; layer < layers; ++layer) {
      const size_t begin = trace.picks.size();
      while (trace.picks.size() < begin + top_k) {
        uint32_t pick = by_popularity(layer);
        if (token > 0 && random.Chance(reuse)) {
          const size_t back = 1 + random.Below(std::min(token, 8u));
          pick = trace.picks[begin - back * trace.row_size() + random.Below(top_k)];
        }
        bool again = false;
        for (size_t i = begin; i < trace.picks.size(); ++i) again |= trace.picks[i] == pick;
        if (!again) trace.picks.push_back(static_cast<uint16_t>(pick));
      }
    }
  }
  return trace;
}

// Decode hits of a policy, by name, with that many slots.
inline double HitRate(const RoutingTrace& trace, const std::string& policy, uint32_t slots) {
  const auto counts = ReplayTraces({&trace, 1}, {.policy = policy, .slots = slots});
  CHECK(counts.ok(), counts.status().message());
  return counts->front().hit_rate();
}

}  // namespace moraine
