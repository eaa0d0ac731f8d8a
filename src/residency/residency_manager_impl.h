// The inside of ResidencyManager: what it keeps for each expert, and the steps of its calls. Included by
// the files beside it that implement it.
#pragma once

#include <optional>
#include <unordered_map>
#include <vector>

#include "residency/residency_manager.h"
#include "residency/slot_table.h"

namespace moraine {

class ResidencyManager::Impl final : private ReadProgress {
 public:
  struct Expert {
    ExpertKey key;
    RecordSource::Location location;
    ExpertState state = ExpertState::kAbsent;
    SlotIndex slot = kNoSlot;
    // Read by speculation and not demanded since; until it is, or until it goes (wasted).
    bool speculative = false;
    uint32_t wrong_reads = 0;  // how often the record of this read had a wrong checksum
    bool in_policy = false;  // between OnInsert and OnEvict
    // The step in which the policy heard of an access that has no lease yet; else 0.
    uint64_t access_told_in = 0;
    uint64_t call = 0;  // the last Acquire or Prefetch that named it
    LookupCounters counters;
  };

  Impl(const ResidencyOptions& options, SlotSegments& segments, const RecordSource& source,
       ReadScheduler& scheduler, const Clock& clock, std::unique_ptr<EvictionPolicy> policy);
  ~Impl() override;

  // Errors that only the record source can tell of.
  Status CheckRecords() const;
  // Maps the first slots.
  Status MapSlots();

  // residency_resize.cc.
  Status SetSlotTarget(uint32_t slots);
  bool AdvanceResize(uint64_t work_bytes);

  void BeginStep(uint32_t tokens) {
    ++step_;
    policy_->OnStep(tokens);
  }
  size_t Acquire(LayerId layer, std::span<const ExpertId> ids, std::span<const float> weights,
                 AcquireMode mode, std::span<Lease> leases, ResidencyManager* manager);
  Lease HoldReady(ExpertKey key, ResidencyManager* manager);
  size_t Prefetch(LayerId layer, std::span<const ExpertId> ids, PrefetchReason reason);
  size_t Stream(LayerId layer, std::span<const ExpertId> ids);
  void CancelPrefetches();

  // read_outcomes.cc.
  size_t Poll(int64_t wait_ns);
  void Collect();

  // lease.cc.
  Lease::State LeaseState(SlotIndex slot, uint32_t generation) const;
  const std::byte* LeaseData(SlotIndex slot, uint32_t generation) const;
  const Status& LeaseFailure(ExpertKey key, SlotIndex slot, uint32_t generation) const;
  void Release(SlotIndex slot, uint32_t generation);

  const Expert& At(ExpertKey key) const { return experts_[IndexOf(key)]; }
  Residence ResidenceOf(ExpertKey key) const;
  const ResidencyStats& stats() const { return stats_; }
  uint64_t leases() const { return slot_leases_ + quarantine_leases_; }
  EvictionPolicy& policy() { return *policy_; }
  const EvictionPolicy& policy() const { return *policy_; }
  void CheckInvariants() const;

 private:
  // Ready, unleased, not named by the call that asks. The layer being computed only when asked for.
  class ReadyAndUnneeded final : public EvictionPolicy::Evictable {
   public:
    ReadyAndUnneeded(const Impl& impl, bool visiting_layer_too)
        : impl_(impl), visiting_layer_too_(visiting_layer_too) {}
    bool operator()(ExpertKey key) const override {
      const Expert& expert = impl_.At(key);
      return expert.state == ExpertState::kReady && expert.call != impl_.call_ &&
             impl_.slots_[expert.slot].phase == SlotPhase::kOpen &&
             (visiting_layer_too_ || key.layer != impl_.visiting_);
    }

   private:
    const Impl& impl_;
    const bool visiting_layer_too_;
  };

  // Whatever nobody holds, between steps.
  class IsReady final : public EvictionPolicy::Evictable {
   public:
    IsReady(const Impl& impl, bool closing_too) : impl_(impl), closing_too_(closing_too) {}
    bool operator()(ExpertKey key) const override {
      const Expert& expert = impl_.At(key);
      return expert.state == ExpertState::kReady &&
             (closing_too_ || impl_.slots_[expert.slot].phase == SlotPhase::kOpen);
    }

   private:
    const Impl& impl_;
    const bool closing_too_;
  };

  uint32_t IndexOf(ExpertKey key) const {
    CHECK(key.layer.value() + 1 < first_expert_.size(), "layer out of range");
    const uint32_t index = first_expert_[key.layer.value()] + key.expert.value();
    CHECK(index < first_expert_[key.layer.value() + 1], "expert out of range");
    return index;
  }
  void NameInCall(LayerId layer, std::span<const ExpertId> ids);
  std::optional<ExpertKey> Victim(bool visiting_layer_too) {
    return policy_->ChooseVictim(visiting_, ReadyAndUnneeded(*this, visiting_layer_too));
  }
  // Acquire.
  bool Hold(Expert* expert, AcquireMode mode, uint64_t LookupCounters::** kind);
  SlotIndex TakeSlot(uint32_t expert_index, AcquireMode mode);
  SlotIndex TakeSlotForSpeculation(uint32_t expert_index, PrefetchReason reason);
  void StartSpeculation(Expert* expert, SlotIndex slot, ReadPriority priority);
  void GiveUpUnwanted(LayerId layer);
  void StartRead(Expert* expert, SlotIndex slot, ReadPriority priority);
  void ReadInto(const Expert& expert, ReadPriority priority);
  int64_t DemandDeadline() const;
  void FlushReads();
  // Poll (read_outcomes.cc).
  size_t Decide(const ReadOutcome& outcome);
  void OnPart(ReadId id, uint64_t offset, uint64_t length) override;
  size_t DecideRead(SlotIndex slot, Expert* expert);
  void ReadAgain(Expert* expert);
  void Ready(Expert* expert);
  Status Describe(const Expert& expert, const Status& status) const;
  void Fail(Expert* expert, const Status& status, ExpertState next, uint64_t delivered_bytes);
  // Leaving.
  void Detach(Expert* expert);
  void Evict(Expert* expert);
  void RetireFromRing(Expert* expert);
  enum class Speculation : uint8_t { kUseful, kLate, kWasted };
  void NoLongerSpeculative(Expert* expert, Speculation outcome, uint64_t bytes);
  bool DropStreamed(Expert* expert);
  void EnterPolicy(Expert* expert);
  uint32_t UnleasedCacheReads() const;
  // Resizing.
  bool AtTarget() const;
  bool ChangeSegments(uint64_t* work_bytes);
  bool CloseExcess(uint64_t* work_bytes);
  bool OpenMissing(uint64_t* work_bytes);
  Status OpenSegment(uint32_t slots);
  bool MapSegment(uint32_t slots, uint64_t* work_bytes);
  void CloseSegment(uint32_t segment);
  uint32_t CheapestSegment(uint32_t most_slots) const;
  uint32_t PartialSegment() const;
  bool EvictColdest(bool closing_too);
  bool VacateClosing(uint64_t* work_bytes);
  void Vacate(Expert* expert, uint64_t* work_bytes);
  bool UnmapRetired(uint64_t* work_bytes);
  uint32_t WantedRing() const;
  void BalanceRing();
  void CheckSegments() const;
  void CheckExpert(const Expert& expert) const;

  const RecordSource& source_;
  ReadScheduler& scheduler_;
  const Clock& clock_;
  const uint32_t top_k_, max_slots_, explicit_ring_;
  const int64_t read_deadline_ns_;
  std::vector<uint32_t> first_expert_;  // of each layer in experts_; one more at the end
  std::vector<Expert> experts_;
  SlotSegments& segments_;
  std::vector<uint8_t> segment_closing_;
  SlotTable slots_;
  std::unique_ptr<EvictionPolicy> policy_;
  ResidencyStats stats_;

  LayerId visiting_;
  uint64_t call_ = 0;
  uint64_t step_ = 1;
  std::vector<Expert*> reserved_;     // enqueued, not yet flushed
  std::vector<ReadOutcome> outcomes_;  // of one Poll
  // Leases that hold no slot: of experts that were in quarantine at lookup.
  uint64_t quarantine_leases_ = 0;
  uint64_t slot_leases_ = 0;
  uint32_t streamed_ = 0;  // experts that wait in the ring for their layer's Acquire
  std::unordered_map<uint32_t, Status> quarantine_;  // by expert index; grows only by failures
};

}  // namespace moraine
