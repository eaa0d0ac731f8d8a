// ExpertChooser: every scoring, correction bias, groups, normalising and scaling, against what the
// definition says for values small enough to be worked out, and against a naive choice at random.
#include "model/blocks/expert_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"

namespace moraine {
namespace {

using testing::ElementsAre;

struct Choice {
  std::vector<uint32_t> experts;
  std::vector<float> weights;
};

Choice Choose(const RouterConfig& config, const std::vector<float>& logits, uint32_t top_k,
              const std::vector<float>& correction = {}) {
  Choice choice{std::vector<uint32_t>(top_k), std::vector<float>(top_k)};
  ExpertChooser chooser(config, static_cast<uint32_t>(logits.size()), top_k, correction);
  chooser.Choose(logits.data(), choice.experts.data(), choice.weights.data());
  return choice;
}

float Logit(float p) { return std::log(p / (1 - p)); }

TEST(ExpertChoice, SigmoidScoresAndTheCorrectionOfTheChoiceOnly) {
  const std::vector<float> logits = {Logit(0.9f), Logit(0.5f), Logit(0.4f), Logit(0.2f)};
  RouterConfig config{.scoring = Scoring::kSigmoid};
  const Choice plain = Choose(config, logits, 2);
  EXPECT_THAT(plain.experts, ElementsAre(0, 1));
  EXPECT_NEAR(plain.weights[0], 0.9, 1e-6);
  EXPECT_NEAR(plain.weights[1], 0.5, 1e-6);
  // 0.9 - 0.6, 0.5, 0.4 + 0.2, 0.2 + 1
  const Choice corrected = Choose(config, logits, 3, {-0.6f, 0, 0.2f, 1});
  EXPECT_THAT(corrected.experts, ElementsAre(3, 2, 1));
  EXPECT_NEAR(corrected.weights[0], 0.2, 1e-6);
  EXPECT_NEAR(corrected.weights[1], 0.4, 1e-6);
  EXPECT_NEAR(corrected.weights[2], 0.5, 1e-6);
  config.normalize = true;
  config.scale = 2.5f;
  const Choice scaled = Choose(config, logits, 3, {-0.6f, 0, 0.2f, 1});
  EXPECT_NEAR(scaled.weights[0], 2.5 * 0.2 / 1.1, 1e-6);
  EXPECT_NEAR(scaled.weights[2], 2.5 * 0.5 / 1.1, 1e-6);
  config.normalize_epsilon = 0.9f;
  EXPECT_NEAR(Choose(config, logits, 3, {-0.6f, 0, 0.2f, 1}).weights[0], 2.5 * 0.2 / 2, 1e-6);
}

TEST(ExpertChoice, SoftmaxOfTheChosenOnly) {
  const std::vector<float> logits = {0, std::log(3.0f), std::log(5.0f), std::log(2.0f)};
  const Choice choice = Choose({.scoring = Scoring::kSoftmaxOfChosen}, logits, 2);
  EXPECT_THAT(choice.experts, ElementsAre(2, 1));
  EXPECT_NEAR(choice.weights[0], 5.0 / 8, 1e-6);
  EXPECT_NEAR(choice.weights[1], 3.0 / 8, 1e-6);
}

TEST(ExpertChoice, GroupsByTheirBestOrTheirTwoBest) {
  // Groups {5, 0}, {4, 3}, {3.5, 3.4}: by the best the first, by the two best the second.
  const std::vector<float> logits = {5, 0, 4, 3, 3.5f, 3.4f};
  RouterConfig config{.group_count = 3, .chosen_groups = 1, .group_score = GroupScore::kBest};
  EXPECT_THAT(Choose(config, logits, 2).experts, ElementsAre(0, 1));
  config.group_score = GroupScore::kTwoBest;
  EXPECT_THAT(Choose(config, logits, 2).experts, ElementsAre(2, 3));
  config.chosen_groups = 2;
  EXPECT_THAT(Choose(config, logits, 3).experts, ElementsAre(2, 4, 5));
  config.chosen_groups = 3;
  EXPECT_THAT(Choose(config, logits, 3).experts, ElementsAre(0, 2, 4));
  // Weights are over all experts, also those of groups that were not chosen.
  config.chosen_groups = 1;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit);
  EXPECT_NEAR(Choose(config, logits, 1).weights[0], std::exp(4.0) / sum, 1e-6);
}

TEST(ExpertChoice, AGroupOfOneIsItsExpert) {
  const RouterConfig config{.group_count = 3, .chosen_groups = 2,
                            .group_score = GroupScore::kTwoBest};
  EXPECT_THAT(Choose(config, {1, 3, 2}, 2).experts, ElementsAre(1, 2));
}

TEST(ExpertChoice, NegativeScoresOfChosenGroupsBeatOthersOutside) {
  // The correction makes the scores of the chosen group negative; experts outside stay out.
  RouterConfig config{.scoring = Scoring::kSigmoid, .group_count = 2, .chosen_groups = 1,
                      .group_score = GroupScore::kBest};
  const Choice choice = Choose(config, {9, -9, 0, 0}, 2, {-0.5f, -0.9f, -2, -2});
  EXPECT_THAT(choice.experts, ElementsAre(0, 1));
}

TEST(ExpertChoice, RandomAgainstSorting) {
  constexpr uint64_t kSeed = 99;
  SCOPED_TRACE(testing::Message() << "seed " << kSeed);
  Random random(kSeed);
  for (int round = 0; round < 500; ++round) {
    const uint32_t group_count = 1 + static_cast<uint32_t>(random.Below(4));
    const uint32_t size = 1 + static_cast<uint32_t>(random.Below(6));
    const uint32_t chosen = 1 + static_cast<uint32_t>(random.Below(group_count));
    const uint32_t top_k = 1 + static_cast<uint32_t>(random.Below(chosen * size));
    const RouterConfig config{.scoring = Scoring::kSigmoid, .group_count = group_count,
                              .chosen_groups = chosen, .group_score = GroupScore::kTwoBest,
                              .normalize = true, .scale = 3};
    const uint32_t count = group_count * size;
    std::vector<float> logits(count), correction(count), scores(count);
    for (uint32_t e = 0; e < count; ++e) {
      logits[e] = random.Normal();
      correction[e] = 0.3f * random.Normal();
      scores[e] = 1.0f / (1.0f + std::exp(-logits[e])) + correction[e];
    }
    std::vector<uint32_t> groups(group_count), expected;
    std::iota(groups.begin(), groups.end(), 0u);
    const auto score_of = [&](uint32_t group) {
      std::vector<float> members(scores.begin() + group * size,
                                 scores.begin() + (group + 1) * size);
      std::ranges::sort(members, std::greater<>());
      return members[0] + (size > 1 ? members[1] : 0);
    };
    std::ranges::sort(groups, [&](uint32_t a, uint32_t b) { return score_of(a) > score_of(b); });
    for (uint32_t g = 0; g < chosen; ++g) {
      for (uint32_t i = 0; i < size; ++i) expected.push_back(groups[g] * size + i);
    }
    std::ranges::sort(expected, [&](uint32_t a, uint32_t b) { return scores[a] > scores[b]; });
    expected.resize(top_k);
    const Choice choice = Choose(config, logits, top_k, correction);
    EXPECT_EQ(choice.experts, expected);
    EXPECT_NEAR(std::accumulate(choice.weights.begin(), choice.weights.end(), 0.0), 3, 1e-5);
  }
}

TEST(ExpertChoice, PreferenceKeepsToTheGroups) {
  const RouterConfig config{.group_count = 2, .chosen_groups = 1};
  ExpertChooser chooser(config, 4, 2);
  const float logits[] = {3, 1, 2.9f, 2.8f};
  const uint8_t resident[] = {0, 0, 1, 1};
  uint32_t experts[2];
  float weights[2];
  chooser.ChoosePreferring(logits, resident, 5, experts, weights);
  EXPECT_THAT(experts, ElementsAre(0, 1));
}

}  // namespace
}  // namespace moraine
