#include "residency/heat_predictor.h"

#include <utility>

namespace moraine {
namespace {

// Half lives of 0.6, 1.4, 3, 8, 15 and 27 tokens; what lies between is a mixture of two. Longer
// ones remember the last subject into the next (docs/policies.md).
constexpr std::array<float, 6> kDecay = {0.3f, 0.6f, 0.8f, 0.92f, 0.955f, 0.975f};
// ln(1/2) / ln(0.9). A step of many tokens moves the averages as far as this many would. Taken
// literally, a chunk of 512 tokens would leave nothing of what ten minutes of decode have taught,
// for one chunk whose inner order we do not know.
constexpr double kMaxStepTokens = 6.5788;
// The largest unit a float of at most 1 may have, with room for one step of kMaxStepTokens at the
// fastest rate; and what is no longer worth keeping.
constexpr float kMaxUnit = 1e30f, kNegligible = 1e-15f;
// Pairs are believed as soon as they are seen more often than this; before, the average is.
constexpr float kPairPrior = 2;
// Then both counts are halved, so that pairs fade, too. More tell more of a long text, and take
// that into the next one (docs/policies.md).
constexpr uint8_t kMaxPairCount = 31;
// The average that stands in for what pairs and similar tokens do not know.
constexpr uint32_t kPriorRate = 4;
// The weights' own memory, in visits of a layer; and how much of them a visit hands back to all
// predictors alike (fixed share, Herbster and Warmuth 1998), so that what the last subject had no
// use for is found again in the next (docs/policies.md has the choice of both).
constexpr float kWeightMemory = 200, kShared = 0.0005f;
constexpr float kPredictors = kDecay.size() + 3;
// A pair's count, in CountFollowers.
constexpr float kFollowerUnit = 65536;

}  // namespace

HeatPredictor::HeatPredictor(const ExpertIndex& index, uint32_t top_k)
    : index_(index),
      layers_(index.layers()),
      leads_(index.size(), 0),
      per_lead_(index.size(), 1 / kPairPrior),
      similar_tokens_(index, top_k),
      similar_(index.size(), 0) {
  unit_.fill(1);
  per_unit_.fill(1);
  uint32_t first = 0, widest = 0;
  size_t pairs = 0, fours = 0;
  for (uint32_t l = 0; l < index.layers(); ++l) {
    Layer& layer = layers_[l];
    layer.first = first;
    layer.experts = index.experts_in(l);
    layer.first_four = fours;
    layer.first_pair = pairs;
    layer.weights.rates.fill(1 / kPredictors);
    layer.weights.pairs = layer.weights.similar = layer.weights.uniform = 1 / kPredictors;
    first += layer.experts;
    pairs += size_t{layer.experts} * layer.experts;
    fours += size_t{layer.experts + 3} / 4 * kRates;
    widest = std::max(widest, layer.experts);
    if (layer.experts == 0) continue;
    layer.uniform = std::min(1.0f, static_cast<float>(top_k) / static_cast<float>(layer.experts));
    layer.last.reserve(layer.experts);
  }
  averages_.resize(fours, Four{});
  for (const Layer& layer : layers_) {
    for (uint32_t i = layer.first; i < layer.first + layer.experts; ++i) Seed(i, layer.uniform);
  }
  pairs_.resize(pairs, 0);
  followers_.resize(widest);
  four_sums_.resize((widest + 3) / 4);
  accessed_.reserve(widest);
  BeginStep(1);
}

void HeatPredictor::BeginStep(uint32_t tokens) {
  CloseVisit();
  if (unit_[0] > kMaxUnit) Rescale();  // the fastest grows fastest
  ++step_;
  step_tokens_ = std::max(tokens, 1u);
  similar_tokens_.BeginToken();
  const double counted = std::min<double>(step_tokens_, kMaxStepTokens);
  per_unit_before_ = per_unit_;
  for (uint32_t r = 0; r < kRates; ++r) {
    const float kept =
        step_tokens_ == 1 ? kDecay[r] : static_cast<float>(std::pow(kDecay[r], counted));
    unit_[r] /= kept;
    per_unit_[r] = 1 / unit_[r];
    added_[r] = (1 - kept) / static_cast<float>(step_tokens_) * unit_[r];
  }
}

void HeatPredictor::Rescale() {
  for (size_t i = 0; i < averages_.size(); ++i) {
    for (uint32_t lane = 0; lane < 4; ++lane) {
      const float value = averages_[i][lane] * per_unit_[i % kRates];
      // Nor may it become subnormal: those are slow.
      averages_[i][lane] = value < kNegligible ? 0 : value;
    }
  }
  unit_.fill(1);
  per_unit_.fill(1);
}

void HeatPredictor::Seed(uint32_t i, float share) {
  float* const averages = AveragesOf(LayerOf(i), i);
  for (uint32_t r = 0; r < kRates; ++r) averages[4 * r] = share * unit_[r];
}

// --- What is learnt -----------------------------------------------------------------------------

void HeatPredictor::OpenVisit(uint32_t l) {
  open_ = l;
  layers_[l].visited_in = step_;
  accessed_.clear();
  credit_ = {};
  credit_.rates.fill(0);
  credit_total_ = 0;
  for (uint32_t r = 0; r < kRates; ++r) {
    expected_share_[r] = layers_[l].weights.rates[r] * per_unit_before_[r];
  }
}

void HeatPredictor::Access(uint32_t l, uint32_t i, float weight) {
  if (l != open_) {
    CloseVisit();
    OpenVisit(l);
  }
  const Layer& layer = layers_[l];
  if (step_tokens_ == 1) {
    Learn(layer, i);
    similar_tokens_.Add(l, i - layer.first, i);
    similar_is_stale_ = true;
  }
  float* const averages = AveragesOf(layer, i);
  for (uint32_t r = 0; r < kRates; ++r) averages[4 * r] += added_[r] * weight;
  if (accessed_.size() < accessed_.capacity()) accessed_.push_back(i);
}

// E step: which predictors expected this access?
void HeatPredictor::Learn(const Layer& layer, uint32_t i) {
  const float* const averages = AveragesOf(layer, i);
  Rates expected;
  float total = 0;
  for (uint32_t r = 0; r < kRates; ++r) {
    expected[r] = averages[4 * r] * expected_share_[r];
    total += expected[r];
  }
  const float by_pairs = Coactivation(layer, layer.last, i) * layer.weights.pairs;
  const float by_similar = Similar(layer, i) * layer.weights.similar;
  const float by_chance = layer.uniform * layer.weights.uniform;
  total += by_pairs + by_similar + by_chance;
  if (total <= 0) return;
  const float surprise = std::min(1.0f, layer.uniform / total), share = surprise / total;
  for (uint32_t r = 0; r < kRates; ++r) credit_.rates[r] += expected[r] * share;
  credit_.pairs += by_pairs * share;
  credit_.similar += by_similar * share;
  credit_.uniform += by_chance * share;
  credit_total_ += surprise;
}

void HeatPredictor::CloseVisit() {
  if (open_ == kNone) return;
  ExpectSimilar(open_);
  Layer& layer = layers_[std::exchange(open_, kNone)];
  if (step_tokens_ > 1 || accessed_.empty()) {
    layer.last.clear();  // nobody knows which of them was last
    layer.knows_similar = false;
    return;
  }
  MoveWeights(&layer);
  CountPairs(layer);
  layer.last.assign(accessed_.begin(), accessed_.end());
}

// M step.
void HeatPredictor::MoveWeights(Layer* layer) {
  const float rate = 1 / (kWeightMemory * static_cast<float>(accessed_.size()));
  const auto move = [&](float* weight, float credit) {
    *weight += rate * (credit - credit_total_ * *weight) + kShared * (1 / kPredictors - *weight);
  };
  for (uint32_t r = 0; r < kRates; ++r) move(&layer->weights.rates[r], credit_.rates[r]);
  move(&layer->weights.pairs, credit_.pairs);
  move(&layer->weights.similar, credit_.similar);
  move(&layer->weights.uniform, credit_.uniform);
}

void HeatPredictor::CountPairs(const Layer& layer) {
  for (const uint32_t before : layer.last) {
    uint8_t* row = &pairs_[layer.first_pair + size_t{before - layer.first} * layer.experts];
    if (leads_[before] == kMaxPairCount) {
      leads_[before] /= 2;
      for (uint32_t e = 0; e < layer.experts; ++e) row[e] /= 2;
    }
    ++leads_[before];
    per_lead_[before] = 1 / (static_cast<float>(leads_[before]) + kPairPrior);
    for (const uint32_t after : accessed_) {
      uint8_t& count = row[after - layer.first];
      count += count < kMaxPairCount;
    }
  }
}

// --- What is expected ---------------------------------------------------------------------------

// The experts whose successors come at the layer's next visit.
std::span<const uint32_t> HeatPredictor::Before(const Layer& layer) const {
  const bool open = open_ != kNone && &layer == &layers_[open_];
  if (!open) return layer.last;
  return step_tokens_ == 1 ? std::span<const uint32_t>(accessed_) : std::span<const uint32_t>();
}

float HeatPredictor::Coactivation(const Layer& layer, std::span<const uint32_t> before,
                                  uint32_t i) const {
  const float average = AveragesOf(layer, i)[4 * kPriorRate] * per_unit_[kPriorRate];
  if (before.empty()) return average;
  const uint8_t* const pairs = &pairs_[layer.first_pair + (i - layer.first)];
  float sum = 0;
  for (const uint32_t b : before) {
    const float count = pairs[size_t{b - layer.first} * layer.experts];
    sum += (count + kPairPrior * average) * per_lead_[b];
  }
  return sum / static_cast<float>(before.size());
}

float HeatPredictor::Similar(const Layer& layer, uint32_t i) const {
  if (layer.knows_similar) return similar_[i];
  return AveragesOf(layer, i)[4 * kPriorRate] * per_unit_[kPriorRate];
}

void HeatPredictor::ExpectSimilar(uint32_t l) {
  if (l != open_ || !std::exchange(similar_is_stale_, false)) return;
  Layer& layer = layers_[l];
  layer.knows_similar =
      similar_tokens_.Expect(l, std::span(similar_).subspan(layer.first, layer.experts));
}

float HeatPredictor::Probability(uint32_t i) const {
  const Layer& layer = LayerOf(i);
  const float* const averages = AveragesOf(layer, i);
  float sum = layer.weights.pairs * Coactivation(layer, Before(layer), i) +
              layer.weights.similar * Similar(layer, i) + layer.weights.uniform * layer.uniform;
  for (uint32_t r = 0; r < kRates; ++r) {
    sum += layer.weights.rates[r] * per_unit_[r] * averages[4 * r];
  }
  return sum;
}

// A count is at most its leads, so the sum over `before` of count / (leads + prior) / their number
// is below 1: it is kept in 16 bits, in 65536ths, eight experts to an instruction. Returns what is
// left for the average: the sum of prior / (leads + prior) / their number.
float HeatPredictor::CountFollowers(const Layer& layer) {
  const std::span<const uint32_t> before = Before(layer);
  uint16_t* const followers = followers_.data();
  std::fill_n(followers, layer.experts, uint16_t{0});
  if (before.empty()) return 1;
  float of_average = 0;
  for (const uint32_t b : before) {
    const uint8_t* const row =
        &pairs_[layer.first_pair + size_t{b - layer.first} * layer.experts];
    const float share = per_lead_[b] / static_cast<float>(before.size());
    of_average += kPairPrior * share;
    const auto factor = static_cast<uint16_t>(share * kFollowerUnit);
    for (uint32_t e = 0; e < layer.experts; ++e) {
      followers[e] = static_cast<uint16_t>(followers[e] + row[e] * factor);
    }
  }
  return of_average;
}

void HeatPredictor::Expect(uint32_t l, float* probabilities) {
  ExpectSimilar(l);
  const Layer& layer = layers_[l];
  Rates weights;
  for (uint32_t r = 0; r < kRates; ++r) weights[r] = layer.weights.rates[r];
  weights[kPriorRate] += layer.weights.pairs * CountFollowers(layer);
  if (!layer.knows_similar) weights[kPriorRate] += layer.weights.similar;
  for (uint32_t r = 0; r < kRates; ++r) weights[r] *= per_unit_[r];
  const float base = layer.weights.uniform * layer.uniform;
  const Four* averages = &averages_[layer.first_four];
  for (uint32_t four = 0; four < (layer.experts + 3) / 4; ++four, averages += kRates) {
    Four sum = Four{} + base;
    for (uint32_t r = 0; r < kRates; ++r) sum += averages[r] * weights[r];
    four_sums_[four] = sum;
  }
  const float* const by_averages = reinterpret_cast<const float*>(four_sums_.data());
  const float per_follower = layer.weights.pairs / kFollowerUnit;
  const float by_similar = layer.knows_similar ? layer.weights.similar : 0;
  const float* const similar = &similar_[layer.first];
  for (uint32_t e = 0; e < layer.experts; ++e) {
    probabilities[e] = by_averages[e] + per_follower * followers_[e] + by_similar * similar[e];
  }
}

}  // namespace moraine
