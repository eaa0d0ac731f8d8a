// VramTier: which experts lie in the VRAM slots for single experts (gpu/host_experts.h), and which
// shall.
//
//            Start: a copy out of a leased DRAM slot          its mark has been reached
//    free  ------------------------------------------> filling ------------------------> live
//      ^                                                 ^                                |
//      |                                                 +-- Start, over a colder one ----+
//      +---- Drop: the device has failed
//
// All arrows are taken by BeginStep, between two steps: while one is computed, a live slot holds
// the bytes that the map says and nobody writes it. The lease on the DRAM slot is held until the
// copy has been made. Only what is in DRAM is copied; the drive is never read for it. Tiers exclude
// each other by themselves: what is computed in VRAM is not asked for in DRAM any more, and fades
// there.
//
// Heat is a decayed count of the tokens that routed to an expert, prompts' too. A free slot takes
// whatever has any. An expert takes the place of a colder one if that pays:
//
//   gain     (heat - colder heat) is what the swap saves of reads elsewhere in the next
//   kMemoryTokens
//            tokens, and a copy costs about one such read: at least kLeastGain of them
//   noise    counts of a steady workload differ by chance, by the root of their mean: at least
//            kDeviations of these, or two experts of the same worth would take turns
//
// Copies are paid out of a credit in bytes that each step adds to: the share of the link that the
// caller has for it.
//
// Cost: a dozen bytes an expert; a step looks at the marks of its copies, and every kPlanSteps
// steps at the experts that were routed to since, and at the slots. Threads: owned by one thread.
// Nothing is allocated after Attach.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "engine/gpu/host_experts.h"
#include "engine/gpu/streamed_experts.h"
#include "residency/decayed_counts.h"
#include "residency/residency_manager.h"

namespace moraine {

struct VramTierOptions {
  std::vector<uint32_t> experts_per_layer;
  std::vector<uint64_t> record_bytes;  // by layer
  uint32_t most_copies = 16;           // on their way at once, each with a lease
};

struct VramTierCounts {
  uint32_t slots = 0, live = 0;
  uint64_t promotions = 0, demotions = 0;  // copies begun; of these, over another expert
  uint64_t copied_bytes = 0;
};

class VramTier {
 public:
  // Half of what it knows is of the last 350 tokens: a change of topic shows within an answer.
  static constexpr double kMemoryTokens = 500;
  static constexpr float kLeastGain = 2, kDeviations = 5;
  static constexpr uint32_t kPlanSteps = 8;

  // The manager must outlive it.
  VramTier(const VramTierOptions& options, ResidencyManager& residency);
  ~VramTier();  // waits for copies

  // The slots, each of at least the largest record, and who copies to them; both outlive the tier.
  void Attach(const VramSlots& slots, DeviceCopier& copier);
  // Of all layers' experts, layer by layer, in the residency manager's units
  // (EvictionPolicy::ExportHeat): what to begin with.
  void ImportHeat(std::span<const float> heat);

  // A step of so many tokens begins, and nothing of the one before is computed any more.
  // copy_bytes: what may be copied beside it, added to what is left of the steps before. An error
  // is the device's: nothing is live then.
  Status BeginStep(uint32_t tokens, uint64_t copy_bytes);
  // The tokens of this step that took an expert.
  void Note(ExpertKey key, float tokens);
  // Where an expert is on the device, until the next BeginStep; null: it is not there.
  const std::byte* Find(ExpertKey key) const {
    const uint32_t slot = slot_of_[IndexOf(key)];
    return slot == kNoSlot || !slots_[slot].live ? nullptr : memory_.slot(slot);
  }
  // Whether a slot is free that something could be copied to.
  bool filling() const { return !free_.empty() && memory_.count > 0; }
  // Waits for copies and lets go of what they read; live is then what was copied.
  void Finish();
  // The device has failed: nothing is live any more, and nothing is copied.
  void Drop();

  const VramTierCounts& counts() const { return counts_; }
  uint32_t copies_in_flight() const { return static_cast<uint32_t>(copies_.size()); }
  void set_most_copies(uint32_t copies) { most_copies_ = copies; }
  double heat(ExpertKey key) const { return heat_.Get(IndexOf(key)); }
  // CHECKs that map and slots agree. Tests call it after each step.
  void CheckInvariants() const;

 private:
  static constexpr uint32_t kNoSlot = UINT32_MAX, kNoExpert = UINT32_MAX;
  struct Slot {
    uint32_t expert = kNoExpert;
    bool live = false;
  };
  struct CopyInFlight {
    Lease lease;
    uint32_t slot = 0;
    uint64_t mark = 0;
  };
  struct Candidate {
    uint32_t expert = 0, slot = kNoSlot;  // slot: of the colder one
  };

  uint32_t IndexOf(ExpertKey key) const { return first_[key.layer.value()] + key.expert.value(); }
  bool Pays(uint32_t hot, uint32_t cold) const;
  void TakeArrivals(bool wait);
  void Plan();
  void ChooseCandidates();
  void PairWithColder();
  Status Start();
  Status StartOne(const Candidate& candidate, bool* started);

  ResidencyManager& residency_;
  std::vector<uint32_t> first_;  // of each layer; one more at the end
  std::vector<ExpertKey> keys_;
  const std::vector<uint64_t> record_bytes_;
  DecayedCounts heat_;
  VramSlots memory_;
  DeviceCopier* copier_ = nullptr;
  uint32_t most_copies_ = 0;
  bool dropped_ = false;
  std::vector<Slot> slots_;
  std::vector<uint32_t> slot_of_;  // by expert
  std::vector<uint32_t> free_;
  std::vector<CopyInFlight> copies_;  // oldest first
  uint64_t credit_bytes_ = 0;
  uint32_t steps_since_plan_ = kPlanSteps;
  // Experts with heat that were routed to since the last plan, or could not be placed by it.
  std::vector<uint32_t> touched_;
  std::vector<uint8_t> is_touched_;
  std::vector<uint32_t> ranked_;       // scratch of Plan: hottest candidates, coldest slots
  std::vector<Candidate> candidates_;  // of the last plan; next_candidate_ is next
  size_t next_candidate_ = 0;
  VramTierCounts counts_;
};

}  // namespace moraine
