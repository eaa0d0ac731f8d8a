// What the eviction policies cost a token: a replay of a synthetic trace (48 layers, 128 experts,
// top-8), skewed as decode is, and of one where all eight lookups of every layer miss. The time is
// the CPU time of the whole replay, the policy being most of it.
//
//   residency_bench [TOKENS]
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "../tests/residency/policy_replay.h"
#include "residency/eviction_policy.h"

namespace moraine {
namespace {

constexpr uint64_t kSeed = 1;
constexpr uint32_t kLayers = 48, kExperts = 128, kTopK = 8;

void Run(const char* what, const RoutingTrace& trace, uint32_t percent) {
  for (const char* policy : EvictionPolicyNames()) {
    const std::clock_t begin = std::clock();
    const double hit_rate = HitRate(trace, policy, kLayers * kExperts * percent / 100);
    const double us = 1e6 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    const double lookups = static_cast<double>(trace.picks.size());
    std::printf("%-28s %2u %% of experts  %-9s  %6.1f us/token  %5.1f ns/lookup  %5.1f %% hits\n",
                what, percent, policy, us / trace.tokens(), 1e3 * us / lookups,
                100 * hit_rate);
  }
}

// Every lookup of every token misses: eight experts a layer that rotate through all 128.
RoutingTrace MakeAllMissTrace(uint32_t tokens) {
  RoutingTrace trace;
  trace.layers = kLayers;
  trace.experts = kExperts;
  trace.top_k = kTopK;
  for (uint32_t token = 0; token < tokens; ++token) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (uint32_t i = 0; i < kTopK; ++i) {
        trace.picks.push_back(static_cast<uint16_t>((token * kTopK + i + layer) % kExperts));
      }
    }
  }
  return trace;
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  const int tokens = argc > 1 ? std::atoi(argv[1]) : 1000;
  if (tokens <= 0) {
    std::fprintf(stderr, "usage: residency_bench [TOKENS]\n");
    return 2;
  }
  const uint32_t count = static_cast<uint32_t>(tokens);
  const moraine::RoutingTrace skewed = moraine::MakeSkewedTrace(
      moraine::kSeed, moraine::kLayers, moraine::kExperts, moraine::kTopK, count);
  const moraine::RoutingTrace all_miss = moraine::MakeAllMissTrace(count);
  for (uint32_t percent : {10u, 30u, 100u}) {
    moraine::Run("skewed", skewed, percent);
    moraine::Run("every lookup misses", all_miss, percent);
  }
}
