// Replay of a routing trace through an EvictionPolicy alone: what the manager does to it in decode,
// without slots, reads or time. Shared by the replay test and the benchmark.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/random.h"
#include "residency/eviction_policy.h"

namespace moraine {

struct RoutingTrace {
  uint32_t layers = 0, experts = 0, top_k = 0;
  uint32_t first_counted_token = 0;  // lookups before it warm the cache and are not counted
  std::vector<uint32_t> picks;       // [token][layer][top_k]

  uint32_t tokens() const { return static_cast<uint32_t>(picks.size() / (layers * top_k)); }
  std::span<const uint32_t> At(uint32_t token, uint32_t layer) const {
    return {picks.data() + (static_cast<size_t>(token) * layers + layer) * top_k, top_k};
  }
};

// Decode as it is observed on published models: a popularity that is skewed by layer (Zipf over a
// permutation of the layer's own) and local in time (with probability `reuse` an expert is one of
// the last eight tokens').
inline RoutingTrace MakeSkewedTrace(uint64_t seed, uint32_t layers, uint32_t experts,
                                    uint32_t top_k, uint32_t tokens, double reuse = 0.55) {
  Random random(seed);
  RoutingTrace trace{layers, experts, top_k, tokens / 5, {}};
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
          const uint32_t back = 1 + static_cast<uint32_t>(random.Below(std::min(token, 8u)));
          pick = trace.At(token - back, layer)[random.Below(top_k)];
        }
        bool again = false;
        for (size_t i = begin; i < trace.picks.size(); ++i) again |= trace.picks[i] == pick;
        if (!again) trace.picks.push_back(pick);
      }
    }
  }
  return trace;
}

struct ReplayResult {
  uint64_t lookups = 0, hits = 0;
  double hit_rate() const { return lookups ? static_cast<double>(hits) / lookups : 0; }
};

inline ReplayResult Replay(const RoutingTrace& trace, const std::string& policy_name,
                           uint32_t capacity) {
  const PolicyShape shape{std::vector<uint32_t>(trace.layers, trace.experts), trace.top_k, capacity};
  Result<std::unique_ptr<EvictionPolicy>> created = CreateEvictionPolicy(policy_name, shape);
  CHECK(created.ok(), created.status().message());
  EvictionPolicy& policy = **created;

  // As the manager: not the visited layer's, unless there is nothing else; never the call's own.
  struct NotNeeded final : EvictionPolicy::Evictable {
    LayerId layer;
    std::span<const uint32_t> call;
    bool visiting_layer_too = false;
    bool operator()(ExpertKey key) const override {
      if (key.layer != layer) return true;
      if (!visiting_layer_too) return false;
      for (uint32_t expert : call) {
        if (expert == key.expert.value()) return false;
      }
      return true;
    }
  };
  std::vector<uint8_t> resident(trace.layers * trace.experts, 0);
  uint32_t count = 0;
  ReplayResult result;
  for (uint32_t token = 0; token < trace.tokens(); ++token) {
    policy.OnStep(1);
    for (uint32_t layer = 0; layer < trace.layers; ++layer) {
      NotNeeded evictable;
      evictable.layer = LayerId(layer);
      evictable.call = trace.At(token, layer);
      for (uint32_t expert : evictable.call) {
        const ExpertKey key{LayerId(layer), ExpertId(expert)};
        uint8_t& here = resident[layer * trace.experts + expert];
        if (token >= trace.first_counted_token) {
          ++result.lookups;
          result.hits += here;
        }
        policy.OnAccess(key, 1.0f);
        if (here) continue;
        if (count == capacity) {
          evictable.visiting_layer_too = false;
          std::optional<ExpertKey> victim = policy.ChooseVictim(key.layer, evictable);
          evictable.visiting_layer_too = true;
          if (!victim) victim = policy.ChooseVictim(key.layer, evictable);
          CHECK(victim.has_value(), "nothing to evict");
          policy.OnEvict(*victim);
          resident[victim->layer.value() * trace.experts + victim->expert.value()] = 0;
          --count;
        }
        policy.OnInsert(key);
        here = 1;
        ++count;
      }
    }
  }
  return result;
}

}  // namespace moraine
