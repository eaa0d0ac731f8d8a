#include "residency/residency_manager.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "residency/residency_manager_impl.h"

namespace moraine {
namespace {

// Of the experts that the next layer's router names early, 71 to 89 % are taken (78 % in the demo model).
constexpr float kLookaheadRecall = 0.75f;

}  // namespace

ResidencyManager::Impl::Impl(const ResidencyOptions& options, SlotSegments& segments,
                             const RecordSource& source, ReadScheduler& scheduler,
                             const Clock& clock, std::unique_ptr<EvictionPolicy> policy)
    : source_(source),
      scheduler_(scheduler),
      clock_(clock),
      top_k_(options.top_k),
      max_slots_(std::max(options.slot_count, options.max_slot_count)),
      explicit_ring_(options.ring_slots),
      read_deadline_ns_(options.read_deadline_ns),
      segments_(segments),
      segment_closing_(segments.segment_count(), 0),
      slots_(segments.segment_count() * segments.slots_per_segment()),
      policy_(std::move(policy)) {
  for (uint32_t layer = 0; layer < options.experts_per_layer.size(); ++layer) {
    first_expert_.push_back(static_cast<uint32_t>(experts_.size()));
    for (uint32_t id = 0; id < options.experts_per_layer[layer]; ++id) {
      Expert& expert = experts_.emplace_back();
      expert.key = {LayerId(layer), ExpertId(id)};
      expert.location = source.Locate(expert.key);
    }
  }
  first_expert_.push_back(static_cast<uint32_t>(experts_.size()));
  stats_.slot_target = options.slot_count;
  stats_.slot_bytes = segments.slot_bytes();
  reserved_.reserve(slots_.size());
  // At most one outcome that keeps the buffer and one that releases it, for each slot.
  outcomes_.reserve(2 * slots_.size());
  scheduler_.SetProgress(this);
}

ResidencyManager::Impl::~Impl() {
  CHECK(slot_leases_ + quarantine_leases_ == 0, "a lease outlives its manager");
  CancelPrefetches();
  while (!slots_.in_flight().empty()) {
    const size_t before = slots_.in_flight().size();
    CHECK(Poll(-1) > 0 || slots_.in_flight().size() < before, "a read was lost");
  }
  scheduler_.SetProgress(nullptr);
}

Status ResidencyManager::Impl::CheckRecords() const {
  for (const Expert& expert : experts_) {
    const uint64_t bytes = expert.location.bytes;
    if (bytes > 0 && bytes <= stats_.slot_bytes) continue;
    return InvalidArgument(fmt::format("layer {} expert {}: its record of {} bytes does not fit "
                                       "slots of {} bytes",
                                       expert.key.layer.value(), expert.key.expert.value(), bytes,
                                       stats_.slot_bytes));
  }
  return OkStatus();
}

// --- Acquire and Prefetch ---------------------------------------------------------------------

void ResidencyManager::Impl::NameInCall(LayerId layer, std::span<const ExpertId> ids) {
  ++call_;
  for (ExpertId id : ids) {
    Expert& expert = experts_[IndexOf({layer, id})];
    CHECK(expert.call != call_, "an expert is named twice in one call");
    expert.call = call_;
  }
}

size_t ResidencyManager::Impl::Acquire(LayerId layer, std::span<const ExpertId> ids,
                                       std::span<const float> weights, AcquireMode mode,
                                       std::span<Lease> leases, ResidencyManager* manager) {
  CHECK(weights.empty() || weights.size() == ids.size(), "one weight for each expert, or none");
  CHECK(leases.size() >= ids.size(), "one lease for each expert");
  visiting_ = layer;
  NameInCall(layer, ids);
  GiveUpUnwanted(layer);
  LookupCounters& totals = mode == AcquireMode::kCached ? stats_.decode : stats_.prefill;
  // All of the call first: the victims of the first misses hang on what the others tell of the token.
  for (size_t i = 0; mode != AcquireMode::kUpload && i < ids.size(); ++i) {
    Expert& expert = experts_[IndexOf({layer, ids[i]})];
    if (std::exchange(expert.access_told_in, step_) == step_) continue;
    policy_->OnAccess(expert.key, weights.empty() ? 1.0f : weights[i]);
  }
  size_t given = 0;
  for (; given < ids.size(); ++given) {
    Expert& expert = experts_[IndexOf({layer, ids[given]})];
    uint64_t LookupCounters::*kind = nullptr;
    if (!Hold(&expert, mode, &kind)) break;
    ++(expert.counters.*kind);
    ++(totals.*kind);
    expert.access_told_in = 0;

    Lease lease;
    lease.manager_ = manager;
    lease.key_ = expert.key;
    lease.slot_ = expert.slot;
    if (expert.slot == kNoSlot) {
      ++quarantine_leases_;
    } else {
      lease.generation_ = slots_[expert.slot].generation;
    }
    leases[given] = std::move(lease);
  }
  FlushReads();
  return given;
}

Lease ResidencyManager::Impl::HoldReady(ExpertKey key, ResidencyManager* manager) {
  Expert& expert = experts_[IndexOf(key)];
  Lease lease;
  const bool ready = expert.state == ExpertState::kReady || expert.state == ExpertState::kLeased;
  // What waits in the ring for its layer's Acquire would leave it with this lease.
  if (!ready || slots_[expert.slot].role == SlotRole::kRing) return lease;
  if (expert.speculative) NoLongerSpeculative(&expert, Speculation::kUseful, expert.location.bytes);
  if (expert.state == ExpertState::kReady) Transition(&expert.state, ExpertState::kLeased);
  ++slots_[expert.slot].lease_count;
  ++slot_leases_;
  lease.manager_ = manager;
  lease.key_ = key;
  lease.slot_ = expert.slot;
  lease.generation_ = slots_[expert.slot].generation;
  return lease;
}

// The router has spoken: what its lookahead guessed wrongly and has not landed is given up, and what was
// streamed for nothing leaves the ring.
void ResidencyManager::Impl::GiveUpUnwanted(LayerId layer) {
  if (scheduler_.speculative_pending() > 0) {
    for (const SlotIndex index : slots_.in_flight()) {
      if (slots_[index].expert == kNoExpert) continue;
      const Expert& expert = experts_[slots_[index].expert];
      if (expert.speculative && expert.key.layer == layer && expert.call != call_) {
        scheduler_.Cancel(slots_[index].read);
      }
    }
  }
  for (uint32_t i = first_expert_[layer.value()]; streamed_ > 0 && i < first_expert_[layer.value() + 1];
       ++i) {
    if (experts_[i].call != call_) DropStreamed(&experts_[i]);
  }
}

bool ResidencyManager::Impl::DropStreamed(Expert* expert) {
  const bool waits_in_ring = expert->state == ExpertState::kReady &&
                             slots_[expert->slot].role == SlotRole::kRing;
  if (!waits_in_ring) return false;
  --streamed_;
  RetireFromRing(expert);
  return true;
}

// Makes the expert's slot count one more lease, starting a read if there is none. False if there is
// no slot to be had. An expert in quarantine is held without a slot, its failure being known.
bool ResidencyManager::Impl::Hold(Expert* expert, AcquireMode mode,
                                  uint64_t LookupCounters::** kind) {
  *kind = &LookupCounters::cold_miss;
  switch (expert->state) {
    case ExpertState::kReady:
      *kind = expert->speculative ? &LookupCounters::prefetch_hit : &LookupCounters::hit;
      Transition(&expert->state, ExpertState::kLeased);
      streamed_ -= slots_[expert->slot].role == SlotRole::kRing;
      if (expert->speculative) {
        NoLongerSpeculative(expert, Speculation::kUseful, expert->location.bytes);
      }
      break;
    case ExpertState::kLeased:
      *kind = &LookupCounters::hit;
      break;
    case ExpertState::kReading:
      *kind = &LookupCounters::in_flight_miss;
      // No effect on a demand read, nor on one that is being cancelled: that is read again when the
      // device has let go.
      scheduler_.Promote(slots_[expert->slot].read, DemandDeadline());
      if (expert->speculative) {
        NoLongerSpeculative(expert, Speculation::kLate, expert->location.bytes);
      }
      break;
    case ExpertState::kAbsent: {
      const SlotIndex slot = TakeSlot(IndexOf(expert->key), mode);
      if (slot == kNoSlot) return false;
      StartRead(expert, slot, ReadPriority::kDemand);
      break;
    }
    case ExpertState::kDraining:  // too late already: the lease gets the same failure
      break;
    case ExpertState::kQuarantined:
      return true;
    case ExpertState::kReserved:
    case ExpertState::kEvicting:
      CHECK(false, "reserved and evicting do not outlast a call");
  }
  ++slots_[expert->slot].lease_count;
  ++slot_leases_;
  return true;
}

SlotIndex ResidencyManager::Impl::TakeSlot(uint32_t expert_index, AcquireMode mode) {
  SlotIndex slot = slots_.Take(SlotRole::kCache, expert_index);
  // A shrinking budget can take the ring while leases hold everything else. Until it is back, even
  // an expert that this call names later may have to go.
  if (slot == kNoSlot && slots_.open_count(SlotRole::kRing) == 0 &&
      EvictColdest(/*closing_too=*/false)) {
    return slots_.Take(SlotRole::kCache, expert_index);
  }
  if (slot == kNoSlot && mode == AcquireMode::kCached) {
    // The visited layer's experts that this token does not take are a whole turn from their next use.
    if (const std::optional<ExpertKey> victim = Victim(/*visiting_layer_too=*/true)) {
      ++stats_.evictions;
      Evict(&experts_[IndexOf(*victim)]);
      slot = slots_.Take(SlotRole::kCache, expert_index);
    }
  }
  // In decode only when every cache slot is leased or under DMA.
  if (slot == kNoSlot) slot = slots_.Take(SlotRole::kRing, expert_index);
  // Demand before speculation: what was streamed and has not been asked for makes room; if need be, even
  // what this call names later.
  for (const bool named : {false, true}) {
    for (size_t i = 0; slot == kNoSlot && streamed_ > 0 && i < experts_.size(); ++i) {
      if ((experts_[i].call == call_) != named || !DropStreamed(&experts_[i])) continue;
      slot = slots_.Take(SlotRole::kRing, expert_index);
    }
  }
  return slot;
}

size_t ResidencyManager::Impl::Prefetch(LayerId layer, std::span<const ExpertId> ids,
                                        PrefetchReason reason) {
  NameInCall(layer, ids);
  if (reason == PrefetchReason::kLookahead) policy_->OnPredicted(layer, ids, kLookaheadRecall);
  size_t queued = 0;
  uint32_t unleased_reads = UnleasedCacheReads();
  for (ExpertId id : ids) {
    if (unleased_reads + top_k_ >= slots_.open_count(SlotRole::kCache)) break;
    Expert& expert = experts_[IndexOf({layer, id})];
    if (expert.state != ExpertState::kAbsent) continue;
    const SlotIndex slot = TakeSlotForSpeculation(IndexOf(expert.key), reason);
    if (slot == kNoSlot) continue;
    StartSpeculation(&expert, slot,
                     reason == PrefetchReason::kHeat ? ReadPriority::kDemand
                                                     : ReadPriority::kSpeculative);
    ++unleased_reads;
    ++queued;
  }
  FlushReads();
  return queued;
}

size_t ResidencyManager::Impl::Stream(LayerId layer, std::span<const ExpertId> ids) {
  NameInCall(layer, ids);
  size_t dealt_with = 0;
  uint32_t unleased_reads = UnleasedCacheReads();
  for (; dealt_with < ids.size(); ++dealt_with) {
    Expert& expert = experts_[IndexOf({layer, ids[dealt_with]})];
    if (expert.state != ExpertState::kAbsent) continue;
    SlotIndex slot = kNoSlot;
    if (unleased_reads + top_k_ < slots_.open_count(SlotRole::kCache)) {
      slot = slots_.Take(SlotRole::kCache, IndexOf(expert.key));
      unleased_reads += slot != kNoSlot;
    }
    if (slot == kNoSlot) slot = slots_.Take(SlotRole::kRing, IndexOf(expert.key));
    if (slot == kNoSlot) break;
    // Like demand, as deep as the ring: nobody looks at the drive while a chunk's attention is computed,
    // which is long enough to read all of these, and nearly all of them will be wanted.
    StartSpeculation(&expert, slot, ReadPriority::kDemand);
  }
  FlushReads();
  return dealt_with;
}

void ResidencyManager::Impl::StartSpeculation(Expert* expert, SlotIndex slot,
                                              ReadPriority priority) {
  StartRead(expert, slot, priority);
  expert->speculative = true;
  ++stats_.prefetch_issued;
}

SlotIndex ResidencyManager::Impl::TakeSlotForSpeculation(uint32_t expert_index,
                                                         PrefetchReason reason) {
  const SlotIndex slot = slots_.Take(SlotRole::kCache, expert_index);
  if (slot != kNoSlot) return slot;
  const std::optional<ExpertKey> victim = Victim(/*visiting_layer_too=*/false);
  if (!victim) return kNoSlot;
  const bool worth_it = reason == PrefetchReason::kLookahead
                            ? !policy_->IsHot(*victim)
                            : policy_->Prefers(experts_[expert_index].key, *victim, visiting_);
  if (!worth_it) return kNoSlot;
  ++stats_.evictions;
  Evict(&experts_[IndexOf(*victim)]);
  return slots_.Take(SlotRole::kCache, expert_index);
}

// Reads that nobody has leased cannot be evicted; speculation leaves one layer's worth of slots out of
// them, so that the next Acquire never finds all slots under DMA.
uint32_t ResidencyManager::Impl::UnleasedCacheReads() const {
  uint32_t count = 0;
  for (SlotIndex index : slots_.in_flight()) {
    count += slots_[index].role == SlotRole::kCache && slots_[index].lease_count == 0;
  }
  return count;
}

void ResidencyManager::Impl::StartRead(Expert* expert, SlotIndex slot, ReadPriority priority) {
  Transition(&expert->state, ExpertState::kReserved);
  expert->slot = slot;
  expert->wrong_reads = 0;
  ReadInto(*expert, priority);
  reserved_.push_back(expert);
}

void ResidencyManager::Impl::ReadInto(const Expert& expert, ReadPriority priority) {
  RecordRead read;
  read.file = expert.location.file;
  read.offset = expert.location.offset;
  read.length = expert.location.bytes;
  read.buffer = slots_[expert.slot].data;
  read.priority = priority;
  // At first the chunks come from anywhere; then the whole record from one copy after the other.
  if (expert.wrong_reads > 0) read.copy = expert.wrong_reads - 1;
  // Speculation waits for an idle drive, however long; its deadline comes with the demand.
  if (priority == ReadPriority::kDemand) read.deadline_ns = DemandDeadline();
  slots_.BeginDma(expert.slot, scheduler_.Enqueue(read));
}

int64_t ResidencyManager::Impl::DemandDeadline() const {
  return read_deadline_ns_ > 0 ? clock_.NowNs() + read_deadline_ns_ : 0;
}

void ResidencyManager::Impl::FlushReads() {
  scheduler_.Flush();
  for (Expert* expert : reserved_) Transition(&expert->state, ExpertState::kReading);
  reserved_.clear();
}

void ResidencyManager::Impl::CancelPrefetches() {
  for (SlotIndex index : slots_.in_flight()) {
    if (experts_[slots_[index].expert].speculative) scheduler_.Cancel(slots_[index].read);
  }
  for (Expert& expert : experts_) {
    if (streamed_ == 0) break;
    DropStreamed(&expert);
  }
}

// --- Leaving ------------------------------------------------------------------------------------

void ResidencyManager::Impl::Detach(Expert* expert) {
  const SlotIndex index = std::exchange(expert->slot, kNoSlot);
  slots_[index].expert = kNoExpert;
  slots_.FreeIfUnused(index);
}

void ResidencyManager::Impl::Evict(Expert* expert) {
  Transition(&expert->state, ExpertState::kEvicting);
  --stats_.resident;
  if (expert->speculative) {
    NoLongerSpeculative(expert, Speculation::kWasted, expert->location.bytes);
  }
  if (std::exchange(expert->in_policy, false)) policy_->OnEvict(expert->key);
  Transition(&expert->state, ExpertState::kAbsent);
  Detach(expert);
}

void ResidencyManager::Impl::EnterPolicy(Expert* expert) {
  policy_->OnInsert(expert->key);
  expert->in_policy = true;
}

// A ring expert whose last lease is gone joins the cache, by a trade of roles, or goes.
void ResidencyManager::Impl::RetireFromRing(Expert* expert) {
  if (slots_[expert->slot].phase == SlotPhase::kClosing) {
    Evict(expert);
    return;
  }
  if (slots_.free_count(SlotRole::kCache) == 0) {
    const std::optional<ExpertKey> victim = Victim(/*visiting_layer_too=*/false);
    if (!victim || !policy_->Prefers(expert->key, *victim, visiting_)) {
      Evict(expert);
      return;
    }
    ++stats_.evictions;
    Evict(&experts_[IndexOf(*victim)]);
  }
  slots_.TradeForFreeCacheSlot(expert->slot);
  EnterPolicy(expert);
}

void ResidencyManager::Impl::NoLongerSpeculative(Expert* expert, Speculation outcome,
                                                 uint64_t bytes) {
  expert->speculative = false;
  stats_.prefetch_used += outcome != Speculation::kWasted;
  stats_.prefetch_late += outcome == Speculation::kLate;
  stats_.prefetch_wasted += outcome == Speculation::kWasted;
  (outcome == Speculation::kUseful ? stats_.prefetch_useful_bytes
   : outcome == Speculation::kLate ? stats_.prefetch_late_bytes
                                   : stats_.prefetch_wasted_bytes) += bytes;
}

Residence ResidencyManager::Impl::ResidenceOf(ExpertKey key) const {
  const Expert& expert = At(key);
  switch (expert.state) {
    case ExpertState::kReserved:
    case ExpertState::kReading:
      return expert.speculative ? Residence::kReadingAhead : Residence::kReading;
    case ExpertState::kReady:
    case ExpertState::kLeased:
      if (slots_[expert.slot].role == SlotRole::kRing) return Residence::kRing;
      return expert.speculative ? Residence::kMemoryAhead : Residence::kMemory;
    case ExpertState::kQuarantined: return Residence::kLost;
    case ExpertState::kAbsent:
    case ExpertState::kEvicting:
    case ExpertState::kDraining: break;
  }
  return Residence::kDrive;
}

// --- ResidencyManager ---------------------------------------------------------------------------

ResidencyManager::ResidencyManager() = default;
ResidencyManager::~ResidencyManager() = default;

Result<std::unique_ptr<ResidencyManager>> ResidencyManager::Create(
    const ResidencyOptions& options, SlotSegments& segments, const RecordSource& source,
    ReadScheduler& scheduler, const Clock& clock) {
  CHECK(segments.mapped_slots() == 0, "the segments are in use");
  if (options.top_k == 0) return InvalidArgument("top_k 0: expected at least 1");
  const uint32_t minimum = MinimumSlots(options.top_k);
  if (options.slot_count < minimum) {
    return InvalidArgument(fmt::format("{} expert slots: the minimum for top-{} routing is {} ({})",
                                       options.slot_count, options.top_k, minimum,
                                       "one layer's experts and two for prefill"));
  }
  if (options.ring_slots != 0 &&
      (options.ring_slots < 2 || options.ring_slots > options.slot_count - options.top_k)) {
    return InvalidArgument(fmt::format("{} ring slots of {}: expected 2 to {}", options.ring_slots,
                                       options.slot_count, options.slot_count - options.top_k));
  }
  const uint64_t room = uint64_t{segments.segment_count()} * segments.slots_per_segment();
  if (room < std::max(options.slot_count, options.max_slot_count)) {
    return InvalidArgument(fmt::format("the segments have room for {} slots: expected {}", room,
                                       std::max(options.slot_count, options.max_slot_count)));
  }
  // What is cache and what is ring is known when the slots are mapped.
  PolicyShape shape{options.experts_per_layer, options.top_k, options.slot_count};
  ASSIGN_OR_RETURN(std::unique_ptr<EvictionPolicy> policy,
                   CreateEvictionPolicy(options.policy, shape));
  std::unique_ptr<ResidencyManager> manager(new ResidencyManager());
  manager->impl_ =
      std::make_unique<Impl>(options, segments, source, scheduler, clock, std::move(policy));
  RETURN_IF_ERROR(manager->impl_->CheckRecords());
  RETURN_IF_ERROR(manager->impl_->MapSlots());
  return manager;
}

void ResidencyManager::BeginStep(uint32_t tokens) { impl_->BeginStep(tokens); }
size_t ResidencyManager::Acquire(LayerId layer, std::span<const ExpertId> experts,
                                 std::span<const float> weights, AcquireMode mode,
                                 std::span<Lease> leases) {
  return impl_->Acquire(layer, experts, weights, mode, leases, this);
}
void ResidencyManager::Learn(LayerId layer, std::span<const ExpertId> experts,
                             std::span<const float> weights) {
  CHECK(weights.size() == experts.size(), "one weight for each expert");
  for (size_t i = 0; i < experts.size(); ++i) {
    impl_->policy().OnAccess({layer, experts[i]}, weights[i]);
  }
}
void ResidencyManager::NoteUseElsewhere(ExpertKey key, float weight) {
  impl_->policy().OnUseElsewhere(key, weight);
}
Lease ResidencyManager::HoldReady(ExpertKey key) { return impl_->HoldReady(key, this); }
size_t ResidencyManager::Prefetch(LayerId layer, std::span<const ExpertId> experts,
                                  PrefetchReason reason) {
  return impl_->Prefetch(layer, experts, reason);
}
size_t ResidencyManager::Stream(LayerId layer, std::span<const ExpertId> experts) {
  return impl_->Stream(layer, experts);
}
void ResidencyManager::CancelPrefetches() { impl_->CancelPrefetches(); }
size_t ResidencyManager::Poll(int64_t wait_ns) { return impl_->Poll(wait_ns); }
Status ResidencyManager::SetSlotTarget(uint32_t slots) { return impl_->SetSlotTarget(slots); }
bool ResidencyManager::AdvanceResize(uint64_t work_bytes) {
  return impl_->AdvanceResize(work_bytes);
}
void ResidencyManager::Collect() { impl_->Collect(); }
ExpertState ResidencyManager::state(ExpertKey key) const { return impl_->At(key).state; }
Residence ResidencyManager::residence(ExpertKey key) const { return impl_->ResidenceOf(key); }
uint64_t ResidencyManager::leases() const { return impl_->leases(); }
const ResidencyStats& ResidencyManager::stats() const { return impl_->stats(); }
const LookupCounters& ResidencyManager::counters(ExpertKey key) const {
  return impl_->At(key).counters;
}
EvictionPolicy& ResidencyManager::policy() { return impl_->policy(); }
const EvictionPolicy& ResidencyManager::policy() const { return std::as_const(*impl_).policy(); }
void ResidencyManager::CheckInvariants() const { impl_->CheckInvariants(); }

}  // namespace moraine
