// HeatPredictor: the probability that an expert is taken at the next visit of its layer, learnt
// while running.
//
// No decay rate is right: a chat wants a long memory, a list of file names a short one, layer 0
// another than layer 40. So several predictors stand side by side, each of them a distribution of
// the layer's top_k over its experts:
//   - six moving averages, with half lives of 0.6 to 27 tokens,
//   - co-activation: what followed the experts of the layer's last token, one token later,
//   - similar tokens: what followed the tokens that were routed most like the last one, in all
//     layers up to this (SimilarTokens),
//   - the uniform one (so that layers of different skew compare well). The probability is their
//     mixture. Its weights, one set a layer, are what maximum likelihood says of the accesses so
//     far: each access raises the predictors that expected it (online EM). An access that was
//     certain anyway teaches little, since no eviction hangs on it, and counts less.
//
// A visit lasts from the first access to a layer to the first of another one or the next step.
//
// Cost: an access adds to six floats and top_k table entries, and Expect() runs over the layer's
// experts once. Memory: some 60 bytes an expert, a byte for each pair of experts of a layer (0.8 MB
// for 48 x 128), and SimilarTokens.
//
// Threads: as EvictionPolicy. No allocation after construction.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "residency/policy_base.h"
#include "residency/similar_tokens.h"

namespace moraine {

class HeatPredictor {
 public:
  HeatPredictor(const ExpertIndex& index, uint32_t top_k);

  // Closes the open visit.
  void BeginStep(uint32_t tokens);
  void Access(uint32_t layer, uint32_t i, float weight);
  // The layer of the open visit; kNone: none is open.
  uint32_t open() const { return open_; }
  // Has the layer been visited in this step?
  bool Visited(uint32_t layer) const { return layers_[layer].visited_in == step_; }
  // All averages of an expert become `share`, the fraction of the tokens that take it.
  void Seed(uint32_t i, float share);

  // Of one expert. Inside the layer's visit, of the visit after it, as far as its accesses are
  // known.
  float Probability(uint32_t i) const;
  // The same of all of the layer's experts.
  void Expect(uint32_t layer, float* probabilities);

 private:
  static constexpr uint32_t kRates = 6;
  using Rates = std::array<float, kRates>;
  // Averages of four experts at one rate. Those of all rates follow each other, so that an access
  // touches two cache lines and a ranking takes four experts at a time.
  using Four = float __attribute__((vector_size(4 * sizeof(float))));
  struct Weights {
    Rates rates;
    float pairs = 0, similar = 0, uniform = 0;  // all sum to 1
  };
  struct Layer {
    uint32_t first = 0, experts = 0;
    size_t first_four = 0;  // in averages_
    size_t first_pair = 0;  // in pairs_: experts x experts, [before][after]
    float uniform = 0;
    uint64_t visited_in = 0;  // the step of the last visit
    Weights weights;
    std::vector<uint32_t> last;  // experts of the last token; empty after a chunk
    bool knows_similar = false;  // similar_ is of the last visit
  };

  // All rates of an expert, four floats apart.
  float* AveragesOf(const Layer& layer, uint32_t i) {
    const uint32_t e = i - layer.first;
    return reinterpret_cast<float*>(&averages_[layer.first_four + e / 4 * kRates]) + e % 4;
  }
  const float* AveragesOf(const Layer& layer, uint32_t i) const {
    return const_cast<HeatPredictor*>(this)->AveragesOf(layer, i);
  }
  const Layer& LayerOf(uint32_t i) const { return layers_[index_.key(i).layer.value()]; }
  void Rescale();
  void OpenVisit(uint32_t layer);
  void CloseVisit();
  void ExpectSimilar(uint32_t layer);
  void Learn(const Layer& layer, uint32_t i);
  void MoveWeights(Layer* layer);
  void CountPairs(const Layer& layer);
  std::span<const uint32_t> Before(const Layer& layer) const;
  float Coactivation(const Layer& layer, std::span<const uint32_t> before, uint32_t i) const;
  float Similar(const Layer& layer, uint32_t i) const;
  float CountFollowers(const Layer& layer);

  const ExpertIndex& index_;
  std::vector<Layer> layers_;
  std::vector<Four> averages_;
  std::vector<uint8_t> pairs_;   // visits in which [after] came one token after [before]
  std::vector<uint8_t> leads_;   // visits that came one token after an expert
  std::vector<float> per_lead_;  // 1 / (leads + prior)
  SimilarTokens similar_tokens_;
  std::vector<float> similar_;       // what they tell, by index
  std::vector<uint16_t> followers_;  // scratch of Expect
  std::vector<Four> four_sums_;      // the same

  uint64_t step_ = 0;
  uint32_t step_tokens_ = 1;
  // The averages are kept in units that grow, as DecayedCounts has it; per_unit_ = 1 / unit_.
  Rates unit_, per_unit_, per_unit_before_;  // the last: of the step before
  Rates added_;  // by an access of weight 1: the gain, in units
  uint32_t open_ = kNone;
  bool similar_is_stale_ = false;   // of the open visit's layer
  std::vector<uint32_t> accessed_;  // in the open visit
  Rates expected_share_;            // weight of a rate's predictor, by unit of its average
  Weights credit_;                  // of its accesses: what each predictor deserves
  float credit_total_ = 0;
};

}  // namespace moraine
