// What the eviction policies are made of: experts as flat indices, the long memory that outlives a run,
// and the linked lists of the queue-like ones. Included by the policies' own files only.
//
// Threads: as EvictionPolicy. No allocation after construction.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "residency/decayed_counts.h"
#include "residency/eviction_policy.h"

namespace moraine {

inline constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

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
  void OnUseElsewhere(ExpertKey key, float weight) override { long_term_.Add(index_(key), weight); }
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

// Doubly linked lists over expert indices; one list is a head (newest) and a tail (oldest).
struct List {
  uint32_t head = kNone, tail = kNone;
};
class Links {
 public:
  explicit Links(uint32_t size) : newer_(size, kNone), older_(size, kNone) {}
  uint32_t newer(uint32_t i) const { return newer_[i]; }
  uint32_t older(uint32_t i) const { return older_[i]; }
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

// Queues of a layer each, with equal shares of the slots: the visited layer gives if it has its share,
// else the layer with the most.
class LayerQueuesPolicy : public PolicyBase {
 public:
  explicit LayerQueuesPolicy(const PolicyShape& shape)
      : PolicyBase(shape),
        share_(Share(shape.capacity)),
        links_(index_.size()),
        exhausted_(index_.layers(), 0) {}

  void SetCapacity(uint32_t capacity) override { share_ = Share(capacity); }

  std::optional<ExpertKey> ChooseVictim(LayerId visiting, const Evictable& evictable) override {
    std::fill(exhausted_.begin(), exhausted_.end(), 0);
    for (;;) {
      const uint32_t layer = GivingLayer(visiting.value());
      if (layer == kNone) return std::nullopt;
      const uint32_t victim = VictimIn(layer, evictable);
      if (victim != kNone) return index_.key(victim);
      exhausted_[layer] = 1;
    }
  }
  // A queue knows nothing of experts that are not in it, so the only reason to prefer one is balance:
  // its layer lacks experts and the victim's has more than its share.
  bool Prefers(ExpertKey candidate, ExpertKey victim, LayerId) const override {
    return resident_count_[candidate.layer.value()] < share_ &&
           resident_count_[victim.layer.value()] > share_;
  }

 protected:
  // Whom the layer's queues give up; kNone if none of its residents is evictable. Must not move
  // anything: a caller that asks and then keeps the victim (Prefers) has aged nobody.
  virtual uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const = 0;

  uint32_t share_;
  Links links_;

 private:
  uint32_t Share(uint32_t capacity) const {
    return index_.sparse_layers() ? capacity / index_.sparse_layers() : 0;
  }
  // All layers have the same share, so the most above it is the most. Ties: the layer whose next visit
  // is farthest; the visited layer last of all.
  uint32_t GivingLayer(uint32_t here) const {
    if (!exhausted_[here] && resident_count_[here] > 0 && resident_count_[here] >= share_) return here;
    uint32_t best = kNone;
    for (uint32_t back = 1; back <= index_.layers(); ++back) {
      const uint32_t layer = here >= back ? here - back : here + index_.layers() - back;
      if (exhausted_[layer] || resident_count_[layer] == 0) continue;
      if (layer == here && best != kNone) continue;
      if (best == kNone || resident_count_[layer] > resident_count_[best]) best = layer;
    }
    return best;
  }

  std::vector<uint8_t> exhausted_;  // by layer, within one ChooseVictim
};

// The constructors of the policies, by file.
std::unique_ptr<EvictionPolicy> CreateHeatPolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateLruPolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateLfuPolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateLayerLruPolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateSievePolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateS3FifoPolicy(const PolicyShape& shape);
std::unique_ptr<EvictionPolicy> CreateArcPolicy(const PolicyShape& shape);

}  // namespace moraine
