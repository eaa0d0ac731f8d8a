// LeasedExperts: the records of streamed layers out of the residency manager's slots, for a prompt that is
// computed on a GPU.
//
// The manager stays the owner: what is in DRAM is leased, what is not is read from the drive into the ring and
// leased as it lands; a lease ends when the device's copy has (DeviceCopier's mark), so that a slot is
// neither evicted nor overwritten under the copy. While the last records of a layer are on their way the
// drive goes on with the next layer's.
//
//   drive -> slot -> ring in VRAM -> compute         all three at once; copies of at most two layers are
//                                                    held, and where slots are short the oldest is waited for
//
// All experts of a layer that are not in VRAM already are copied, asked for or not: a chunk of some
// hundred tokens wants nearly all, and to know which, copies would have to wait for the layer's router.
// Why through slots and not by GPUDirect: the same reads fill the cache that answers are decoded from.
//
// Threads: the engine thread's. Nothing is allocated after construction, but for messages.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/gpu/streamed_experts.h"
#include "engine/vram_tier.h"
#include "residency/residency_manager.h"

namespace moraine {

class LeasedExperts final : public StreamedExperts {
 public:
  // Both must outlive it. tier: experts that are in VRAM and not copied; null: none.
  LeasedExperts(ResidencyManager& residency, std::vector<uint32_t> experts_per_layer,
                const VramTier* tier = nullptr);

  // kResourceExhausted: no slot is to be had. Errors of reads are the lease's.
  Status CopyLayer(const LayerCopy& layer, DeviceCopier& copier) override;
  void Finish(DeviceCopier& copier) override;

  uint64_t copied_bytes() const { return copied_bytes_; }

 private:
  struct Held {
    Lease lease;
    uint64_t mark = 0;
  };

  void SetAddresses(const LayerCopy& layer) const;
  bool IsInVram(ExpertKey key) const { return tier_ != nullptr && tier_->Find(key) != nullptr; }
  void OrderByResidency(LayerId layer, bool all);
  void PlanStream(uint32_t next);
  void Stream();
  Status CopyReady(const LayerCopy& layer, size_t acquired, DeviceCopier& copier, size_t* copied);
  Status CopyAll(const LayerCopy& layer, DeviceCopier& copier);
  void LetGo(size_t most_held, DeviceCopier& copier);

  ResidencyManager& residency_;
  const std::vector<uint32_t> experts_per_layer_;
  const VramTier* const tier_;
  std::vector<ExpertId> experts_;  // of the layer, in the order of acquisition
  std::vector<Lease> leases_;      // parallel to experts_
  std::vector<Held> held_;         // a ring: copies that have not been seen to end, oldest first
  size_t first_held_ = 0, held_count_ = 0;
  LayerId stream_layer_;
  std::vector<ExpertId> stream_;   // the next layer's
  size_t stream_next_ = 0;
  uint64_t copied_bytes_ = 0;
};

}  // namespace moraine
