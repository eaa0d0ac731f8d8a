// HeatPolicy: heat x nearness.
//
// Heat is the probability that an expert is taken at the next visit of its layer (HeatPredictor).
// Score = heat / sqrt(distance to the layer's next visit, in layers); the visited layer's own is a
// whole turn away. Heat / distance would be the density of expected hits in slot time (Beckmann et
// al., LHD, NSDI '18) if nobody stayed longer than to its next visit, heat alone if all stayed for
// ever; the truth is between, and so are the hit rates (docs/policies.md). Layers borrow from each
// other by marginal gain. Floors: layers at top_k experts are spared while others have more.
//
// Cost: HeatPredictor's; a layer is ranked anew once a visit, and only when somebody has to go.
#include <array>
#include <utility>

#include "residency/heat_predictor.h"
#include "residency/policy_base.h"

namespace moraine {
namespace {

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
  struct Layer {
    uint32_t first = 0, experts = 0, floor = 0;
    std::vector<uint32_t> members;    // residents, unordered
    std::vector<uint32_t> predicted;  // until the layer is visited
    bool heat_is_stale = true;
    uint32_t cold_count = 0;              // 0: to be looked for again
    std::array<uint32_t, kColdest> cold;  // coldest first; no other resident of the layer is colder
  };

  float Heat(uint32_t i) const;
  void HeatIsStale(uint32_t l) {
    layers_[l].heat_is_stale = true;
    ScoreIsStale(l);
  }
  void ForgetPredictions(Layer* layer);
  void Refresh(uint32_t l);
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
  float Nearness(uint32_t of, uint32_t here) const {
    return nearness_[of + index_.layers() - here];
  }
  void Rescore(uint32_t l, uint32_t candidate);
  void ScoreIsStale(uint32_t l) { coldest_heat_[l] = score_[l] = kStale; }
  void InsertCold(Layer* layer, uint32_t i);
  void RemoveCold(Layer* layer, uint32_t i);
  uint32_t Coldest(uint32_t l);
  uint32_t ColdestEvictable(const Layer& layer, const Evictable& evictable) const;
  uint32_t LayerOfLowestScore();

  const uint32_t top_k_;
  uint32_t capacity_ = 0;
  bool never_evicts_ = false;  // a slot for every expert: only the long memory is worth keeping
  std::vector<Layer> layers_;
  HeatPredictor predictor_;
  std::vector<float> heat_;         // of layers whose heat is not stale
  std::vector<float> predicted_;    // confidence, 0: none
  std::vector<uint32_t> position_;  // in its layer's members

  // By layer: who would go, its heat (times kOnFloorFactor for layers on their floor), and that
  // times its nearness to scored_for_.
  std::vector<uint32_t> candidate_;
  std::vector<float> coldest_heat_, score_;
  uint32_t scored_for_ = 0;
  std::vector<uint32_t> asked_;  // scratch of ChooseVictim
  // 1 / sqrt(layers ahead), by layers ahead + layers(), twice round, so that a layer's are
  // consecutive whoever is visited.
  std::vector<float> nearness_;
};

HeatPolicy::HeatPolicy(const PolicyShape& shape)
    : PolicyBase(shape),
      top_k_(shape.top_k),
      layers_(index_.layers()),
      predictor_(index_, shape.top_k),
      heat_(index_.size(), 0),
      predicted_(index_.size(), 0),
      position_(index_.size(), kNone),
      candidate_(index_.layers(), kNone),
      coldest_heat_(index_.layers(), kStale),
      score_(index_.layers(), kStale),
      nearness_(2 * size_t{index_.layers()}) {
  uint32_t first = 0;
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    Layer& layer = layers_[l];
    layer.first = first;
    layer.experts = index_.experts_in(l);
    layer.members.reserve(layer.experts);
    layer.predicted.reserve(layer.experts);
    first += layer.experts;
    // 0 ahead is the layer being visited: its next visit is a whole turn away.
    const float near = 1 / std::sqrt(static_cast<float>(l == 0 ? index_.layers() : l));
    nearness_[l] = nearness_[l + index_.layers()] = near;
  }
  asked_.reserve(index_.layers());
  SetCapacity(shape.capacity);
}

void HeatPolicy::SetCapacity(uint32_t capacity) {
  if (capacity == capacity_) return;
  capacity_ = capacity;
  // Nothing was learnt meanwhile but the long memory.
  if (never_evicts_ && capacity < index_.size()) SeedFromLongTerm();
  never_evicts_ = capacity >= index_.size();
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    Layer& layer = layers_[l];
    if (layer.experts > 0) layer.floor = std::min(top_k_, capacity / index_.sparse_layers());
    ScoreIsStale(l);
  }
}

// --- Heat ---------------------------------------------------------------------------------------

void HeatPolicy::OnStep(uint32_t tokens) {
  PolicyBase::OnStep(tokens);
  if (never_evicts_) return;
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    if (!predictor_.Visited(l)) HeatIsStale(l);  // its averages fade without a visit, too
  }
  predictor_.BeginStep(tokens);
}

void HeatPolicy::OnAccess(ExpertKey key, float weight) {
  PolicyBase::OnAccess(key, weight);
  if (never_evicts_) return;
  const uint32_t l = key.layer.value();
  if (l != predictor_.open()) ForgetPredictions(&layers_[l]);
  predictor_.Access(l, index_(key), weight);
  // The ranking that the visit is about to ask for stays until the layer's next one.
  if (!layers_[l].heat_is_stale) HeatIsStale(l);
}

void HeatPolicy::ForgetPredictions(Layer* layer) {
  for (const uint32_t i : layer->predicted) predicted_[i] = 0;
  layer->predicted.clear();
}

float HeatPolicy::Heat(uint32_t i) const {
  if (!layers_[index_.key(i).layer.value()].heat_is_stale) return heat_[i];
  return std::max(predictor_.Probability(i), predicted_[i]);
}

// Heat() of all of a layer's experts.
void HeatPolicy::Refresh(uint32_t l) {
  Layer& layer = layers_[l];
  predictor_.Expect(l, &heat_[layer.first]);
  for (const uint32_t i : layer.predicted) heat_[i] = std::max(heat_[i], predicted_[i]);
  layer.heat_is_stale = false;
  layer.cold_count = 0;
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
  for (uint32_t i = 0; i < index_.size(); ++i) {
    predictor_.Seed(i, static_cast<float>(long_term_.Get(i) * (1 - kLongTermDecay)));
  }
  for (uint32_t l = 0; l < index_.layers(); ++l) HeatIsStale(l);
}

// --- Who goes -----------------------------------------------------------------------------------
//
// A victim is asked for at every miss, up to 384 times a token, so nothing here looks at all slots:
// each layer keeps a few of its coldest experts in order until its heat changes, and the score of
// the coldest for as long as the same layer is being visited. A question is one pass over those
// scores.

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

uint32_t HeatPolicy::Coldest(uint32_t l) {
  Layer& layer = layers_[l];
  if (layer.members.empty()) return kNone;
  if (layer.heat_is_stale) Refresh(l);
  if (layer.cold_count == 0) {
    for (const uint32_t i : layer.members) {
      const bool full = layer.cold_count == kColdest;
      if (!full || Colder(i, layer.cold[kColdest - 1])) InsertCold(&layer, i);
    }
  }
  return layer.cold[0];
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
  score_[l] = coldest_heat_[l] * Nearness(l, scored_for_);
}

uint32_t HeatPolicy::LayerOfLowestScore() {
  uint32_t best = kNone;
  float lowest = kNoCandidate;
  for (uint32_t l = 0; l < index_.layers(); ++l) {
    if (score_[l] > lowest) continue;
    if (score_[l] < 0) Rescore(l, Coldest(l));
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
    const float* const near = &nearness_[index_.layers() - scored_for_];
    for (uint32_t l = 0; l < index_.layers(); ++l) score_[l] = coldest_heat_[l] * near[l];
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
  return Heat(index_(candidate)) * Nearness(candidate.layer.value(), here) >
         Heat(index_(victim)) * Nearness(victim.layer.value(), here);
}

}  // namespace

std::unique_ptr<EvictionPolicy> CreateHeatPolicy(const PolicyShape& shape) {
  return std::make_unique<HeatPolicy>(shape);
}

}  // namespace moraine
