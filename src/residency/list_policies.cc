// Policies of one list: LRU (global and by layer), LFU, SIEVE.
#include "residency/policy_base.h"

namespace moraine {
namespace {

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

class LayerLruPolicy final : public LayerQueuesPolicy {
 public:
  explicit LayerLruPolicy(const PolicyShape& shape)
      : LayerQueuesPolicy(shape), lists_(index_.layers()) {}
  const char* name() const override { return "lru_layer"; }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    const uint32_t i = index_(key);
    if (!resident_[i]) return;
    links_.Remove(&lists_[key.layer.value()], i);
    links_.PushFront(&lists_[key.layer.value()], i);
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    links_.PushFront(&lists_[key.layer.value()], index_(key));
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    links_.Remove(&lists_[key.layer.value()], index_(key));
  }
  bool IsHot(ExpertKey) const override { return false; }  // the oldest is never hot

 private:
  uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const override {
    for (uint32_t i = lists_[layer].tail; i != kNone; i = links_.newer(i)) {
      if (evictable(index_.key(i))) return i;
    }
    return kNone;
  }

  std::vector<List> lists_;  // by layer
};

// Counts never decay and outlive evictions. A victim costs a look at every resident.
class LfuPolicy final : public PolicyBase {
 public:
  explicit LfuPolicy(const PolicyShape& shape)
      : PolicyBase(shape), uses_(index_.size(), 0), position_(index_.size(), kNone) {
    members_.reserve(index_.size());
  }
  const char* name() const override { return "lfu"; }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    uses_[index_(key)] += weight;
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key);
    position_[i] = static_cast<uint32_t>(members_.size());
    members_.push_back(i);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    const uint32_t i = index_(key);
    members_[position_[i]] = members_.back();
    position_[members_.back()] = position_[i];
    members_.pop_back();
  }
  std::optional<ExpertKey> ChooseVictim(LayerId, const Evictable& evictable) override {
    uint32_t best = kNone;
    for (const uint32_t i : members_) {
      if ((best == kNone || Rarer(i, best)) && evictable(index_.key(i))) best = i;
    }
    if (best == kNone) return std::nullopt;
    return index_.key(best);
  }
  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId) const override {
    return uses_[index_(candidate)] > uses_[index_(victim)];
  }
  bool IsHot(ExpertKey) const override { return false; }  // nor is the rarest

 private:
  bool Rarer(uint32_t a, uint32_t b) const {
    if (uses_[a] != uses_[b]) return uses_[a] < uses_[b];
    return last_access_[a] != last_access_[b] ? last_access_[a] < last_access_[b] : a < b;
  }

  std::vector<double> uses_;
  std::vector<uint32_t> members_, position_;
};

// SIEVE (Zhang et al., NSDI '24). The hand moves, clearing marks on its way, when the victim is evicted.
class SievePolicy final : public LayerQueuesPolicy {
 public:
  explicit SievePolicy(const PolicyShape& shape)
      : LayerQueuesPolicy(shape),
        lists_(index_.layers()),
        hand_(index_.layers(), kNone),
        visited_(index_.size(), 0) {}
  const char* name() const override { return "sieve"; }

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

  bool IsHot(ExpertKey key) const override { return visited_[index_(key)] != 0; }

 private:
  uint32_t Start(uint32_t layer) const {
    return hand_[layer] != kNone ? hand_[layer] : lists_[layer].tail;
  }
  uint32_t Next(uint32_t layer, uint32_t i) const {
    return links_.newer(i) != kNone ? links_.newer(i) : lists_[layer].tail;
  }
  // The first unmarked evictable from the hand on; if all are marked, the first evictable, which is
  // where the second turn would end.
  uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const override {
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

  std::vector<List> lists_;     // by layer
  std::vector<uint32_t> hand_;  // by layer; kNone: at the tail
  std::vector<uint8_t> visited_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateLruPolicy(const PolicyShape& shape) {
  return std::make_unique<LruPolicy>(shape);
}
std::unique_ptr<EvictionPolicy> CreateLayerLruPolicy(const PolicyShape& shape) {
  return std::make_unique<LayerLruPolicy>(shape);
}
std::unique_ptr<EvictionPolicy> CreateLfuPolicy(const PolicyShape& shape) {
  return std::make_unique<LfuPolicy>(shape);
}
std::unique_ptr<EvictionPolicy> CreateSievePolicy(const PolicyShape& shape) {
  return std::make_unique<SievePolicy>(shape);
}

}  // namespace moraine
