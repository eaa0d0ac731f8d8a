// The VRAM tier over a real residency manager and copies that are as late as they can be: what a
// live slot holds, what is promoted, and what is not.
#include "engine/vram_tier.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/residency_observer.h"
#include "engine_world.h"
#include "late_copier.h"

namespace moraine {
namespace {

constexpr uint32_t kLayers = 4, kExperts = 32, kTopK = 4, kSlots = 32;

EngineWorldOptions WorldOptions(uint32_t slots, uint64_t seed) {
  EngineWorldOptions options;
  options.layers = kLayers;
  options.experts = kExperts;
  options.top_k = kTopK;
  options.slot_count = slots;
  options.ring_slots = 2;
  options.max_tokens = 1;
  options.seed = seed;
  return options;
}

// Layers in which some experts are taken more often than others: weights 1 / rank, in a random
// order.
class Workload {
 public:
  Workload(uint64_t seed, double skew) : random_(seed), skew_(skew), rank_(kLayers) { Shift(); }
  // Another order.
  void Shift() {
    for (std::vector<uint32_t>& ranks : rank_) {
      ranks.resize(kExperts);
      std::iota(ranks.begin(), ranks.end(), 0u);
      for (uint32_t i = kExperts; i > 1; --i) std::swap(ranks[i - 1], ranks[random_.Below(i)]);
    }
  }
  // Distinct experts of one token.
  std::vector<uint32_t> Take(uint32_t layer) {
    std::vector<std::pair<double, uint32_t>> keyed;
    for (uint32_t e = 0; e < kExperts; ++e) {
      const double uniform = (static_cast<double>(random_.Below(1u << 30)) + 0.5) / (1u << 30);
      keyed.emplace_back(std::log(uniform) / Weight(layer, e), e);  // Efraimidis and Spirakis, 2006
    }
    std::ranges::partial_sort(keyed, keyed.begin() + kTopK, std::greater());
    std::vector<uint32_t> taken;
    for (uint32_t i = 0; i < kTopK; ++i) taken.push_back(keyed[i].second);
    return taken;
  }
  double Weight(uint32_t layer, uint32_t expert) const {
    return std::pow(1.0 + rank_[layer][expert], -skew_);
  }

 private:
  Random random_;
  const double skew_;
  std::vector<std::vector<uint32_t>> rank_;
};

class TierWorld {
 public:
  TierWorld(uint32_t dram_slots, uint32_t vram_slots, uint64_t seed)
      : world_(WorldOptions(dram_slots, seed)),
        copier_(seed),
        memory_(vram_slots * world_.record_bytes()) {
    VramTierOptions options;
    options.experts_per_layer.assign(kLayers, kExperts);
    options.record_bytes.assign(kLayers, world_.record_bytes());
    options.most_copies = 4;
    tier_ = std::make_unique<VramTier>(options, world_.manager());
    tier_->Attach({memory_.data(), world_.record_bytes(), vram_slots}, copier_);
  }

  // One token; returns which share of its experts was in VRAM. What is not is read and computed on
  // the CPU.
  double Step(Workload* workload, uint64_t credit_bytes) {
    const uint64_t read_before = world_.manager().stats().bytes_read;
    world_.BeginStep(1, AcquireMode::kCached);
    const Status status = tier_->BeginStep(1, credit_bytes);
    CHECK(status.ok(), status.message());
    CHECK(world_.manager().stats().bytes_read == read_before, "something was read for VRAM");
    tier_->CheckInvariants();
    uint32_t found = 0;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const std::vector<uint32_t> taken = workload->Take(layer);
      std::vector<uint8_t> elsewhere(kExperts);
      for (const uint32_t e : taken) {
        const ExpertKey key{LayerId(layer), ExpertId(e)};
        tier_->Note(key, 1);
        const std::byte* const record = tier_->Find(key);
        if (record == nullptr) continue;
        const Status right = world_.Verify(key, 0, {record, world_.record_bytes()});
        CHECK(right.ok(), right.message());
        elsewhere[e] = 1;
        ++found;
      }
      const std::vector<float> weights(kTopK, 0.25f);
      const RoutingDecision routing = {.token_count = 1,
                                       .top_k = kTopK,
                                       .experts = taken.data(),
                                       .weights = weights.data(),
                                       .elsewhere = elsewhere.data(),
                                       .lookaheads = {}};
      const Status computed = world_.RunLayer(LayerId(layer), routing);
      CHECK(computed.ok(), computed.message());
    }
    world_.manager().CheckInvariants();
    return static_cast<double>(found) / (kLayers * kTopK);
  }
  double Steps(Workload* workload, int steps, uint64_t credit_bytes) {
    double found = 0;
    for (int i = 0; i < steps; ++i) found += Step(workload, credit_bytes);
    return found / steps;
  }
  // All slots have been written over: whoever reads one without a copy finds out.
  VramTier& tier() { return *tier_; }
  EngineWorld& world() { return world_; }
  LateCopier& copier() { return copier_; }
  uint64_t record_bytes() const { return world_.record_bytes(); }

 private:
  EngineWorld world_;
  LateCopier copier_;
  std::vector<std::byte> memory_;
  std::unique_ptr<VramTier> tier_;
};

// The share that the hottest `slots` experts would serve, by trying.
double Ideal(Workload workload, uint32_t slots) {
  std::vector<uint32_t> count(kLayers * kExperts);
  constexpr int kSteps = 2000;
  for (int i = 0; i < kSteps; ++i) {
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      for (const uint32_t e : workload.Take(layer)) ++count[layer * kExperts + e];
    }
  }
  std::ranges::sort(count, std::greater());
  return std::accumulate(count.begin(), count.begin() + slots, 0.0) / (kSteps * kLayers * kTopK);
}

TEST(VramTier, ConvergesStaysAndAdapts) {
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    TierWorld world(seed % 2 == 0 ? 130 : 70, kSlots,
                    seed);  // all experts in DRAM, or half of them
    Workload workload(seed, 1.2);
    const uint64_t credit = world.record_bytes() / 2;  // a copy every other step
    world.Steps(&workload, 1200, credit);
    const double ideal = Ideal(workload, kSlots);
    const uint64_t before = world.tier().counts().promotions;
    EXPECT_GT(world.Steps(&workload, 1000, credit), 0.93 * ideal);
    EXPECT_LE(world.tier().counts().promotions - before, 30u) << "takes turns";
    EXPECT_EQ(world.tier().counts().live + world.tier().copies_in_flight(), kSlots);
    workload.Shift();
    EXPECT_LT(world.Steps(&workload, 20, credit), 0.75 * ideal) << "the shift is none";
    world.Steps(&workload, 700, credit);
    EXPECT_GT(world.Steps(&workload, 300, credit), 0.85 * ideal);
  }
}

// All experts are of the same worth: which ones are hotter is chance.
TEST(VramTier, ChanceMovesNothing) {
  TierWorld world(130, kSlots, 5);
  Workload workload(5, 0);
  world.Steps(&workload, 1000, world.record_bytes());
  const uint64_t before = world.tier().counts().promotions;
  world.Steps(&workload, 2000, world.record_bytes());
  EXPECT_LE(world.tier().counts().promotions - before, 20u);
}

TEST(VramTier, CopiesAreWithinTheirCredit) {
  TierWorld world(130, kSlots, 6);
  Workload workload(6, 1);
  uint64_t credit = 0;
  for (int step = 1; step <= 200; ++step) {
    world.Step(&workload, world.record_bytes() / 5);
    credit += world.record_bytes() / 5;
    ASSERT_LE(world.tier().counts().copied_bytes, credit);
  }
  EXPECT_GE(world.tier().counts().copied_bytes, 30 * world.record_bytes());
  world.Steps(&workload, 50, 0);
  const uint64_t copied = world.tier().counts().copied_bytes;
  world.Steps(&workload, 50, 0);
  EXPECT_EQ(world.tier().counts().copied_bytes, copied) << "copies without credit";
}

// A restart begins with the heat that was saved, as soon as the experts are in DRAM.
TEST(VramTier, BeginsWithTheHeatOfBefore) {
  TierWorld world(130, 8, 7);
  std::vector<float> heat(kLayers * kExperts);
  for (uint32_t i = 0; i < 8; ++i) heat[i * 16 + 3] = 100.0f + static_cast<float>(i);
  heat[5] = 1;
  world.tier().ImportHeat(heat);
  ASSERT_TRUE(world.tier().BeginStep(1, 1 << 30).ok());
  EXPECT_EQ(world.tier().counts().promotions, 0u) << "not in DRAM";
  std::vector<ExpertId> all;
  for (uint32_t e = 0; e < kExperts; ++e) all.emplace_back(e);
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    world.world().manager().Prefetch(LayerId(layer), all, PrefetchReason::kHeat);
    while (!world.world().scheduler().idle()) world.world().manager().Poll(-1);
  }
  for (int step = 0; step < 40; ++step) ASSERT_TRUE(world.tier().BeginStep(1, 1 << 30).ok());
  world.tier().Finish();
  world.tier().CheckInvariants();
  for (uint32_t i = 0; i < 8; ++i) {
    const uint32_t index = i * 16 + 3;
    EXPECT_NE(world.tier().Find({LayerId(index / kExperts), ExpertId(index % kExperts)}), nullptr)
        << i;
  }
  EXPECT_EQ(world.tier().counts().live, 8u);
  EXPECT_EQ(world.world().manager().leases(), 0u);
}

TEST(VramTier, WhoWatchesSeesWhatIsThere) {
  TierWorld world(70, kSlots, 9);
  Workload workload(9, 1.2);
  world.Steps(&workload, 300, world.record_bytes());
  ResidencyObserver observer(&world.world().manager(),
                             std::vector<uint32_t>(kLayers, kExperts), kTopK);
  const auto count = [&] {
    const auto snapshot = observer.Observe({});
    return std::ranges::count(snapshot->residences, Residence::kVram);
  };
  EXPECT_EQ(count(), 0);
  observer.set_vram(&world.tier());
  EXPECT_EQ(count(), static_cast<ptrdiff_t>(world.tier().counts().live));
  EXPECT_GT(count(), 0);
}

TEST(VramTier, OfADeviceThatFailsNothingIsLive) {
  TierWorld world(130, kSlots, 8);
  Workload workload(8, 1);
  world.Steps(&workload, 100, world.record_bytes());
  ASSERT_GT(world.tier().counts().live, 0u);
  world.copier().Fail();
  Status status;
  for (int i = 0; i < 100 && status.ok(); ++i) {
    status = world.tier().BeginStep(1, world.record_bytes());
    for (uint32_t e = 0; e < kExperts; ++e) world.tier().Note({LayerId(0), ExpertId(e)}, 50);
  }
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  world.tier().CheckInvariants();
  EXPECT_EQ(world.tier().counts().live, 0u);
  EXPECT_EQ(world.world().manager().leases(), 0u);
  EXPECT_TRUE(world.tier().BeginStep(1, 1 << 30).ok()) << "it is not used any more";
  EXPECT_EQ(world.tier().Find({LayerId(0), ExpertId(0)}), nullptr);
}

}  // namespace
}  // namespace moraine
