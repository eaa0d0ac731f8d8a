#include "residency/trace_replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/random.h"
#include "residency/eviction_policy.h"

namespace moraine {
namespace {

RoutingTrace Load(const std::string& name) {
  return ReadRoutingTrace(std::string(MORAINE_SOURCE_DIR) + "/tests/residency/traces/" + name +
                          ".csv.gz")
      .value();
}
uint32_t Slots(const RoutingTrace& trace, uint32_t percent) {
  return (trace.layers * trace.experts * percent + 50) / 100;
}
double HitPercent(const std::string& policy, std::span<const RoutingTrace> traces, uint32_t percent) {
  const auto counts = ReplayTraces(traces, {policy, Slots(traces.front(), percent)});
  ReplayCount all;
  for (const ReplayCount& count : counts.value()) all += count;
  return 100 * all.hit_rate();
}

// Every choice of victims, by recursion over the accesses; top_k = 1, so that a call is one access.
uint32_t MostHits(const std::vector<uint32_t>& accesses, size_t at, uint32_t resident, uint32_t slots,
                  bool bypass, std::map<std::pair<size_t, uint32_t>, uint32_t>* known) {
  if (at == accesses.size()) return 0;
  const auto [entry, is_new] = known->try_emplace({at, resident}, 0);
  if (!is_new) return entry->second;
  const uint32_t bit = 1u << accesses[at];
  const auto rest = [&](uint32_t next) {
    return MostHits(accesses, at + 1, next, slots, bypass, known);
  };
  uint32_t best = 0;
  if (resident & bit) {
    best = 1 + rest(resident);
  } else if (static_cast<uint32_t>(__builtin_popcount(resident)) < slots) {
    best = rest(resident | bit);
  } else {
    if (bypass) best = rest(resident);
    for (uint32_t victim = 0; victim < 32; ++victim) {
      if (resident >> victim & 1) best = std::max(best, rest((resident & ~(1u << victim)) | bit));
    }
  }
  return (*known)[{at, resident}] = best;
}

TEST(TraceReplayTest, OptimalIsWhatBruteForceFinds) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Random random(seed);
    RoutingTrace trace;
    trace.layers = 2;
    trace.experts = 3;
    trace.top_k = 1;
    std::vector<uint32_t> accesses;
    for (uint32_t i = 0; i < 16; ++i) {
      trace.picks.push_back(static_cast<uint16_t>(random.Below(3)));
      accesses.push_back(i % 2 * 3 + trace.picks.back());
    }
    for (const uint32_t slots : {1u, 2u, 3u, 4u}) {
      for (const bool bypass : {false, true}) {
        std::map<std::pair<size_t, uint32_t>, uint32_t> known;
        const auto counts = ReplayOptimal({&trace, 1}, slots, bypass);
        EXPECT_EQ(counts->front().hits, MostHits(accesses, 0, 0, slots, bypass, &known))
            << "seed " << seed << ", " << slots << " slots, bypass " << bypass;
      }
    }
  }
}

TEST(TraceReplayTest, NoPolicyPassesOptimal) {
  const RoutingTrace trace = Load("gpt-oss-120b-q4km");
  for (const uint32_t percent : {5u, 20u}) {
    const auto optimal = ReplayOptimal({&trace, 1}, Slots(trace, percent), true);
    for (const char* policy : EvictionPolicyNames()) {
      const double rate = HitPercent(policy, {&trace, 1}, percent);
      EXPECT_LT(rate, 100 * optimal->front().hit_rate()) << policy;
      EXPECT_GT(rate, percent) << policy << " is worse than chance";
    }
  }
}

// Half a point below what docs/policies.md says.
TEST(TraceReplayTest, HeatKeepsItsHitRates) {
  const struct {
    const char* trace;
    double at_5, at_10, at_20, at_30;
  } floors[] = {{"qwen3-30b-a3b-q4km", 39.9, 59.0, 78.1, 88.5},
                {"gpt-oss-120b-q4km", 47.4, 61.7, 76.0, 82.7},
                {"demo-chat", 13.1, 27.5, 46.3, 60.0}};
  for (const auto& floor : floors) {
    const RoutingTrace trace = Load(floor.trace);
    EXPECT_GE(HitPercent("heat", {&trace, 1}, 5), floor.at_5) << floor.trace;
    EXPECT_GE(HitPercent("heat", {&trace, 1}, 10), floor.at_10) << floor.trace;
    EXPECT_GE(HitPercent("heat", {&trace, 1}, 20), floor.at_20) << floor.trace;
    EXPECT_GE(HitPercent("heat", {&trace, 1}, 30), floor.at_30) << floor.trace;
  }
}

// What a change of subject costs: the second trace's hit rate alone less the one after the first.
TEST(TraceReplayTest, AShiftCostsHeatNoMoreThanLru) {
  const RoutingTrace python = Load("demo-python"), chat = Load("demo-chat");
  for (const uint32_t percent : {10u, 20u, 30u}) {
    const auto loss = [&](const char* policy) {
      const RoutingTrace both[] = {python, chat};
      const auto counts = ReplayTraces(both, {policy, Slots(chat, percent)});
      return HitPercent(policy, {&chat, 1}, percent) - 100 * counts.value()[1].hit_rate();
    };
    EXPECT_LE(loss("heat"), std::max(loss("lru"), 0.0) + 0.1) << percent << " %, lru " << loss("lru");
  }
}

TEST(TraceReplayTest, ErrorsSayWhatDoesNotFit) {
  const RoutingTrace gpt = Load("gpt-oss-120b-q4km"), qwen = Load("qwen3-30b-a3b-q4km");
  const RoutingTrace both[] = {gpt, qwen};
  EXPECT_FALSE(ReplayTraces(both, {"heat", 400}).ok());
  EXPECT_FALSE(ReplayTraces({&gpt, 1}, {"heat", 1}).ok());
  EXPECT_FALSE(ReplayTraces({&gpt, 1}, {"opt", 400}).ok());
  EXPECT_FALSE(ReplayTraces({&gpt, 1}, {"heat", 400, true}).ok());  // no lookahead columns
}

TEST(TraceReplayTest, TheDeviceModelIsTheMaximumAndTheSum) {
  const ReplayCount count{10, 100, 60};  // four misses a token
  const ProjectedSpeed speed = ProjectSpeed(count, {1e9, 1e6, 0.001});
  EXPECT_NEAR(speed.overlapped, 250, 1e-6);
  EXPECT_NEAR(speed.serial, 200, 1e-6);
}

}  // namespace
}  // namespace moraine
