#include "residency/expert_state.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

namespace moraine {
namespace {

using enum ExpertState;

TEST(ExpertStateTest, AllowsExactlyTheArrowsOfTheDiagram) {
  const std::set<std::pair<ExpertState, ExpertState>> arrows = {
      {kAbsent, kReserved},     {kReserved, kReading},  {kReserved, kAbsent},
      {kReading, kReady},       {kReading, kAbsent},    {kReading, kDraining},
      {kReading, kQuarantined}, {kReady, kLeased},      {kReady, kEvicting},
      {kLeased, kReady},        {kEvicting, kAbsent},   {kDraining, kAbsent},
  };
  for (int from = 0; from < kExpertStateCount; ++from) {
    for (int to = 0; to < kExpertStateCount; ++to) {
      const std::pair arrow(static_cast<ExpertState>(from), static_cast<ExpertState>(to));
      EXPECT_EQ(IsAllowedTransition(arrow.first, arrow.second), arrows.contains(arrow))
          << ExpertStateName(arrow.first) << " -> " << ExpertStateName(arrow.second);
    }
  }
}

TEST(ExpertStateTest, NamesAreDistinct) {
  std::set<std::string> names;
  for (int i = 0; i < kExpertStateCount; ++i) {
    names.insert(ExpertStateName(static_cast<ExpertState>(i)));
  }
  EXPECT_EQ(names.size(), static_cast<size_t>(kExpertStateCount));
  EXPECT_FALSE(names.contains("invalid"));
}

TEST(ExpertStateTest, TransitionTakesTheArrow) {
  ExpertState state = kAbsent;
  Transition(&state, kReserved);
  EXPECT_EQ(state, kReserved);
}

TEST(ExpertStateDeathTest, TransitionRefusesOverwritingALeasedExpert) {
  ExpertState state = kLeased;
  EXPECT_DEATH(Transition(&state, kEvicting), "leased -> evicting");
}

}  // namespace
}  // namespace moraine
