// ExpertChooser: from a router's logits to a token's experts and their weights.
//
//   scores   softmax over all experts, or the sigmoid of each (RouterConfig::scoring)
//   choice   the best top_k by score, plus the correction bias if there is one; where there are groups,
//            among the experts of the best groups only
//   weights  the scores, without the correction bias; or the softmax of the chosen logits; normalised
//            to sum to one if asked for; scaled
// Sources: DeepSeek-V2 (arXiv 2405.04434) and V3 (arXiv 2412.19437) for groups and the correction bias;
// transformers' modeling files of each family.
//
// Threads: owned by one thread (it has scratch).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"

namespace moraine {

class ExpertChooser {
 public:
  // correction: one value an expert, or none. Not owned.
  ExpertChooser(const RouterConfig& config, uint32_t expert_count, uint32_t top_k,
                std::span<const float> correction = {});

  // logits: one an expert. experts and weights: top_k each, best first by what was chosen by (the
  // lower index first on a tie), always distinct, whatever a broken model's logits are.
  void Choose(const float* logits, uint32_t* experts, float* weights);

  // The same with a preference: the best expert stays; the others are chosen by their score plus
  // `strength` times the span of the scores where `resident` (one flag an expert). Weights are what they
  // would be for this choice anyway.
  void ChoosePreferring(const float* logits, const uint8_t* resident, float strength,
                        uint32_t* experts, float* weights);

 private:
  void Score(const float* logits);
  void ExcludeGroups();
  float GroupScoreOf(const float* scores) const;
  uint32_t TakeBest(const uint8_t* resident, float bonus);
  void Weigh(const float* logits, const uint32_t* experts, float* weights) const;

  RouterConfig config_;
  uint32_t expert_count_, top_k_;
  std::span<const float> correction_;
  std::vector<float> scores_;    // what the choice is by: monotone in the scores above
  std::vector<uint8_t> taken_;   // chosen already, or in a group that is not
  std::vector<float> group_scores_;
};

}  // namespace moraine
