// Policies that remember what they evicted: S3-FIFO and ARC, by layer.
#include "residency/policy_base.h"

namespace moraine {
namespace {

enum class Queue : uint8_t { kNowhere, kFirst, kSecond, kFirstGhost, kSecondGhost };
constexpr uint32_t kQueues = 5;

// Two queues of residents and two of ghosts a layer; an expert is in at most one of them.
class GhostPolicy : public LayerQueuesPolicy {
 public:
  explicit GhostPolicy(const PolicyShape& shape)
      : LayerQueuesPolicy(shape),
        queue_(index_.size(), Queue::kNowhere),
        lists_(size_t{index_.layers()} * kQueues),
        sizes_(size_t{index_.layers()} * kQueues, 0) {}

 protected:
  List& ListOf(uint32_t layer, Queue queue) {
    return lists_[layer * kQueues + static_cast<uint32_t>(queue)];
  }
  uint32_t Oldest(uint32_t layer, Queue queue) const {
    return lists_[layer * kQueues + static_cast<uint32_t>(queue)].tail;
  }
  uint32_t Size(uint32_t layer, Queue queue) const {
    return sizes_[layer * kQueues + static_cast<uint32_t>(queue)];
  }
  // To the newest end of another queue, or of the same one.
  void Move(uint32_t layer, uint32_t i, Queue to) {
    if (queue_[i] != Queue::kNowhere) {
      links_.Remove(&ListOf(layer, queue_[i]), i);
      --sizes_[layer * kQueues + static_cast<uint32_t>(queue_[i])];
    }
    queue_[i] = to;
    if (to == Queue::kNowhere) return;
    links_.PushFront(&ListOf(layer, to), i);
    ++sizes_[layer * kQueues + static_cast<uint32_t>(to)];
  }
  void Trim(uint32_t layer, Queue ghosts, uint32_t size) {
    while (Size(layer, ghosts) > size) Move(layer, Oldest(layer, ghosts), Queue::kNowhere);
  }
  uint32_t OldestEvictable(uint32_t layer, Queue queue, const Evictable& evictable) const {
    for (uint32_t i = Oldest(layer, queue); i != kNone; i = links_.newer(i)) {
      if (evictable(index_.key(i))) return i;
    }
    return kNone;
  }

  std::vector<Queue> queue_;  // by expert

 private:
  std::vector<List> lists_;
  std::vector<uint32_t> sizes_;
};

// S3-FIFO (Yang et al., SOSP '23): newcomers in a small queue (a tenth of the share); what is used
// again there goes on to the main queue, the rest leaves a ghost that lets it in to the main queue at
// once when it comes back. The main queue is FIFO with reinsertion, uses counted up to three.
class S3FifoPolicy final : public GhostPolicy {
 public:
  explicit S3FifoPolicy(const PolicyShape& shape)
      : GhostPolicy(shape), uses_(index_.size(), 0) {}
  const char* name() const override { return "s3fifo"; }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    const uint32_t i = index_(key);
    if (resident_[i] && uses_[i] < kMostUses) ++uses_[i];
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key);
    uses_[i] = 0;
    Move(key.layer.value(), i, queue_[i] == Queue::kFirstGhost ? Queue::kSecond : Queue::kFirst);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    if (queue_[i] == Queue::kSecond) {
      TurnUntil(layer, i);
      Move(layer, i, Queue::kNowhere);
      return;
    }
    for (uint32_t at = Oldest(layer, Queue::kFirst); at != i;) {
      const uint32_t next = links_.newer(at);
      if (uses_[at] > 0) {
        uses_[at] = 0;
        Move(layer, at, Queue::kSecond);
      }
      at = next;
    }
    Move(layer, i, Queue::kFirstGhost);
    Trim(layer, Queue::kFirstGhost, share_);
  }
  bool IsHot(ExpertKey key) const override { return uses_[index_(key)] > 1; }

 private:
  static constexpr uint8_t kMostUses = 3;

  uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const override {
    if (Size(layer, Queue::kFirst) >= std::max(share_ / 10, 1u)) {
      const uint32_t i = Unused(layer, Queue::kFirst, evictable);
      if (i != kNone && uses_[i] == 0) return i;
    }
    const uint32_t main = Unused(layer, Queue::kSecond, evictable);
    return main != kNone ? main : Unused(layer, Queue::kFirst, evictable);
  }
  // The oldest of the least used: where turns of decrementing and reinserting end.
  uint32_t Unused(uint32_t layer, Queue queue, const Evictable& evictable) const {
    uint32_t best = kNone;
    for (uint32_t i = Oldest(layer, queue); i != kNone; i = links_.newer(i)) {
      if ((best == kNone || uses_[i] < uses_[best]) && evictable(index_.key(i))) best = i;
    }
    return best;
  }
  // A full turn of the main queue for each use the victim had, then up to it.
  void TurnUntil(uint32_t layer, uint32_t victim) {
    const uint8_t turns = uses_[victim];
    uint32_t size = Size(layer, Queue::kSecond);
    bool before = true;
    for (uint32_t at = Oldest(layer, Queue::kSecond); size > 0; --size) {
      const uint32_t next = links_.newer(at);
      before &= at != victim;
      const uint8_t spent = static_cast<uint8_t>(turns + (before ? 1 : 0));
      uses_[at] = static_cast<uint8_t>(uses_[at] - std::min(uses_[at], spent));
      if (before) Move(layer, at, Queue::kSecond);
      at = next;
    }
  }

  std::vector<uint8_t> uses_;
};

// ARC (Megiddo and Modha, FAST '03): one list for what was used once, one for what was used more often;
// hits in their ghosts move the boundary.
class ArcPolicy final : public GhostPolicy {
 public:
  explicit ArcPolicy(const PolicyShape& shape)
      : GhostPolicy(shape), first_target_(index_.layers(), 0) {}
  const char* name() const override { return "arc"; }

  void OnAccess(ExpertKey key, float weight) override {
    PolicyBase::OnAccess(key, weight);
    const uint32_t i = index_(key), layer = key.layer.value();
    if (resident_[i]) {
      Move(layer, i, Queue::kSecond);
      return;
    }
    const double once = Size(layer, Queue::kFirstGhost), often = Size(layer, Queue::kSecondGhost);
    double& target = first_target_[layer];
    if (queue_[i] == Queue::kFirstGhost) {
      target = std::min<double>(share_, target + std::max(1.0, often / once));
    } else if (queue_[i] == Queue::kSecondGhost) {
      target = std::max(0.0, target - std::max(1.0, once / often));
    }
  }
  void OnInsert(ExpertKey key) override {
    PolicyBase::OnInsert(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    Move(layer, i, queue_[i] == Queue::kNowhere ? Queue::kFirst : Queue::kSecond);
  }
  void OnEvict(ExpertKey key) override {
    PolicyBase::OnEvict(key);
    const uint32_t i = index_(key), layer = key.layer.value();
    Move(layer, i, queue_[i] == Queue::kFirst ? Queue::kFirstGhost : Queue::kSecondGhost);
    const uint32_t once = Size(layer, Queue::kFirst), all = 2 * share_;
    Trim(layer, Queue::kFirstGhost, share_ - std::min(share_, once));
    const uint32_t rest = resident_count_[layer] + Size(layer, Queue::kFirstGhost);
    Trim(layer, Queue::kSecondGhost, all - std::min(all, rest));
  }
  bool IsHot(ExpertKey key) const override { return queue_[index_(key)] == Queue::kSecond; }

 private:
  uint32_t VictimIn(uint32_t layer, const Evictable& evictable) const override {
    const bool from_first = Size(layer, Queue::kFirst) > first_target_[layer];
    const Queue one = from_first ? Queue::kFirst : Queue::kSecond;
    const Queue other = from_first ? Queue::kSecond : Queue::kFirst;
    const uint32_t i = OldestEvictable(layer, one, evictable);
    return i != kNone ? i : OldestEvictable(layer, other, evictable);
  }

  std::vector<double> first_target_;  // by layer: slots for what was used once
};

}  // namespace

std::unique_ptr<EvictionPolicy> CreateS3FifoPolicy(const PolicyShape& shape) {
  return std::make_unique<S3FifoPolicy>(shape);
}
std::unique_ptr<EvictionPolicy> CreateArcPolicy(const PolicyShape& shape) {
  return std::make_unique<ArcPolicy>(shape);
}

}  // namespace moraine
