// HeatPolicy: heat x nearness, where heat is the probability that an expert is taken at the next visit
// of its layer, learnt while running.
//
// No decay rate is right: a chat wants a long memory, a list of file names a short one, layer 0 another
// than layer 40. So several predictors stand side by side, each of them a distribution of the layer's
// top_k over its experts:
//   - six moving averages, with half lives of 0.6 to 27 tokens,
//   - co-activation: what followed the experts of the layer's last token, one token later,
//   - the uniform one (so that layers of different skew compare well).
// Heat is their mixture. Its weights, one set a layer, are what maximum likelihood says of the accesses
// so far: each access raises the predictors that expected it (online EM). An access that was certain anyway teaches little, since no
// eviction hangs on it, and counts less.
//
// Score = heat / distance to the layer's next visit, in layers; the visited layer's own is a whole turn
// away. It is the density of expected hits in slot time (Beckmann et al., LHD, NSDI '18), so that layers
// borrow from each other by marginal gain. Floors: layers at top_k experts are spared while others have
// more.
//
// Cost: an access adds to six floats and top_k table entries; a layer is ranked anew once a visit, and
// only when somebody has to go. Memory: some 60 bytes an expert and a byte for each pair of
// experts of a layer (0.8 MB for 48 x 128).
#include <array>
#include <utility>

#include "residency/policy_base.h"

namespace moraine {
namespace {

constexpr uint32_t kRates = 6;
constexpr uint32_t kPredictors = kRates + 2;
// Half lives of 0.6, 1.4, 3, 8, 15 and 27 tokens; what lies between is a mixture of two. Longer ones
// remember the last subject into the next (docs/policies.md).
constexpr std::array<float, kRates> kDecay = {0.3f, 0.6f, 0.8f, 0.92f, 0.955f, 0.975f};
// ln(1/2) / ln(0.9). A step of many tokens moves the averages as far as this many would. Taken
// literally, a chunk of 512 tokens would leave nothing of what ten minutes of decode have taught, for
// one chunk whose inner order we do not know.
constexpr double kMaxStepTokens = 6.5788;
// The averages are kept in units that grow (see DecayedCounts). The largest unit a float of at most 1 may
// have, with room for one step of kMaxStepTokens at the fastest rate; and what is no longer worth keeping.
constexpr float kMaxUnit = 1e30f, kNegligible = 1e-15f;
// Pairs are believed as soon as they are seen more often than this; before, the average is.
constexpr float kPairPrior = 3;
// Then both counts are halved, so that pairs fade, too. More tell more of a long text, and take that into
// the next one (docs/policies.md).
constexpr uint8_t kMaxPairCount = 31;
constexpr uint32_t kPairPriorRate = 4;
// The weights' own memory: visits of a layer (docs/policies.md has the choice).
constexpr float kWeightMemory = 200, kFirstWeightMemory = 50;
// As many misses as one layer has in a token.
constexpr uint32_t kColdest = 8;
constexpr float kStale = -1;  // heat and scores are positive
constexpr float kNoCandidate = std::numeric_limits<float>::infinity();
// Heat is at most 1, and more than 1e-12 or as good as nothing; distances are below 1e4.
constexpr float kLeastHeat = 1e-12f, kOnFloorFactor = 1e20f;

class HeatPolicy final : public PolicyBase {
 public:
  explicit HeatPolicy(const PolicyShape& shape);
  const char* name() const override { return "heat"; }
  void SetCapacity(uint32_t capacity) override;
  void OnStep(uint32_t tokens) override;
  void OnAccess(ExpertKey key, float weight) override;
  void OnInsert(ExpertKey key) override;
  void OnEvict(ExpertKey key) override;
  void OnPredicted(LayerId layer, std::span<const ExpertId> experts, float confidence) override;
  std::optional<ExpertKey> ChooseVictim(LayerId visiting, const Evictable& evictable) override;
  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId visiting) const override;
  bool IsHot(ExpertKey key) const override { return Heat(index_(key)) >= 0.5f; }
  void ImportHeat(std::span<const float> heat) override;

 private:
  using Rates = std::array<float, kRates>;
  // Averages of four experts at one rate. Those of all rates follow each other, so that an access touches
  // two cache lines and a ranking takes four experts at a time.
  using Four = float __attribute__((vector_size(4 * sizeof(float))));
  struct Layer {
    uint32_t first = 0, experts = 0, floor = 0;
    size_t first_four = 0;  // in averages_
    size_t first_pair = 0;  // in pairs_: experts x experts, [before][after]
    float uniform = 0;
    uint64_t visits = 0, visited_in = 0;  // the step of the last one
    Rates rate_weights;  // of the predictors; all weights sum to 1
    float pair_weight = 0, uniform_weight = 0;
    std::vector<uint32_t> members;    // residents, unordered
    std::vector<uint32_t> last;       // experts of the last token; empty after a chunk
    std::vector<uint32_t> predicted;  // until the layer is visited
    bool heat_is_stale = true;
    uint32_t cold_count = 0;          // 0: to be looked for again
    std::array<uint32_t, kColdest> cold;  // coldest first; no other resident of the layer is colder
  };

  // All rates of an expert, kFour floats apart.
  float* AveragesOf(const Layer& layer, uint32_t i) {
    const uint32_t e = i - layer.first;
    return reinterpret_cast<float*>(&averages_[layer.first_four + e / 4 * kRates]) + e % 4;
  }
  const float* AveragesOf(const Layer& layer, uint32_t i) const {
    return const_cast<HeatPolicy*>(this)->AveragesOf(layer, i);
  }
  void SetAverages(const Layer& layer, uint32_t i, float value);
  void Rescale();

  // A visit: from the first access to a layer to the first of another one or the next step.
  void OpenVisit(uint32_t layer);
  void CloseVisit();
  void Learn(const Layer& layer, uint32_t i);
  void CountPairs(Layer* layer);
  std::span<const uint32_t> Before(const Layer& layer) const;
  float Coactivation(const Layer& layer, std::span<const uint32_t> before, uint32_t i) const;
  float Heat(uint32_t i) const;
  void Refresh(Layer* layer);
  float CountFollowers(const Layer& layer);
  void SeedFromLongTerm();

  bool AboveFloor(uint32_t l) const { return resident_count_[l] > layers_[l].floor; }
  bool BelowFloor(uint32_t l) const { return resident_count_[l] < layers_[l].floor; }
  bool OlderAccess(uint32_t a, uint32_t b) const {
    return last_access_[a] != last_access_[b] ? last_access_[a] < last_access_[b] : a < b;
  }
  // Equal heat (mostly none at all): least recently used, then by key, so that runs repeat.
  bool Colder(uint32_t a, uint32_t b) const {
    return heat_[a] != heat_[b] ? heat_[a] < heat_[b] : OlderAccess(a, b);
  }
  float InverseDistance(uint32_t of, uint32_t here) const {
    return inverse_distance_[of + index_.layers() - here];
  }
  void Rescore(uint32_t l, uint32_t candidate);
  void ScoreIsStale(uint32_t l) { coldest_heat_[l] = score_[l] = kStale; }
  void InsertCold(Layer* layer, uint32_t i);
  void RemoveCold(Layer* layer, uint32_t i);
  uint32_t Coldest(Layer* layer);
  uint32_t ColdestEvictable(const Layer& layer, const Evictable& evictable) const;
  uint32_t LayerOfLowestScore();

  const uint32_t top_k_;
  uint32_t capacity_ = 0;
  bool never_evicts_ = false;  // a slot for every expert: only the long memory is worth keeping
  std::vector<Layer> layers_;
  std::vector<Four> averages_;
  std::vector<uint8_t> pairs_;   // visits in which [after] came one token after [before]
  std::vector<uint8_t> leads_;   // visits that came one token after an expert
  std::vector<float> per_lead_;  // 1 / (leads + prior)
  std::vector<float> heat_;      // of layers whose heat is not stale
  std::vector<float> predicted_;  // confidence, 0: none
  std::vector<uint32_t> position_;  // in its layer's members
  std::vector<uint16_t> followers_;  // scratch of Refresh
  std::vector<Four> four_heats_;     // the same

  // By layer: who would go, its heat (times kOnFloorFactor for layers on their floor), and that over the
  // distance from scored_for_.
  std::vector<uint32_t> candidate_;
  std::vector<float> coldest_heat_, score_;
  uint32_t scored_for_ = 0;
  std::vector<uint32_t> asked_;  // scratch of ChooseVictim
  // By layers ahead + layers(), twice round, so that a layer's are consecutive whoever is visited.
  std::vector<float> inverse_distance_;

  uint64_t step_ = 0;
  uint32_t step_tokens_ = 1;
  Rates unit_, per_unit_, per_unit_before_;  // per_unit_ = 1 / unit_; of the step before
  Rates added_;  // by an access of weight 1: the gain, in units
  uint32_t open_ = kNone;          // the layer of the open visit
  std::vector<uint32_t> accessed_;  // in the open visit
  Rates expected_share_;           // weight of a rate's predictor, by unit of its average
  Rates rate_credit_;              // of its accesses: what each predictor deserves of each
  float pair_credit_ = 0, uniform_credit_ = 0, credit_total_ = 0;
};

HeatPolicy::HeatPolicy(const PolicyShape& shape)
    : PolicyBase(shape),
      top_k_(shape.top_k),
      layers_(index_.layers()),
      leads_(index_.size(), 0),
      per_lead_(index_.size(), 1 / kPairPrior),
      heat_(index_.size(), 0),
      predicted_(index_.size(), 0),
      position_(index_.size(), kNone),
      candidate_(index_.layers(), kNone),
      coldest_heat_(index_.layers(), kStale),
      score_(index_.layers(), kStale),
      inverse_distance_(2 * size_t{index_.layers()}) {
  unit_.fill(1);
  per_unit_.fill(1);
  uint32_t first = 0, widest = 0;
  size_t pairs = 0, fours = 0;
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    Layer& layer = layers_[l];
    layer.first = first;
    layer.experts = index_.experts_in(l);
    layer.first_four = fours;
    layer.first_pair = pairs;
    layer.rate_weights.fill(1.0f / kPredictors);
    layer.pair_weight = layer.uniform_weight = 1.0f / kPredictors;
    // 0 ahead is the layer being visited: its next visit is a whole turn away.
    const float inverse = 1.0f / static_cast<float>(l == 0 ? index_.layers() : l);
    inverse_distance_[l] = inverse_distance_[l + index_.layers()] = inverse;
    first += layer.experts;
    pairs += size_t{layer.experts} * layer.experts;
    fours += size_t{layer.experts + 3} / 4 * kRates;
    widest = std::max(widest, layer.experts);
    if (layer.experts == 0) continue;
    layer.uniform = std::min(1.0f, static_cast<float>(top_k_) / static_cast<float>(layer.experts));
    layer.members.reserve(layer.experts);
    layer.last.reserve(layer.experts);
    layer.predicted.reserve(layer.experts);
  }
  averages_.resize(fours, Four{});
  for (const Layer& layer : layers_) {
    for (uint32_t i = layer.first; i < layer.first + layer.experts; ++i) {
      SetAverages(layer, i, layer.uniform);
    }
  }
  pairs_.resize(pairs, 0);
  followers_.resize(widest);
  four_heats_.resize((widest + 3) / 4);
  accessed_.reserve(widest);
  asked_.reserve(index_.layers());
  SetCapacity(shape.capacity);
  OnStep(1);
}

void HeatPolicy::SetCapacity(uint32_t capacity) {
  if (capacity == capacity_) return;
  capacity_ = capacity;
  // Nothing was learnt meanwhile but the long memory.
  if (never_evicts_ && capacity < index_.size()) SeedFromLongTerm();
  never_evicts_ = capacity >= index_.size();
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    if (layers_[l].experts > 0) layers_[l].floor = std::min(top_k_, capacity / index_.sparse_layers());
    ScoreIsStale(l);
  }
}

// --- What is learnt -----------------------------------------------------------------------------

void HeatPolicy::OnStep(uint32_t tokens) {
  PolicyBase::OnStep(tokens);
  if (never_evicts_) return;
  CloseVisit();
  if (unit_[0] > kMaxUnit) Rescale();  // the fastest grows fastest
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    if (layers_[l].visited_in == step_) continue;
    layers_[l].heat_is_stale = true;  // its averages fade without a visit, too
    ScoreIsStale(l);
  }
  ++step_;
  step_tokens_ = std::max(tokens, 1u);
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

void HeatPolicy::Rescale() {
  for (size_t i = 0; i < averages_.size(); ++i) {
    for (uint32_t lane = 0; lane < 4; ++lane) {
      const float value = averages_[i][lane] * per_unit_[i % kRates];
      averages_[i][lane] = value < kNegligible ? 0 : value;  // nor may it become subnormal: those are slow
    }
  }
  unit_.fill(1);
  per_unit_.fill(1);
}

void HeatPolicy::SetAverages(const Layer& layer, uint32_t i, float value) {
  float* const averages = AveragesOf(layer, i);
  for (uint32_t r = 0; r < kRates; ++r) averages[4 * r] = value * unit_[r];
}

void HeatPolicy::OpenVisit(uint32_t l) {
  open_ = l;
  layers_[l].visited_in = step_;
  accessed_.clear();
  for (const uint32_t i : layers_[l].predicted) predicted_[i] = 0;
  layers_[l].predicted.clear();
  rate_credit_.fill(0);
  pair_credit_ = uniform_credit_ = credit_total_ = 0;
  for (uint32_t r = 0; r < kRates; ++r) {
    expected_share_[r] = layers_[l].rate_weights[r] * per_unit_before_[r];
  }
}

void HeatPolicy::OnAccess(ExpertKey key, float weight) {
  const uint32_t i = index_(key), l = key.layer.value();
  PolicyBase::OnAccess(key, weight);
  if (never_evicts_) return;
  if (l != open_) {
    CloseVisit();
    OpenVisit(l);
  }
  Layer& layer = layers_[l];
  if (step_tokens_ == 1) Learn(layer, i);
  float* const averages = AveragesOf(layer, i);
  for (uint32_t r = 0; r < kRates; ++r) averages[4 * r] += added_[r] * weight;
  if (accessed_.size() < accessed_.capacity()) accessed_.push_back(i);
  if (layer.heat_is_stale) return;
  layer.heat_is_stale = true;
  ScoreIsStale(l);
}

// E step: which predictors expected this access?
void HeatPolicy::Learn(const Layer& layer, uint32_t i) {
  const float* const averages = AveragesOf(layer, i);
  Rates expected;
  float total = 0;
  for (uint32_t r = 0; r < kRates; ++r) {
    expected[r] = averages[4 * r] * expected_share_[r];
    total += expected[r];
  }
  const float by_pairs = Coactivation(layer, layer.last, i) * layer.pair_weight;
  const float by_chance = layer.uniform * layer.uniform_weight;
  total += by_pairs + by_chance;
  if (total <= 0) return;
  const float surprise = std::min(1.0f, layer.uniform / total), share = surprise / total;
  for (uint32_t r = 0; r < kRates; ++r) rate_credit_[r] += expected[r] * share;
  pair_credit_ += by_pairs * share;
  uniform_credit_ += by_chance * share;
  credit_total_ += surprise;
}

// M step, and pairs. The layer's ranking stays as it was made during the visit: what changes here counts
// from the next one.
void HeatPolicy::CloseVisit() {
  if (open_ == kNone) return;
  const uint32_t l = std::exchange(open_, kNone);
  Layer& layer = layers_[l];
  if (step_tokens_ == 1 && !accessed_.empty()) {
    ++layer.visits;
    const float memory =
        std::min(kWeightMemory, kFirstWeightMemory + static_cast<float>(layer.visits));
    const float rate = 1 / (memory * static_cast<float>(accessed_.size()));
    for (uint32_t r = 0; r < kRates; ++r) {
      layer.rate_weights[r] += rate * (rate_credit_[r] - credit_total_ * layer.rate_weights[r]);
    }
    layer.pair_weight += rate * (pair_credit_ - credit_total_ * layer.pair_weight);
    layer.uniform_weight += rate * (uniform_credit_ - credit_total_ * layer.uniform_weight);
    CountPairs(&layer);
    layer.last.assign(accessed_.begin(), accessed_.end());
  } else {
    layer.last.clear();  // nobody knows which of them was last
  }
}

void HeatPolicy::CountPairs(Layer* layer) {
  for (const uint32_t before : layer->last) {
    uint8_t* row = &pairs_[layer->first_pair + size_t{before - layer->first} * layer->experts];
    if (leads_[before] == kMaxPairCount) {
      leads_[before] /= 2;
      for (uint32_t e = 0; e < layer->experts; ++e) row[e] /= 2;
    }
    ++leads_[before];
    per_lead_[before] = 1 / (static_cast<float>(leads_[before]) + kPairPrior);
    for (const uint32_t after : accessed_) {
      uint8_t& count = row[after - layer->first];
      count += count < kMaxPairCount;
    }
  }
}

// The experts whose successors come at the layer's next visit.
std::span<const uint32_t> HeatPolicy::Before(const Layer& layer) const {
  const bool open = open_ != kNone && &layer == &layers_[open_];
  if (!open) return layer.last;
  return step_tokens_ == 1 ? std::span<const uint32_t>(accessed_) : std::span<const uint32_t>();
}

float HeatPolicy::Coactivation(const Layer& layer, std::span<const uint32_t> before,
                               uint32_t i) const {
  const float average = AveragesOf(layer, i)[4 * kPairPriorRate] * per_unit_[kPairPriorRate];
  if (before.empty()) return average;
  const uint8_t* const pairs = &pairs_[layer.first_pair + (i - layer.first)];
  float sum = 0;
  for (const uint32_t b : before) {
    const float count = pairs[size_t{b - layer.first} * layer.experts];
    sum += (count + kPairPrior * average) * per_lead_[b];
  }
  return sum / static_cast<float>(before.size());
}

float HeatPolicy::Heat(uint32_t i) const {
  const Layer& layer = layers_[index_.key(i).layer.value()];
  if (!layer.heat_is_stale) return heat_[i];
  const float* const averages = AveragesOf(layer, i);
  float heat = layer.pair_weight * Coactivation(layer, Before(layer), i) +
               layer.uniform_weight * layer.uniform;
  for (uint32_t r = 0; r < kRates; ++r) {
    heat += layer.rate_weights[r] * per_unit_[r] * averages[4 * r];
  }
  return std::max(heat, predicted_[i]);
}

// A count is at most its leads, so the sum over `before` of count / (leads + prior) / their number is below
// 1: it is kept in 16 bits, in 65536ths, eight experts to an instruction. Returns what is left for the
// average: the sum of prior / (leads + prior) / their number.
constexpr float kFollowerUnit = 65536;
float HeatPolicy::CountFollowers(const Layer& layer) {
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

// Heat() of all of a layer's experts.
void HeatPolicy::Refresh(Layer* layer) {
  Rates weights;
  for (uint32_t r = 0; r < kRates; ++r) weights[r] = layer->rate_weights[r] * per_unit_[r];
  weights[kPairPriorRate] += layer->pair_weight * CountFollowers(*layer) * per_unit_[kPairPriorRate];
  const float base = layer->uniform_weight * layer->uniform;
  const Four* averages = &averages_[layer->first_four];
  for (uint32_t four = 0; four < (layer->experts + 3) / 4; ++four, averages += kRates) {
    Four heat = Four{} + base;
    for (uint32_t r = 0; r < kRates; ++r) heat += averages[r] * weights[r];
    four_heats_[four] = heat;
  }
  const float* const by_averages = reinterpret_cast<const float*>(four_heats_.data());
  const float per_follower = layer->pair_weight / kFollowerUnit;
  for (uint32_t e = 0; e < layer->experts; ++e) {
    heat_[layer->first + e] = by_averages[e] + per_follower * followers_[e];
  }
  for (const uint32_t i : layer->predicted) heat_[i] = std::max(heat_[i], predicted_[i]);
  layer->heat_is_stale = false;
  layer->cold_count = 0;
}

void HeatPolicy::OnPredicted(LayerId id, std::span<const ExpertId> experts, float confidence) {
  Layer& layer = layers_[id.value()];
  for (const ExpertId expert : experts) {
    const uint32_t i = index_({id, expert});
    if (predicted_[i] == 0 && confidence > 0) layer.predicted.push_back(i);
    predicted_[i] = std::max(predicted_[i], std::min(confidence, 1.0f));
    heat_[i] = std::max(heat_[i], predicted_[i]);
  }
  layer.cold_count = 0;
  ScoreIsStale(id.value());
}

void HeatPolicy::ImportHeat(std::span<const float> heat) {
  PolicyBase::ImportHeat(heat);
  SeedFromLongTerm();
}

void HeatPolicy::SeedFromLongTerm() {
  // An expert that a fraction p of the tokens take settles at p / (1 - decay) in the long memory.
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    Layer& layer = layers_[l];
    for (uint32_t i = layer.first; i < layer.first + layer.experts; ++i) {
      SetAverages(layer, i, static_cast<float>(long_term_.Get(i) * (1 - kLongTermDecay)));
    }
    layer.heat_is_stale = true;
    ScoreIsStale(l);
  }
}

// --- Who goes -----------------------------------------------------------------------------------
//
// A victim is asked for at every miss, up to 384 times a token, so nothing here looks at all slots:
// each layer keeps a few of its coldest experts in order until its heat changes, and the score of the
// coldest for as long as the same layer is being visited. A question is one pass over those scores.

void HeatPolicy::OnInsert(ExpertKey key) {
  PolicyBase::OnInsert(key);
  Layer& layer = layers_[key.layer.value()];
  const uint32_t i = index_(key);
  position_[i] = static_cast<uint32_t>(layer.members.size());
  layer.members.push_back(i);
  ScoreIsStale(key.layer.value());  // it may have risen above its floor
  if (layer.heat_is_stale || layer.cold_count == 0) return;
  // The others are colder than all that are not listed; this one must be, too, to be listed.
  if (Colder(i, layer.cold[layer.cold_count - 1])) InsertCold(&layer, i);
}

void HeatPolicy::OnEvict(ExpertKey key) {
  PolicyBase::OnEvict(key);
  Layer& layer = layers_[key.layer.value()];
  const uint32_t i = index_(key), last = layer.members.back();
  layer.members[position_[i]] = last;
  position_[last] = position_[i];
  layer.members.pop_back();
  position_[i] = kNone;
  ScoreIsStale(key.layer.value());
  RemoveCold(&layer, i);
}

// What falls off the end is colder than nothing that stays, so the list remains true.
void HeatPolicy::InsertCold(Layer* layer, uint32_t i) {
  uint32_t at = layer->cold_count == kColdest ? kColdest - 1 : layer->cold_count++;
  for (; at > 0 && Colder(i, layer->cold[at - 1]); --at) layer->cold[at] = layer->cold[at - 1];
  layer->cold[at] = i;
}

void HeatPolicy::RemoveCold(Layer* layer, uint32_t i) {
  const auto end = layer->cold.begin() + layer->cold_count;
  const auto found = std::find(layer->cold.begin(), end, i);
  if (found == end) return;
  std::copy(found + 1, end, found);
  --layer->cold_count;
}

uint32_t HeatPolicy::Coldest(Layer* layer) {
  if (layer->members.empty()) return kNone;
  if (layer->heat_is_stale) Refresh(layer);
  if (layer->cold_count == 0) {
    for (const uint32_t i : layer->members) {
      const bool full = layer->cold_count == kColdest;
      if (!full || Colder(i, layer->cold[kColdest - 1])) InsertCold(layer, i);
    }
  }
  return layer->cold[0];
}

uint32_t HeatPolicy::ColdestEvictable(const Layer& layer, const Evictable& evictable) const {
  uint32_t best = kNone;
  for (const uint32_t i : layer.members) {
    if ((best == kNone || Colder(i, best)) && evictable(index_.key(i))) best = i;
  }
  return best;
}

void HeatPolicy::Rescore(uint32_t l, uint32_t candidate) {
  candidate_[l] = candidate;
  coldest_heat_[l] = candidate == kNone ? kNoCandidate
                                        : std::max(heat_[candidate], kLeastHeat) *
                                              (AboveFloor(l) ? 1 : kOnFloorFactor);
  score_[l] = coldest_heat_[l] * InverseDistance(l, scored_for_);
}

uint32_t HeatPolicy::LayerOfLowestScore() {
  uint32_t best = kNone;
  float lowest = kNoCandidate;
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    if (score_[l] > lowest) continue;
    if (score_[l] < 0) Rescore(l, Coldest(&layers_[l]));
    if (score_[l] == kNoCandidate || score_[l] > lowest) continue;
    if (score_[l] == lowest && !OlderAccess(candidate_[l], candidate_[best])) continue;
    best = l;
    lowest = score_[l];
  }
  return best;
}

std::optional<ExpertKey> HeatPolicy::ChooseVictim(LayerId visiting, const Evictable& evictable) {
  if (visiting.value() != scored_for_) {
    scored_for_ = visiting.value();
    const float* const inverse = &inverse_distance_[index_.layers() - scored_for_];
    for (uint32_t l = 0; l < index_.layers(); ++l) score_[l] = coldest_heat_[l] * inverse[l];
  }
  std::optional<ExpertKey> victim;
  asked_.clear();
  for (uint32_t l = LayerOfLowestScore(); l != kNone && !victim; l = LayerOfLowestScore()) {
    const ExpertKey key = index_.key(candidate_[l]);
    if (evictable(key)) {
      victim = key;
      break;
    }
    // For this question, the layer offers the coldest that may go.
    asked_.push_back(l);
    Rescore(l, ColdestEvictable(layers_[l], evictable));
  }
  for (const uint32_t l : asked_) ScoreIsStale(l);
  return victim;
}

bool HeatPolicy::Prefers(ExpertKey candidate, ExpertKey victim, LayerId visiting) const {
  const uint32_t here = visiting.value();
  if (candidate.layer != victim.layer) {
    const bool victim_above = AboveFloor(victim.layer.value());
    if (victim_above && BelowFloor(candidate.layer.value())) return true;
    if (!victim_above && AboveFloor(candidate.layer.value())) return false;
  }
  return Heat(index_(candidate)) * InverseDistance(candidate.layer.value(), here) >
         Heat(index_(victim)) * InverseDistance(victim.layer.value(), here);
}

}  // namespace

std::unique_ptr<EvictionPolicy> CreateHeatPolicy(const PolicyShape& shape) {
  return std::make_unique<HeatPolicy>(shape);
}

}  // namespace moraine
