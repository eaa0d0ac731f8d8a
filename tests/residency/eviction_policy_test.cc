#include "residency/eviction_policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace moraine {
namespace {

using ::testing::FloatNear;
using ::testing::HasSubstr;

class AllBut final : public EvictionPolicy::Evictable {
 public:
  explicit AllBut(std::set<ExpertKey> held = {}) : held_(std::move(held)) {}
  bool operator()(ExpertKey key) const override { return !held_.contains(key); }

 private:
  const std::set<ExpertKey> held_;
};

ExpertKey Key(uint32_t layer, uint32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

std::unique_ptr<EvictionPolicy> Make(std::string_view name, const PolicyShape& shape) {
  return CreateEvictionPolicy(name, shape).value();
}
void Insert(EvictionPolicy& policy, const std::vector<ExpertKey>& keys) {
  for (ExpertKey key : keys) {
    policy.OnAccess(key, 1);
    policy.OnInsert(key);
  }
}
// Accesses `key` in each of `steps` decode steps.
void Decode(EvictionPolicy& policy, ExpertKey key, int steps) {
  for (int i = 0; i < steps; ++i) {
    policy.OnStep(1);
    policy.OnAccess(key, 1);
  }
}
float HeatOf(const EvictionPolicy& policy, const PolicyShape& shape, size_t index) {
  size_t size = 0;
  for (uint32_t experts : shape.experts_per_layer) size += experts;
  std::vector<float> heat(size);
  policy.ExportHeat(heat);
  return heat[index];
}

TEST(EvictionPolicyTest, UnknownNameListsTheKnownOnes) {
  const auto result = CreateEvictionPolicy("opt", {{4}, 1, 2});
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("'opt': expected heat, lru, lru_layer, lfu, sieve, s3fifo or arc"));
}

class AnyPolicyTest : public ::testing::TestWithParam<const char*> {
 protected:
  const PolicyShape shape_{{4, 0, 4}, 1, 4};
  std::unique_ptr<EvictionPolicy> policy_ = Make(GetParam(), shape_);
};
INSTANTIATE_TEST_SUITE_P(All, AnyPolicyTest, ::testing::ValuesIn(EvictionPolicyNames().begin(), EvictionPolicyNames().end()),
                         [](const auto& param) { return std::string(param.param); });

TEST_P(AnyPolicyTest, HasItsName) { EXPECT_STREQ(policy_->name(), GetParam()); }

TEST_P(AnyPolicyTest, NoVictimWhenNothingIsResident) {
  EXPECT_EQ(policy_->ChooseVictim(LayerId(0), AllBut()), std::nullopt);
}

TEST_P(AnyPolicyTest, NeverChoosesWhatIsHeld) {
  Insert(*policy_, {Key(0, 0), Key(0, 1), Key(2, 0)});
  EXPECT_EQ(policy_->ChooseVictim(LayerId(0), AllBut({Key(0, 0), Key(2, 0)})), Key(0, 1));
  EXPECT_EQ(policy_->ChooseVictim(LayerId(2), AllBut({Key(0, 0), Key(0, 1)})), Key(2, 0));
  EXPECT_EQ(policy_->ChooseVictim(LayerId(0), AllBut({Key(0, 0), Key(0, 1), Key(2, 0)})),
            std::nullopt);
}

TEST_P(AnyPolicyTest, EvictsEverythingOnceAndNothingTwice) {
  std::set<ExpertKey> left = {Key(0, 0), Key(0, 3), Key(2, 1), Key(2, 2)};
  Insert(*policy_, {left.begin(), left.end()});
  while (!left.empty()) {
    const auto victim = policy_->ChooseVictim(LayerId(0), AllBut());
    ASSERT_TRUE(victim.has_value());
    EXPECT_EQ(left.erase(*victim), 1u);
    policy_->OnEvict(*victim);
  }
  EXPECT_EQ(policy_->ChooseVictim(LayerId(0), AllBut()), std::nullopt);
}

TEST_P(AnyPolicyTest, AskingTwiceGivesTheSameAnswer) {
  Insert(*policy_, {Key(0, 0), Key(0, 1), Key(2, 0), Key(2, 1)});
  policy_->OnAccess(Key(0, 0), 1);
  const auto first = policy_->ChooseVictim(LayerId(2), AllBut());
  EXPECT_EQ(policy_->ChooseVictim(LayerId(2), AllBut()), first);
}

TEST_P(AnyPolicyTest, HeatSurvivesExportAndImport) {
  Decode(*policy_, Key(0, 1), 50);
  Decode(*policy_, Key(2, 3), 5);
  std::vector<float> heat(8);
  policy_->ExportHeat(heat);
  EXPECT_GT(heat[1], heat[7]);
  EXPECT_GT(heat[7], 0);
  EXPECT_EQ(heat[0], 0);
  auto other = Make(GetParam(), shape_);
  other->ImportHeat(heat);
  std::vector<float> again(8);
  other->ExportHeat(again);
  EXPECT_THAT(again, ::testing::Pointwise(FloatNear(1e-4f), heat));
}

TEST(HeatPolicyTest, OfOneLayerTheColdestGoes) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  Insert(*policy, {Key(1, 0), Key(1, 1), Key(1, 2)});
  Decode(*policy, Key(1, 0), 3);
  Decode(*policy, Key(1, 2), 1);
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 1));
}

TEST(HeatPolicyTest, RecentAccessesOutweighOlderOnes) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  Insert(*policy, {Key(1, 0), Key(1, 1)});
  Decode(*policy, Key(1, 0), 10);  // about 6.5
  Decode(*policy, Key(1, 1), 20);  // 0.9^20 = 12 % of that is left beside about 8.8
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
}

TEST(HeatPolicyTest, AtEqualHeatTheLayerVisitedLastGoes) {
  auto policy = Make("heat", PolicyShape{{4, 4, 4, 4}, 1, 8});
  policy->OnStep(1);
  for (uint32_t layer = 0; layer < 4; ++layer) Insert(*policy, {Key(layer, 0), Key(layer, 1)});
  // Layer 1 has just been left behind, layer 3 comes next.
  // Layer 2 itself is farther than layer 1, if it may give at all.
  const AllBut of_others({Key(2, 0), Key(2, 1)});
  EXPECT_EQ(policy->ChooseVictim(LayerId(2), of_others)->layer, LayerId(1));
  EXPECT_EQ(policy->ChooseVictim(LayerId(2), AllBut())->layer, LayerId(2));
}

TEST(HeatPolicyTest, HeatWeighsAgainstDistance) {
  auto policy = Make("heat", PolicyShape{{4, 4, 4, 4}, 1, 8});
  for (uint32_t layer = 0; layer < 4; ++layer) Insert(*policy, {Key(layer, 0), Key(layer, 1)});
  // Layer 1 is three times as far away as layer 3, but more than three times as hot.
  for (int i = 0; i < 30; ++i) {
    policy->OnStep(1);
    for (uint32_t layer : {0u, 1u, 2u}) policy->OnAccess(Key(layer, i % 2), 1);
    policy->OnAccess(Key(3, 2 + i % 2), 1);  // its residents are not used
  }
  EXPECT_EQ(policy->ChooseVictim(LayerId(2), AllBut())->layer, LayerId(3));
}

TEST(HeatPolicyTest, TheVisitedLayersOthersAreAWholeTurnAway) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  Insert(*policy, {Key(0, 0), Key(0, 1), Key(1, 0), Key(1, 1)});
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(0, 0));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut({Key(0, 0), Key(0, 1)})), Key(1, 0));
}

TEST(HeatPolicyTest, WhatIsPredictedStaysUntilItsLayerHasBeenVisited) {
  auto policy = Make("heat", {{4, 4, 4}, 1, 7});
  Insert(*policy, {Key(1, 0), Key(1, 1), Key(2, 0), Key(2, 1)});
  for (int i = 0; i < 20; ++i) {
    policy->OnStep(1);
    for (uint32_t layer : {0u, 1u}) policy->OnAccess(Key(layer, 1), 1);
    policy->OnAccess(Key(2, i % 2), 1);
  }
  ASSERT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
  const ExpertId predicted[] = {ExpertId(0)};
  policy->OnPredicted(LayerId(1), predicted, 0.9f);
  EXPECT_NE(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
  EXPECT_TRUE(policy->IsHot(Key(1, 0)));
  policy->OnAccess(Key(1, 1), 1);  // the router decided otherwise
  policy->OnStep(1);
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
}

TEST(HeatPolicyTest, LearnsWhatFollowsWhat) {
  auto policy = Make("heat", {{8, 8}, 1, 7});
  Insert(*policy, {Key(1, 0), Key(1, 1), Key(1, 2), Key(1, 3)});
  for (int i = 0; i < 200; ++i) {
    policy->OnStep(1);
    policy->OnAccess(Key(0, 0), 1);
    policy->OnAccess(Key(1, i % 4), 1);  // a round; a decayed count keeps what has just been used
  }
  // 3 was last, so 0 is next, though it has been idle for longest.
  EXPECT_NE(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
  for (uint32_t other : {1u, 2u, 3u}) {
    EXPECT_TRUE(policy->Prefers(Key(1, 0), Key(1, other), LayerId(0))) << other;
  }
}

TEST(HeatPolicyTest, ALayerOnItsFloorIsSparedWhileAnotherIsAbove) {
  // Floor: min(top_k 2, capacity 6 / 3 layers) = 2.
  auto policy = Make("heat", {{4, 4, 4}, 2, 6});
  Insert(*policy, {Key(1, 0), Key(1, 1), Key(2, 0), Key(2, 1), Key(2, 2)});
  for (int i = 0; i < 10; ++i) {
    policy->OnStep(1);
    policy->OnAccess(Key(1, 3), 1);
    for (uint32_t expert : {0u, 1u, 2u}) policy->OnAccess(Key(2, expert), 1);
  }
  // Layer 1's are ice-cold, but they are its last two.
  const AllBut but_one({Key(2, 0), Key(2, 1)});
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), but_one), Key(2, 2));
  policy->OnEvict(Key(2, 2));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut())->layer, LayerId(1));
}

TEST(HeatPolicyTest, FloorsShrinkWithTheBudget) {
  // capacity 2 / 2 layers: a floor of one, though top_k is 4.
  auto policy = Make("heat", {{4, 4, 0, 0}, 4, 2});
  Insert(*policy, {Key(0, 0), Key(1, 0), Key(1, 1)});
  Decode(*policy, Key(1, 0), 9);
  Decode(*policy, Key(1, 1), 9);
  EXPECT_EQ(policy->ChooseVictim(LayerId(3), AllBut())->layer, LayerId(1));
}

TEST(HeatPolicyTest, TiesGoToTheLeastRecentlyUsed) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  policy->OnStep(1);
  for (uint32_t expert : {2u, 0u, 1u}) Insert(*policy, {Key(1, expert)});
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 2));
}

TEST(HeatPolicyTest, APromptCannotOutweighWhatDecodeUsesInEveryToken) {
  auto policy = Make("heat", {{128, 128}, 6, 64});
  Insert(*policy, {Key(0, 0)});
  Decode(*policy, Key(0, 0), 40);
  policy->OnStep(512);
  // Uniform routing: 6/128 of the tokens; and one that takes a third of them.
  policy->OnAccess(Key(0, 1), 24);
  policy->OnAccess(Key(0, 2), 170);
  EXPECT_FALSE(policy->Prefers(Key(0, 1), Key(0, 0), LayerId(1)));
  EXPECT_FALSE(policy->Prefers(Key(0, 2), Key(0, 0), LayerId(1)));
}

TEST(HeatPolicyTest, APromptDisplacesWhatDecodeDoesNotUse) {
  auto policy = Make("heat", {{128, 128}, 6, 64});
  Insert(*policy, {Key(0, 0)});
  Decode(*policy, Key(0, 5), 40);
  policy->OnStep(512);
  policy->OnAccess(Key(0, 1), 100);
  EXPECT_TRUE(policy->Prefers(Key(0, 1), Key(0, 0), LayerId(1)));
}

TEST(HeatPolicyTest, AChunkOfOneTokenIsADecodeStep) {
  const PolicyShape shape{{2}, 1, 1};
  auto chunk = Make("heat", shape), steps = Make("heat", shape);
  chunk->OnStep(4);
  chunk->OnAccess(Key(0, 0), 4);
  Decode(*steps, Key(0, 0), 4);
  EXPECT_NEAR(HeatOf(*chunk, shape, 0), HeatOf(*steps, shape, 0), 1e-4);
}

TEST(HeatPolicyTest, ImportedHeatDecidesBeforeTheFirstToken) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  const std::vector<float> heat = {0, 0, 0, 0, 5, 1, 9, 7};
  policy->ImportHeat(heat);
  for (uint32_t expert : {0u, 1u, 2u, 3u}) policy->OnInsert(Key(1, expert));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 1));
  EXPECT_TRUE(policy->Prefers(Key(1, 2), Key(1, 3), LayerId(0)));
}

TEST(HeatPolicyTest, OrderSurvivesTheRescalingOfVeryLongRuns) {
  auto policy = Make("heat", {{4, 4}, 1, 7});
  Insert(*policy, {Key(1, 0), Key(1, 1), Key(1, 2)});
  for (int i = 0; i < 20000; ++i) {
    policy->OnStep(1);
    policy->OnAccess(Key(1, 0), 1);
    if (i % 2 == 0) policy->OnAccess(Key(1, 1), 1);
    if (i % 4 == 0) policy->OnAccess(Key(1, 2), 1);
  }
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 2));
  policy->OnEvict(Key(1, 2));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 1));
}

TEST(LruPolicyTest, TheLeastRecentlyUsedOfAllLayersGoes) {
  auto policy = Make("lru", {{4, 4}, 1, 8});
  Insert(*policy, {Key(1, 0), Key(0, 0), Key(1, 1)});
  policy->OnAccess(Key(1, 0), 1);
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(0, 0));
}

TEST(LruPolicyTest, PrefersTheMoreRecent) {
  auto policy = Make("lru", {{4, 4}, 1, 8});
  Insert(*policy, {Key(1, 0)});
  EXPECT_FALSE(policy->Prefers(Key(1, 2), Key(1, 0), LayerId(0)));
  policy->OnAccess(Key(1, 2), 1);
  EXPECT_TRUE(policy->Prefers(Key(1, 2), Key(1, 0), LayerId(0)));
}

TEST(SievePolicyTest, VisitedExpertsSurviveOneTurnOfTheHand) {
  auto policy = Make("sieve", {{4, 4}, 1, 4});
  for (uint32_t expert : {0u, 1u, 2u}) policy->OnInsert(Key(1, expert));
  policy->OnAccess(Key(1, 0), 1);
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 1));
  policy->OnEvict(Key(1, 1));
  // The hand goes on behind the evicted one, and 0's mark is spent.
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 2));
  policy->OnEvict(Key(1, 2));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(1, 0));
}

TEST(SievePolicyTest, TheFullestLayerGives) {
  auto policy = Make("sieve", {{4, 4, 4}, 1, 6});
  for (uint32_t expert : {0u, 1u}) policy->OnInsert(Key(1, expert));
  for (uint32_t expert : {0u, 1u, 2u}) policy->OnInsert(Key(2, expert));
  EXPECT_EQ(policy->ChooseVictim(LayerId(0), AllBut()), Key(2, 0));
}

TEST(SievePolicyTest, APromptDisplacesOnlyWhatIsAboveItsLayersShare) {
  auto policy = Make("sieve", {{4, 4}, 1, 4});  // a share of two
  for (uint32_t expert : {0u, 1u, 2u}) policy->OnInsert(Key(1, expert));
  policy->OnInsert(Key(0, 0));
  EXPECT_TRUE(policy->Prefers(Key(0, 1), Key(1, 0), LayerId(0)));
  policy->OnEvict(Key(1, 0));
  EXPECT_FALSE(policy->Prefers(Key(0, 1), Key(1, 1), LayerId(0)));
  EXPECT_FALSE(policy->Prefers(Key(1, 3), Key(0, 0), LayerId(0)));
}

}  // namespace
}  // namespace moraine
