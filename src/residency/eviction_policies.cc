#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "residency/eviction_policy.h"

namespace moraine {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// Experts of all layers in one row, so that per-expert data are flat arrays.
class ExpertIndex {
 public:
  explicit ExpertIndex(const PolicyShape& shape) {
    first_.reserve(shape.experts_per_layer.size() + 1);
    for (uint32_t experts : shape.experts_per_layer) {
      const uint32_t layer = static_cast<uint32_t>(first_.size());
      first_.push_back(static_cast<uint32_t>(keys_.size()));
      sparse_layers_ += experts > 0;
      for (uint32_t expert = 0; expert < experts; ++expert) {
        keys_.push_back({LayerId(layer), ExpertId(expert)});
      }
    }
    first_.push_back(static_cast<uint32_t>(keys_.size()));
  }

  uint32_t operator()(ExpertKey key) const {
    const uint32_t index = first_[key.layer.value()] + key.expert.value();
    CHECK(index < first_[key.layer.value() + 1], "expert out of range");
    return index;
  }
  ExpertKey key(uint32_t index) const { return keys_[index]; }
  uint32_t size() const { return static_cast<uint32_t>(keys_.size()); }
  uint32_t layers() const { return static_cast<uint32_t>(first_.size()) - 1; }
  uint32_t experts_in(uint32_t layer) const { return first_[layer + 1] - first_[layer]; }
  uint32_t sparse_layers() const { return sparse_layers_; }

 private:
  std::vector<uint32_t> first_;  // of each layer; one more at the end
  std::vector<ExpertKey> keys_;
  uint32_t sparse_layers_ = 0;
};

// Access counts that decay by `decay` a token. Nothing is multiplied when a step begins: what an
// access adds grows instead (1 / decay^t), and a value is read relative to that unit. O(1) a step.
//
// A step of n tokens in which w of them routed to an expert is taken as n decode steps with the w
// accesses spread evenly, as the order inside the step is unknown: what was there decays by decay^n,
// and the expert gains
//     sum over ages a < n of (w / n) * decay^a  =  (w / n) * (1 - decay^n) / (1 - decay).
// For n = w = 1 that is 1. Whatever n is, a count stays below 1 / (1 - decay), the count of an
// expert that every token takes, so a long prompt and a decode loop speak the same scale.
//
// `max_step_tokens` bounds n in both places: see HeatPolicy.
class DecayedCounts {
 public:
  DecayedCounts(uint32_t size, double decay, double max_step_tokens)
      : raw_(size, 0.0), decay_(decay), max_step_tokens_(max_step_tokens) {}

  void BeginStep(uint32_t tokens) {
    tokens = std::max(tokens, 1u);
    const double kept = std::pow(decay_, std::min<double>(tokens, max_step_tokens_));
    unit_ /= kept;
    gain_ = (1 - kept) / (1 - decay_) / tokens;
    // Far inside the range of double, and thousands of steps apart.
    if (unit_ > 1e100) Rescale();
  }
  void Add(uint32_t index, float weight) { raw_[index] += unit_ * gain_ * weight; }
  void Set(uint32_t index, double value) { raw_[index] = value * unit_; }
  double Get(uint32_t index) const { return raw_[index] / unit_; }
  // For comparisons: the same unit for all experts until the next BeginStep.
  double raw(uint32_t index) const { return raw_[index]; }
  double decay() const { return decay_; }

 private:
  void Rescale() {
    for (double& value : raw_) value /= unit_;
    unit_ = 1;
  }

  std::vector<double> raw_;
  double decay_, max_step_tokens_;
  double unit_ = 1;  // what an access of weight 1 in a step of one token adds now
  double gain_ = 1;  // of the current step, for a weight of 1
};

// What every policy has: the index, the order of accesses, and the long memory that is persisted.
class PolicyBase : public EvictionPolicy {
 public:
  explicit PolicyBase(const PolicyShape& shape)
      : index_(shape),
        long_term_(index_.size(), kLongTermDecay, kLongTermMaxStepTokens),
        last_access_(index_.size(), 0),
        resident_(index_.size(), 0),
        resident_count_(index_.layers(), 0) {}

  void OnStep(uint32_t tokens) override { long_term_.BeginStep(tokens); }
  void OnAccess(ExpertKey key, float weight) override {
    const uint32_t i = index_(key);
    long_term_.Add(i, weight);
    last_access_[i] = ++access_count_;
  }
  void OnInsert(ExpertKey key) override {
    const uint32_t i = index_(key);
    CHECK(!resident_[i], "inserted twice");
    resident_[i] = 1;
    ++resident_count_[key.layer.value()];
  }
  void OnEvict(ExpertKey key) override {
    const uint32_t i = index_(key);
    CHECK(resident_[i], "evicted without having been inserted");
    resident_[i] = 0;
    --resident_count_[key.layer.value()];
  }
  void ExportHeat(std::span<float> heat) const override {
    CHECK(heat.size() == index_.size(), "heat has another shape");
    for (uint32_t i = 0; i < index_.size(); ++i) heat[i] = static_cast<float>(long_term_.Get(i));
  }
  void ImportHeat(std::span<const float> heat) override {
    CHECK(heat.size() == index_.size(), "heat has another shape");
    for (uint32_t i = 0; i < index_.size(); ++i) long_term_.Set(i, heat[i]);
  }

 protected:
  // A memory of about a thousand tokens: long enough to rank what a user's texts have in common,
  // short enough that last month's work fades.
  static constexpr double kLongTermDecay = 0.999;
  // 0.999^1e5 = 4e-44: nothing is left of what was before, and no double overflows.
  static constexpr double kLongTermMaxStepTokens = 1e5;

  const ExpertIndex index_;
  DecayedCounts long_term_;
  std::vector<uint64_t> last_access_;  // number of the last access, 0 before the first
  uint64_t access_count_ = 0;
  std::vector<uint8_t> resident_;
  std::vector<uint32_t> resident_count_;  // by layer
};

// A victim is asked for at every miss, up to 384 times a token, so nothing here looks at all slots:
// each layer keeps a few of its coldest experts in order (decay does not change an order inside a
// layer, only accesses, insertions and evictions do), and the score of the coldest is kept by layer
// for as long as the same layer is being visited. A question is then one pass over the layers'
// scores; the residents of one layer are scanned once in kColdest evictions.
class HeatPolicy final : public PolicyBase {
 public:
  explicit HeatPolicy(const PolicyShape& shape)
      : PolicyBase(shape),
        heat_(index_.size(), kDecay, kMaxStepTokens),
        members_(index_.layers()),
        position_(index_.size(), kNone),
        cold_(index_.layers()),
        score_(index_.layers(), kStale),
        floor_(index_.layers(), 0),
        inverse_distance_(index_.layers()),
        top_k_(shape.top_k) {
    SetCapacity(shape.capacity);
    const uint32_t layers = index_.layers();
    for (uint32_t layer = 0; layer < layers; ++layer) {
      members_[layer].reserve(index_.experts_in(layer));
      // By layers ahead; 0 ahead is the layer being visited: its next visit is a whole turn away.
      inverse_distance_[layer] = 1.0 / (layer == 0 ? layers : layer);
    }
  }

  const char* name() const override { return "heat"; }

  void SetCapacity(uint32_t capacity) override {
    for (uint32_t layer = 0; layer < index_.layers(); ++layer) {
      if (index_.experts_in(layer) == 0) continue;
      floor_[layer] = std::min(top_k_, capacity / index_.sparse_layers());
    }
    std::fill(score_.begin(), score_.end(), kStale);
  }

  void OnStep(uint32_t tokens) override {
    PolicyBase::OnStep(tokens);
    heat_.BeginStep(tokens);
    std::fill(score_.begin(), score_.end(), kStale);  // the unit of raw heat may have changed
  }
  void OnAccess(ExpertKey key, float weight) override {
    const uint32_t i = index_(key), layer = key.layer.value();
    const bool was_cold = resident_[i] && RemoveCold(layer, i);
    PolicyBase::OnAccess(key, weight);
    heat_.Add(i, weight);
    if (was_cold) OfferCold(layer, i);
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    std::vector<uint32_t>& members = members_[layer];
    position_[i] = static_cast<uint32_t>(members.size());
    members.push_back(i);
    score_[layer] = kStale;  // it may have risen above its floor
    OfferCold(layer, i);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    std::vector<uint32_t>& members = members_[layer];
    members[position_[i]] = members.back();
    position_[members.back()] = position_[i];
    members.pop_back();
    position_[i] = kNone;
    score_[layer] = kStale;
    RemoveCold(layer, i);
  }

  std::optional<ExpertKey> ChooseVictim(LayerId visiting, const Evictable& evictable) override {
    if (visiting != scored_for_) {
      scored_for_ = visiting;
      std::fill(score_.begin(), score_.end(), kStale);
    }
    uint32_t victim = LowestScore();
    if (victim != kNone && !evictable(index_.key(victim))) {
      victim = LowestScoreOfEvictable(evictable);  // leases of another layer, rare in decode
    }
    // The visited layer last: callers rarely let it go, and asking costs a scan of its residents.
    if (victim == kNone) victim = ColdestEvictable(visiting.value(), evictable);
    if (victim == kNone) return std::nullopt;
    return index_.key(victim);
  }

  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId visiting) const override {
    if (candidate.layer != victim.layer) {
      const bool victim_above = AboveFloor(victim.layer.value());
      if (victim_above && BelowFloor(candidate.layer.value())) return true;
      if (!victim_above && AboveFloor(candidate.layer.value())) return false;
    }
    const double wanted = heat_.raw(index_(candidate)) * InverseDistance(candidate.layer, visiting);
    return wanted > heat_.raw(index_(victim)) * InverseDistance(victim.layer, visiting);
  }

  // Heat settles at p / (1 - decay) for an expert that a fraction p of the tokens take: hot is p >= 1/2.
  bool IsHot(ExpertKey key) const override {
    return heat_.Get(index_(key)) * (1 - heat_.decay()) >= 0.5;
  }

  void ImportHeat(std::span<const float> heat) override {
    PolicyBase::ImportHeat(heat);
    // An expert that a fraction p of the tokens take settles at p / (1 - decay) in either memory.
    for (uint32_t i = 0; i < index_.size(); ++i) {
      heat_.Set(i, heat[i] * (1 - kLongTermDecay) / (1 - kDecay));
    }
    for (Cold& cold : cold_) cold.count = 0;
    std::fill(score_.begin(), score_.end(), kStale);
  }

 private:
  // Replay of a Qwen3-30B trace, hits at 5/10/20/30 % of the experts: 0.9: 37.7/55.8/77.6/88.0,
  // 0.95: 37.3/55.1/76.8/88.0. (Of a 16-layer model trained on less it is the other way round by a
  // point or two.)
  static constexpr double kDecay = 0.9;
  // ln(1/2) / ln(0.9): a step, however long, halves what was known and gives the step's own routing
  // the other half. Taken literally, a chunk of 512 tokens would keep 0.9^512 = 4e-24 of it: the
  // decode of ten minutes forgotten for one chunk whose inner order we do not even know.
  static constexpr double kMaxStepTokens = 6.5788;
  // As many misses as one layer has in a token.
  static constexpr uint32_t kColdest = 8;
  static constexpr double kStale = -1;  // scores are positive
  static constexpr double kNoCandidate = std::numeric_limits<double>::infinity();
  // Raw heat is below 1e102 (DecayedCounts::BeginStep). Less than 1e-30 is as good as nothing, and
  // with that a layer on its floor scores above every layer that is not.
  static constexpr double kLeastHeat = 1e-30, kOnFloorFactor = 1e150;

  struct Cold {
    uint32_t count = 0;
    uint32_t experts[kColdest] = {};  // coldest first; no other resident of the layer is colder
  };

  bool AboveFloor(uint32_t layer) const { return resident_count_[layer] > floor_[layer]; }
  bool BelowFloor(uint32_t layer) const { return resident_count_[layer] < floor_[layer]; }
  // Equal heat (mostly none at all): least recently used, then by key, so that runs repeat.
  bool OlderAccess(uint32_t a, uint32_t b) const {
    return last_access_[a] != last_access_[b] ? last_access_[a] < last_access_[b] : a < b;
  }
  bool Colder(uint32_t a, uint32_t b) const {
    const double heat_a = heat_.raw(a), heat_b = heat_.raw(b);
    return heat_a != heat_b ? heat_a < heat_b : OlderAccess(a, b);
  }
  double InverseDistance(LayerId of, LayerId visiting) const {
    const uint32_t layer = of.value(), here = visiting.value();
    return inverse_distance_[layer >= here ? layer - here : layer + index_.layers() - here];
  }
  double Score(uint32_t layer, uint32_t i) const {
    const double heat = std::max(heat_.raw(i), kLeastHeat);
    return heat * InverseDistance(LayerId(layer), scored_for_) *
           (AboveFloor(layer) ? 1 : kOnFloorFactor);
  }

  // Keeps the order if `i` belongs among the coldest. What falls off the end is colder than nothing
  // that stays, so the list remains true.
  void OfferCold(uint32_t layer, uint32_t i) {
    Cold& cold = cold_[layer];
    const bool full = cold.count == kColdest;
    const bool all = cold.count + 1 == members_[layer].size();  // the others are all in the list
    const bool belongs = cold.count > 0 && Colder(i, cold.experts[cold.count - 1]);
    if (!belongs && (full || !all)) return;
    uint32_t at = full ? kColdest - 1 : cold.count++;
    for (; at > 0 && Colder(i, cold.experts[at - 1]); --at) cold.experts[at] = cold.experts[at - 1];
    cold.experts[at] = i;
    if (at == 0) score_[layer] = kStale;
  }
  // True if it was there.
  bool RemoveCold(uint32_t layer, uint32_t i) {
    Cold& cold = cold_[layer];
    uint32_t* const end = cold.experts + cold.count;
    uint32_t* const found = std::find(cold.experts, end, i);
    if (found == end) return false;
    if (found == cold.experts) score_[layer] = kStale;
    std::copy(found + 1, end, found);
    --cold.count;
    return true;
  }
  uint32_t Coldest(uint32_t layer) {
    Cold& cold = cold_[layer];
    if (cold.count == 0) {
      for (uint32_t i : members_[layer]) {
        if (cold.count == kColdest && !Colder(i, cold.experts[kColdest - 1])) continue;
        uint32_t at = cold.count == kColdest ? kColdest - 1 : cold.count++;
        for (; at > 0 && Colder(i, cold.experts[at - 1]); --at) {
          cold.experts[at] = cold.experts[at - 1];
        }
        cold.experts[at] = i;
      }
    }
    return cold.count > 0 ? cold.experts[0] : kNone;
  }
  uint32_t ColdestEvictable(uint32_t layer, const Evictable& evictable) const {
    uint32_t best = kNone;
    for (uint32_t i : members_[layer]) {
      if ((best == kNone || Colder(i, best)) && evictable(index_.key(i))) best = i;
    }
    return best;
  }

  // Of all layers but the visited one.
  uint32_t LowestScore() {
    uint32_t best = kNone;
    double best_score = kNoCandidate;
    for (uint32_t layer = 0; layer < index_.layers(); ++layer) {
      if (score_[layer] == kStale) {
        const uint32_t coldest = layer == scored_for_.value() ? kNone : Coldest(layer);
        score_[layer] = coldest == kNone ? kNoCandidate : Score(layer, coldest);
      }
      if (score_[layer] > best_score || score_[layer] == kNoCandidate) continue;
      const uint32_t i = cold_[layer].experts[0];
      if (score_[layer] == best_score && !OlderAccess(i, best)) continue;
      best = i;
      best_score = score_[layer];
    }
    return best;
  }
  uint32_t LowestScoreOfEvictable(const Evictable& evictable) const {
    uint32_t best = kNone;
    double best_score = kNoCandidate;
    for (uint32_t layer = 0; layer < index_.layers(); ++layer) {
      if (layer == scored_for_.value()) continue;
      const uint32_t i = ColdestEvictable(layer, evictable);
      if (i == kNone) continue;
      const double score = Score(layer, i);
      if (score > best_score || (score == best_score && !OlderAccess(i, best))) continue;
      best = i;
      best_score = score;
    }
    return best;
  }

  DecayedCounts heat_;
  std::vector<std::vector<uint32_t>> members_;  // by layer, unordered; capacity: all its experts
  std::vector<uint32_t> position_;              // in members_
  std::vector<Cold> cold_;                      // by layer; empty: to be looked for again
  std::vector<double> score_;                   // by layer: of its coldest, or kStale
  LayerId scored_for_;                          // the visited layer that score_ is about
  std::vector<uint32_t> floor_;
  std::vector<double> inverse_distance_;  // by layers ahead
  const uint32_t top_k_;
};

// Doubly linked lists over expert indices; one list is a head (newest) and a tail (oldest).
struct List {
  uint32_t head = kNone, tail = kNone;
};
class Links {
 public:
  explicit Links(uint32_t size) : newer_(size, kNone), older_(size, kNone) {}
  uint32_t newer(uint32_t i) const { return newer_[i]; }
  void PushFront(List* list, uint32_t i) {
    newer_[i] = kNone;
    older_[i] = list->head;
    (list->head == kNone ? list->tail : newer_[list->head]) = i;
    list->head = i;
  }
  void Remove(List* list, uint32_t i) {
    (newer_[i] == kNone ? list->head : older_[newer_[i]]) = older_[i];
    (older_[i] == kNone ? list->tail : newer_[older_[i]]) = newer_[i];
  }

 private:
  std::vector<uint32_t> newer_, older_;
};

class LruPolicy final : public PolicyBase {
 public:
  explicit LruPolicy(const PolicyShape& shape) : PolicyBase(shape), links_(index_.size()) {}
  const char* name() const override { return "lru"; }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    const uint32_t i = index_(key);
    if (!resident_[i]) return;
    links_.Remove(&list_, i);
    links_.PushFront(&list_, i);
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key);
    last_access_[i] = ++access_count_;
    links_.PushFront(&list_, i);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    links_.Remove(&list_, index_(key));
  }
  std::optional<ExpertKey> ChooseVictim(LayerId, const Evictable& evictable) override {
    for (uint32_t i = list_.tail; i != kNone; i = links_.newer(i)) {
      if (evictable(index_.key(i))) return index_.key(i);
    }
    return std::nullopt;
  }
  // Recency is all it knows: whatever was read last stays, a prompt's experts included.
  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId) const override {
    return last_access_[index_(candidate)] > last_access_[index_(victim)];
  }
  bool IsHot(ExpertKey) const override { return false; }  // the oldest is never hot

 private:
  Links links_;
  List list_;
};

// Choosing does not move the hand: a caller that asks and then keeps the victim (Prefers) must not
// have aged anybody. The hand moves, clearing marks on its way, when the victim is evicted.
class SievePolicy final : public PolicyBase {
 public:
  explicit SievePolicy(const PolicyShape& shape)
      : PolicyBase(shape),
        links_(index_.size()),
        lists_(index_.layers()),
        hand_(index_.layers(), kNone),
        visited_(index_.size(), 0),
        exhausted_(index_.layers(), 0) {
    SetCapacity(shape.capacity);
  }
  const char* name() const override { return "sieve"; }

  void SetCapacity(uint32_t capacity) override {
    share_ = index_.sparse_layers() ? capacity / index_.sparse_layers() : 0;
  }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    const uint32_t i = index_(key);
    if (resident_[i]) visited_[i] = 1;
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key);
    visited_[i] = 0;
    links_.PushFront(&lists_[key.layer.value()], i);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    for (uint32_t at = Start(layer); at != i; at = Next(layer, at)) visited_[at] = 0;
    hand_[layer] = links_.newer(i);
    links_.Remove(&lists_[layer], i);
  }

  std::optional<ExpertKey> ChooseVictim(LayerId visiting, const Evictable& evictable) override {
    std::fill(exhausted_.begin(), exhausted_.end(), 0);
    for (;;) {
      const uint32_t layer = FullestLayer(visiting.value());
      if (layer == kNone) return std::nullopt;
      const uint32_t victim = VictimIn(layer, evictable);
      if (victim != kNone) return index_.key(victim);
      exhausted_[layer] = 1;
    }
  }
  // The queue knows nothing of experts that are not in it, so the only reason to prefer one is
  // balance: its layer lacks experts and the victim's has more than its share.
  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId) const override {
    return resident_count_[candidate.layer.value()] < share_ &&
           resident_count_[victim.layer.value()] > share_;
  }
  bool IsHot(ExpertKey key) const override { return visited_[index_(key)] != 0; }

 private:
  // All layers have the same share, so the most above it is the most. Ties: the layer whose next
  // visit is farthest; the visited layer last of all.
  uint32_t FullestLayer(uint32_t here) const {
    uint32_t best = kNone;
    for (uint32_t back = 1; back <= index_.layers(); ++back) {
      const uint32_t layer = here >= back ? here - back : here + index_.layers() - back;
      if (exhausted_[layer] || resident_count_[layer] == 0) continue;
      if (layer == here && best != kNone) continue;
      if (best == kNone || resident_count_[layer] > resident_count_[best]) best = layer;
    }
    return best;
  }
  uint32_t Start(uint32_t layer) const {
    return hand_[layer] != kNone ? hand_[layer] : lists_[layer].tail;
  }
  uint32_t Next(uint32_t layer, uint32_t i) const {
    return links_.newer(i) != kNone ? links_.newer(i) : lists_[layer].tail;
  }
  // The first unmarked evictable from the hand on; if all are marked, the first evictable, which is
  // where the second turn would end.
  uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const {
    const uint32_t start = Start(layer);
    uint32_t marked = kNone, at = start;
    do {
      if ((!visited_[at] || marked == kNone) && evictable(index_.key(at))) {
        if (!visited_[at]) return at;
        marked = at;
      }
      at = Next(layer, at);
    } while (at != start);
    return marked;
  }

  uint32_t share_ = 0;
  Links links_;
  std::vector<List> lists_;     // by layer
  std::vector<uint32_t> hand_;  // by layer; kNone: at the tail
  std::vector<uint8_t> visited_;
  std::vector<uint8_t> exhausted_;  // by layer, within one ChooseVictim
};

}  // namespace

Result<std::unique_ptr<EvictionPolicy>> CreateEvictionPolicy(std::string_view name,
                                                             const PolicyShape& shape) {
  std::unique_ptr<EvictionPolicy> policy;
  if (name == "heat") policy = std::make_unique<HeatPolicy>(shape);
  if (name == "sieve") policy = std::make_unique<SievePolicy>(shape);
  if (name == "lru") policy = std::make_unique<LruPolicy>(shape);
  if (!policy) {
    return InvalidArgument("eviction policy '" + std::string(name) +
                           "': expected heat, sieve or lru");
  }
  return policy;
}

}  // namespace moraine
