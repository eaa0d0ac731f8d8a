// ResidencyManager: which experts are in memory, in which slot, held by whom.
//
// Slots are pieces of host arenas of one size (the largest record). Every slot either caches an
// expert or belongs to the transient ring, through which prefill streams so that a long prompt cannot
// flush what decode needs; the two roles differ only in accounting, so handing a hot expert from the
// ring to the cache is a swap of roles, not a copy.
//
// Why not demand paging (mmap): the kernel sees 4 KiB pages, not experts; it reads with its own
// readahead, evicts by its own recency, and a fault blocks a compute thread. Here a layer's misses are
// one batched submit, and compute goes on with what is there.
//
// Life of a lookup: Acquire counts it as one of hit, cold miss, in-flight miss, prefetch hit, before
// anything waits; absent experts get a slot (evicting by policy) and a read; all reads of the call are
// flushed in one submit. The leases returned are kReady or kPending; Poll drives the reads and turns
// pending leases ready or failed. A lease pins its slot from the reservation on: a slot that is leased
// or under DMA is never evicted or overwritten, not after a deadline either.
//
// Threads: owned by the engine thread, leases included. No locks, no allocation after Create.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "io/read_scheduler.h"
#include "residency/eviction_policy.h"
#include "residency/expert_state.h"
#include "residency/residence.h"
#include "residency/slot_segments.h"

namespace moraine {

// Where records are and whether their bytes are right. The engine implements it over a Store; tests
// and the simulation over nothing.
class RecordSource {
 public:
  struct Location {
    FileId file;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint32_t copies = 1;  // of the file: as often is a record with a wrong checksum read again
  };
  virtual ~RecordSource() = default;
  virtual Location Locate(ExpertKey key) const = 0;
  // A part of a record has arrived in a slot's buffer: what of Verify can be done then, beside the reading
  // of the rest, need not be waited for later. A part may arrive more than once.
  virtual void OnPart(uint32_t /*slot*/, std::span<const std::byte> /*record*/, uint64_t /*offset*/,
                      uint64_t /*length*/) const {}
  // Whether a record was read as it was written; all its parts have arrived in this slot. The error's
  // message names expert, file and offset.
  virtual Status Verify(ExpertKey key, uint32_t slot, std::span<const std::byte> bytes) const = 0;
};

struct ResidencyOptions {
  std::vector<uint32_t> experts_per_layer;
  uint32_t top_k = 1;
  uint32_t slot_count = 0;       // cache and ring together; at least MinimumSlots(top_k)
  uint32_t max_slot_count = 0;   // that SetSlotTarget may ask for; 0: slot_count
  uint32_t ring_slots = 0;       // of slot_count, reserved for prefill; 0: derived
  std::string policy = "heat";
  int64_t read_deadline_ns = 0;  // per demand read; 0: none
};

// One layer's top-k leased at once plus two ring slots, so that prefill can read one expert while
// computing another.
constexpr uint32_t MinimumSlots(uint32_t top_k) { return top_k + 2; }

class ResidencyManager;

// A counted hold on a slot. Move-only; must not outlive the manager. Default: holds nothing.
class Lease {
 public:
  enum class State : uint8_t { kEmpty, kPending, kReady, kFailed };

  Lease() = default;
  Lease(Lease&& other) noexcept;
  Lease& operator=(Lease&& other) noexcept;
  ~Lease();

  State state() const;
  ExpertKey key() const { return key_; }
  // The record's bytes; only when kReady (CHECKed, with the generation).
  const std::byte* data() const;
  // Why it failed; only when kFailed. Names expert, pack and offset.
  const Status& failure() const;
  void Release();

 private:
  friend class ResidencyManager;
  ResidencyManager* manager_ = nullptr;
  ExpertKey key_;
  SlotIndex slot_;
  uint32_t generation_ = 0;
};

enum class AcquireMode : uint8_t {
  kCached,     // decode: misses enter the cache
  kTransient,  // prefill: misses go through the ring; they stay only if the policy prefers them
  // Prefill on a device, to which a layer is copied before its router has spoken: as kTransient, but
  // the policy is told afterwards, by Learn.
  kUpload,
};

enum class PrefetchReason : uint8_t {
  kHeat,       // warm-up: the policy's own opinion; nobody else wants the drive, so read like demand
  kLookahead,  // the layer's router has been asked ahead of time
};

// Counted at lookup, per layer and expert. hit + cold_miss + in_flight_miss + prefetch_hit = lookups.
struct LookupCounters {
  uint64_t hit = 0, cold_miss = 0, in_flight_miss = 0, prefetch_hit = 0;
};

struct ResidencyStats {
  LookupCounters decode, prefill;  // kCached and kTransient lookups
  uint64_t evictions = 0, quarantined = 0, failed_reads = 0;
  uint64_t healed = 0;  // records whose checksum was wrong at first and right when read again
  // Experts read ahead. Each becomes used or wasted: used are those that a lookup named, either when
  // they were ready (useful) or while they were still being read (late).
  uint64_t prefetch_issued = 0, prefetch_used = 0, prefetch_late = 0, prefetch_wasted = 0;
  // Their records' bytes; of reads given up, what the drive had delivered by then.
  uint64_t prefetch_useful_bytes = 0, prefetch_late_bytes = 0, prefetch_wasted_bytes = 0;
  uint64_t bytes_read = 0;
  int64_t verify_ns = 0;  // checksums, within Poll
  uint32_t slot_count = 0, ring_slots = 0, resident = 0;
  // What SetSlotTarget asked for; slots that no longer count and whose memory was still held after
  // the last AdvanceResize.
  uint32_t slot_target = 0, closing_slots = 0;
  uint64_t moved = 0;  // experts copied out of closing slots
  uint64_t slot_bytes = 0;
};

class ResidencyManager {
 public:
  // Maps slot_count slots; `segments`, none of them mapped, outlive the manager.
  // kInvalidArgument naming the minimum when there are too few slots, kResourceExhausted when the
  // memory is not there.
  static Result<std::unique_ptr<ResidencyManager>> Create(
      const ResidencyOptions& options, SlotSegments& segments, const RecordSource& source,
      ReadScheduler& scheduler, const Clock& clock = RealClock());
  ~ResidencyManager();  // all leases released; waits for reads in flight

  // A decode step or a prefill chunk of `tokens` tokens begins.
  void BeginStep(uint32_t tokens);
  // Looks up `experts` (distinct) of a layer and leases them in order; weights[i] (optional) tokens
  // route to experts[i]. Returns how many leases were given: fewer than asked only when no slot can
  // be had before the caller releases some. In kCached mode with at most top_k experts and no other
  // lease held, it is always all of them, slots still draining aside.
  size_t Acquire(LayerId layer, std::span<const ExpertId> experts, std::span<const float> weights,
                 AcquireMode mode, std::span<Lease> leases);
  // What a prefill on a device found out: weights[i] tokens took experts[i] of a layer. In ascending order of
  // layers.
  void Learn(LayerId layer, std::span<const ExpertId> experts, std::span<const float> weights);
  // weight tokens took an expert that is computed out of another memory than the slots: it stays hot in what
  // outlives the run, and fades in the cache.
  void NoteUseElsewhere(ExpertKey key, float weight);
  // Leases an expert that is in the cache now; otherwise the lease is empty. Not a lookup: nothing is counted, the
  // policy hears nothing, no read begins or is given up.
  Lease HoldReady(ExpertKey key);
  // Speculation: reads absent experts into free slots or over other layers' experts. From a lookahead at
  // low priority, over those that are not hot; what the layer's Acquire then does not name, and has not
  // landed, is given up. From heat (warming) like demand, over those that the policy does not prefer.
  // Returns how many reads were queued.
  size_t Prefetch(LayerId layer, std::span<const ExpertId> experts, PrefetchReason reason);
  // Speculation of a prefill: as Prefetch, but read like demand and into free slots only, the ring's
  // included, where the experts stay until their layer's Acquire. Returns how many of `experts`, from
  // the first on, are present or being read: fewer than all when there is no free slot now.
  size_t Stream(LayerId layer, std::span<const ExpertId> experts);
  // Gives up speculation that has not landed, and streamed experts that nobody asked for (a new request,
  // another routing).
  void CancelPrefetches();
  // Drives the reads. wait_ns as in ReadScheduler::Poll; returns the number of leases and prefetches
  // decided.
  size_t Poll(int64_t wait_ns);
  // Takes in what has arrived and issues nothing: before the lookups of a layer, whose misses must not
  // queue behind speculation that was issued a moment earlier.
  void Collect();

  // How many slots there shall be; takes effect by AdvanceResize. kInvalidArgument naming the limit
  // below the minimum and above max_slot_count.
  Status SetSlotTarget(uint32_t slots);
  // Goes towards the target without waiting for anything; to be called between steps. Takes back
  // whole segments of slots: what the policy would keep is copied to other slots, leases and reads
  // are left to end by themselves. Stops after mapping, copying or unmapping about `work_bytes`, so
  // that a token is not kept waiting. True while something is left to do.
  bool AdvanceResize(uint64_t work_bytes);

  ExpertState state(ExpertKey key) const;
  Residence residence(ExpertKey key) const;
  uint64_t leases() const;  // held now
  const ResidencyStats& stats() const;
  const LookupCounters& counters(ExpertKey key) const;  // decode and prefill together
  EvictionPolicy& policy();
  const EvictionPolicy& policy() const;
  // CHECKs every invariant listed in residency_invariants.cc; O(slots + experts). Tests call it after
  // each step.
  void CheckInvariants() const;

 private:
  friend class Lease;
  ResidencyManager();
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
