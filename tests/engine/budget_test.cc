#include "engine/budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/bytes.h"
#include "engine/slot_memory.h"
#include "residency/slot_segments.h"

namespace moraine {
namespace {

using testing::HasSubstr;

// 2 layers x 128 experts of 96 KiB: the demo model's size of record.
Manifest TestManifest() {
  Manifest manifest;
  manifest.layers = {{128, 98304, "bf16", "bf16", 256, 64}, {128, 98304, "bf16", "bf16", 256, 64}};
  return manifest;
}

FixedMemory TestFixed() { return {100 * kMiB, 20 * kMiB, 10 * kMiB, 30 * kMiB}; }
MemoryLimit TestLimit(uint64_t available) { return {available, available, "test"}; }

TEST(RamBudget, ReadsSizesSharesAndAuto) {
  EXPECT_EQ(ParseRamBudget("8GiB")->bytes, 8 * kGiB);
  EXPECT_DOUBLE_EQ(ParseRamBudget("25%")->fraction, 0.25);
  EXPECT_EQ(ParseRamBudget("auto")->kind, RamBudget::Kind::kAutomatic);
  for (const char* bad : {"", "0%", "101%", "-5%", "x%", "many"}) {
    EXPECT_FALSE(ParseRamBudget(bad).ok()) << bad;
  }
}

TEST(PlanSlots, AShareCountsExpertsOnly) {
  const auto plan = PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("25%"), TestLimit(0));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slot_count, 64u);
  EXPECT_FALSE(plan->all_resident);
}

TEST(PlanSlots, ASizeBoundsTheWholeProcess) {
  const auto plan =
      PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("163MiB"), TestLimit(0));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slot_count, 3 * kMiB / SlotMemory(98304));  // 160 MiB are not for slots
}

// Segments waste up to 1/256 (SlotsPerSegment says how much) and page tables take 8 bytes for 4 KiB.
TEST(PlanSlots, ASizeHoldsWhatSegmentsAndPageTablesTakeBesideTheSlots) {
  Manifest manifest = TestManifest();
  for (LayerManifest& layer : manifest.layers) layer.record_bytes = 2'654'208, layer.expert_count = 4096;
  const uint64_t budget_bytes = 16 * kGiB, slot_bytes = manifest.max_record_bytes();
  const RamBudget budget{.kind = RamBudget::Kind::kBytes, .bytes = budget_bytes, .fraction = 0};
  const auto plan = PlanSlots(manifest, 4, {}, budget, TestLimit(0));
  ASSERT_TRUE(plan.ok());
  ASSERT_FALSE(plan->all_resident);
  const uint64_t per_segment = SlotsPerSegment(slot_bytes, plan->slot_count);
  const uint64_t whole = plan->slot_count / per_segment, rest = plan->slot_count % per_segment;
  const uint64_t used = whole * AlignUp(per_segment * slot_bytes, 2 * kMiB) + rest * slot_bytes;
  EXPECT_LE(used + used / 512, budget_bytes);
  EXPECT_GT(used, budget_bytes - 2 * slot_bytes - budget_bytes / 128);
}

TEST(PlanSlots, NeverMoreSlotsThanExpertsAndTheRing) {
  const auto plan =
      PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("100GiB"), TestLimit(0));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slot_count, 258u);
  EXPECT_TRUE(plan->all_resident);
}

TEST(PlanSlots, ASizeThatHoldsAllExpertsButNoRingIsNotExceeded) {
  const uint64_t bytes = 160 * kMiB + 257 * SlotMemory(98304);
  const RamBudget budget{.kind = RamBudget::Kind::kBytes, .bytes = bytes, .fraction = 0};
  const auto plan = PlanSlots(TestManifest(), 4, TestFixed(), budget, TestLimit(0));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->slot_count, 257u);
  EXPECT_FALSE(plan->all_resident);
  EXPECT_EQ(PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("100%"), TestLimit(0))
                ->slot_count, 258u);
}

TEST(PlanSlots, AutomaticTakesNinetyPercentOfWhatIsFree) {
  const auto plan = PlanSlots(TestManifest(), 4, TestFixed(), RamBudget{}, TestLimit(200 * kMiB));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->budget_bytes, 180 * kMiB);
  EXPECT_EQ(plan->slot_count, 20 * kMiB / SlotMemory(98304));
}

TEST(PlanSlots, TooSmallNamesTheMinimumInTheSameUnit) {
  const auto share = PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("1%"), TestLimit(0));
  ASSERT_FALSE(share.ok());
  EXPECT_THAT(share.status().message(), HasSubstr("2.4%"));  // 6 of 256
  const auto named = PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("2.4%"), TestLimit(0));
  EXPECT_TRUE(named.ok()) << "the minimum that the error names must be legal";

  const auto size =
      PlanSlots(TestManifest(), 4, TestFixed(), *ParseRamBudget("100MiB"), TestLimit(0));
  ASSERT_FALSE(size.ok());
  EXPECT_THAT(size.status().message(), HasSubstr("the minimum is 160.6 MiB"));
}

TEST(ChoosePrefillChunk, IsAsLongAsFourPercentOfTheSlotsPayFor) {
  const auto scratch = [](uint32_t tokens) { return tokens * 100 * kKiB; };  // 50 MiB for 512
  EXPECT_EQ(ChoosePrefillChunk(4096, 1000 * kMiB, scratch), 512u) << "40 MiB to spare";
  EXPECT_EQ(ChoosePrefillChunk(4096, 1300 * kMiB, scratch), 1024u) << "52 MiB";
  EXPECT_EQ(ChoosePrefillChunk(4096, 3700 * kMiB, scratch), 1024u) << "148 MiB, 150 are needed";
  EXPECT_EQ(ChoosePrefillChunk(4096, 3800 * kMiB, scratch), 2048u);
  EXPECT_EQ(ChoosePrefillChunk(1 << 20, 1'000'000 * kMiB, scratch), 2048u) << "the longest";
  EXPECT_EQ(ChoosePrefillChunk(1500, 3800 * kMiB, scratch), 1024u) << "not beyond the context";
  EXPECT_EQ(ChoosePrefillChunk(100, 3800 * kMiB, scratch), 100u);
}

TEST(AdviseBudget, AdviceIsLegalAndOrdered) {
  const BudgetAdvice advice = AdviseBudget(TestManifest(), 4, TestFixed());
  EXPECT_LT(advice.minimum_bytes, advice.recommended_bytes);
  EXPECT_LT(advice.recommended_bytes, advice.everything_bytes);
  RamBudget budget{.kind = RamBudget::Kind::kBytes, .bytes = advice.minimum_bytes, .fraction = 0};
  EXPECT_TRUE(PlanSlots(TestManifest(), 4, TestFixed(), budget, TestLimit(0)).ok());
  budget.bytes = advice.everything_bytes;
  EXPECT_TRUE(PlanSlots(TestManifest(), 4, TestFixed(), budget, TestLimit(0))->all_resident);
}

}  // namespace
}  // namespace moraine
