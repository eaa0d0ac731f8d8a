#include "model/blocks/expert_choice.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint8_t kNoPreference[1] = {};

float Sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

}  // namespace

ExpertChooser::ExpertChooser(const RouterConfig& config, uint32_t expert_count, uint32_t top_k,
                             std::span<const float> correction)
    : config_(config),
      expert_count_(expert_count),
      top_k_(top_k),
      correction_(correction),
      scores_(expert_count),
      taken_(expert_count),
      group_scores_(config.group_count) {
  CHECK(top_k <= expert_count);
  CHECK(correction.empty() || correction.size() == expert_count);
  CHECK(config.group_count > 0 && expert_count % config.group_count == 0);
}

void ExpertChooser::Choose(const float* logits, uint32_t* experts, float* weights) {
  Score(logits);
  for (uint32_t k = 0; k < top_k_; ++k) experts[k] = TakeBest(kNoPreference, 0);
  Weigh(logits, experts, weights);
}

void ExpertChooser::ChoosePreferring(const float* logits, const uint8_t* resident, float strength,
                                     uint32_t* experts, float* weights) {
  Score(logits);
  const auto [least, most] = std::ranges::minmax_element(scores_);
  const float bonus = strength * (*most - *least);
  experts[0] = TakeBest(kNoPreference, 0);
  for (uint32_t k = 1; k < top_k_; ++k) experts[k] = TakeBest(resident, bonus);
  std::sort(experts, experts + top_k_, [&](uint32_t a, uint32_t b) {
    return scores_[a] != scores_[b] ? scores_[a] > scores_[b] : a < b;
  });
  Weigh(logits, experts, weights);
}

// Softmax is monotone in the logits, of groups too, and logits have no ties that rounding makes.
void ExpertChooser::Score(const float* logits) {
  const bool sigmoid = config_.scoring == Scoring::kSigmoid;
  for (uint32_t e = 0; e < expert_count_; ++e) {
    scores_[e] = sigmoid ? Sigmoid(logits[e]) : logits[e];
    if (!correction_.empty()) scores_[e] += correction_[e];
  }
  std::ranges::fill(taken_, uint8_t{0});
  if (config_.group_count > 1) ExcludeGroups();
}

float ExpertChooser::GroupScoreOf(const float* scores) const {
  const uint32_t size = expert_count_ / config_.group_count;
  float best = scores[0], second = -INFINITY;
  for (uint32_t i = 1; i < size; ++i) {
    second = std::max(second, std::min(best, scores[i]));
    best = std::max(best, scores[i]);
  }
  return config_.group_score == GroupScore::kTwoBest && size > 1 ? best + second : best;
}

void ExpertChooser::ExcludeGroups() {
  const uint32_t size = expert_count_ / config_.group_count;
  for (uint32_t g = 0; g < config_.group_count; ++g) {
    group_scores_[g] = GroupScoreOf(&scores_[size_t{g} * size]);
  }
  for (uint32_t g = 0; g < config_.group_count; ++g) {
    uint32_t better = 0;
    for (uint32_t other = 0; other < config_.group_count; ++other) {
      better += group_scores_[other] > group_scores_[g] ||
                (group_scores_[other] == group_scores_[g] && other < g);
    }
    if (better < config_.chosen_groups) continue;
    std::fill_n(taken_.begin() + static_cast<ptrdiff_t>(g) * size, size, uint8_t{1});
  }
}

uint32_t ExpertChooser::TakeBest(const uint8_t* resident, float bonus) {
  uint32_t best = expert_count_;
  float best_score = 0;
  for (uint32_t e = 0; e < expert_count_; ++e) {
    if (taken_[e]) continue;
    const float score = scores_[e] + (bonus != 0 && resident[e] ? bonus : 0);
    if (best != expert_count_ && !(score > best_score)) continue;
    best = e;
    best_score = score;
  }
  CHECK(best < expert_count_);
  taken_[best] = 1;
  return best;
}

void ExpertChooser::Weigh(const float* logits, const uint32_t* experts, float* weights) const {
  if (config_.scoring == Scoring::kSigmoid) {
    for (uint32_t k = 0; k < top_k_; ++k) weights[k] = Sigmoid(logits[experts[k]]);
  } else {
    const bool of_chosen = config_.scoring == Scoring::kSoftmaxOfChosen;
    const uint32_t count = of_chosen ? top_k_ : expert_count_;
    const auto logit = [&](uint32_t i) { return logits[of_chosen ? experts[i] : i]; };
    float maximum = logit(0), sum = 0;
    for (uint32_t i = 1; i < count; ++i) maximum = std::max(maximum, logit(i));
    for (uint32_t i = 0; i < count; ++i) sum += std::exp(logit(i) - maximum);
    for (uint32_t k = 0; k < top_k_; ++k) {
      weights[k] = std::exp(logits[experts[k]] - maximum) / sum;
    }
  }
  float divisor = 1;
  if (config_.normalize) {
    divisor = 0;
    for (uint32_t k = 0; k < top_k_; ++k) divisor += weights[k];
    divisor += config_.normalize_epsilon;
  }
  for (uint32_t k = 0; k < top_k_; ++k) weights[k] = weights[k] / divisor * config_.scale;
}

}  // namespace moraine
