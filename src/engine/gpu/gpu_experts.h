// GpuExperts: the routed experts' records of all layers, or of a range of them, where the VRAM plan put them.
//
//   anchored layers   in VRAM
//   streamed layers   in page-locked DRAM. Prefill reads them from a ring of slots in VRAM, a layer each,
//                     which a second stream fills while the first computes. Decode reads the few records
//                     that a token wants in place, over the link.
//   hot slots         in VRAM, for single experts; whose is which, others know (host_experts.h)
//   fed layers        streamed ones whose records somebody else has (streamed_experts.h), who copies each layer
//                     into the ring when it is asked for; the host waits for the drive with him.
//
// The ring is cyclic over the streamed layers and runs on from one chunk to the next, so the first
// layers of a chunk are on their way before it begins. Events order the two streams, the host waits for none:
//
//   copied    (copy stream)     before compute reads the slot
//   released  (compute stream)  before the next copy writes it
//
// Threads: owned by one thread. Nothing is allocated after Load.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/status.h"
#include "compute/encoding.h"
#include "engine/gpu/host_experts.h"
#include "engine/gpu/stream_copier.h"
#include "engine/gpu/vram_needs.h"
#include "engine/gpu/vram_plan.h"
#include "io/block_reader.h"
#include "memory/cuda/gpu_runtime.h"
#include "memory/cuda/link_pacer.h"
#include "memory/host_arena.h"
#include "store/store.h"

namespace moraine {

class GpuExperts {
 public:
  struct Options {
    LayerRange layers = {};
    BlockReaderOptions io;
    int threads = 0;
    StreamedExperts* source = nullptr;  // of streamed layers; null: page-locked memory of its own
    std::shared_ptr<LinkSchedule> link;  // emulated, for copies of streamed layers; null: none
    std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress;
  };
  // Reads and checks all records. kResourceExhausted if VRAM or page-locked DRAM does not suffice.
  static Result<std::unique_ptr<GpuExperts>> Load(const Store& store, const VramPlan& plan,
                                                  const Options& options);
  ~GpuExperts();  // waits for copies

  // Addresses of a layer's records by expert, on the device: where they lie for good. For reading the
  // few that a token wants. Not of fed layers.
  const std::byte* const* Records(uint32_t layer) const { return layers_[layer].table; }

  // For reading all of them: the same for an anchored layer, a slot of the ring for a streamed one; work
  // enqueued on `compute` from now on finds the records there. Release when it is enqueued. One layer at a
  // time; layers in ascending order keep the ring ahead.
  Result<const std::byte* const*> Acquire(uint32_t layer, gpu::Stream compute);
  Status Release(uint32_t layer, gpu::Stream compute);
  bool fed() const { return source_ != nullptr && !streamed_.empty(); }
  VramSlots hot_slots() const { return hot_slots_; }
  // A chunk has ended: whoever feeds gets his records back.
  void FinishFeeding();

 private:
  struct Layer {
    uint32_t expert_count = 0;
    uint64_t record_bytes = 0;
    std::byte* memory = nullptr;      // VRAM, or DRAM of a streamed layer
    const std::byte* const* table = nullptr;
    bool streamed = false;
    uint32_t streamed_index = 0;
    uint64_t bytes() const { return expert_count * record_bytes; }
  };
  struct Slot {
    std::byte* memory = nullptr;
    // By streamed index: where a layer's records lie in this slot.
    std::vector<const std::byte* const*> tables;
    std::byte* fed_table = nullptr;  // instead, where a source may leave records out
    uint32_t layer = UINT32_MAX;
    gpu::Event copied, released;
  };

  GpuExperts() = default;
  Status Place(const Manifest& manifest, LayerRange range, const VramPlan& plan);
  Status MakeRing(const VramPlan& plan);
  Status WriteTables();
  Status MakeFedTables();
  Status Fill(Slot& slot);
  Status Feed(Slot& slot, const Layer& layer);
  Status Rewind(uint32_t streamed_index);

  std::vector<Layer> layers_;
  std::vector<uint32_t> streamed_;  // layers
  HostArena host_;
  gpu::PageLock lock_;
  gpu::DeviceMemory anchored_, ring_, tables_, hot_, fed_tables_;
  VramSlots hot_slots_;
  // With hot slots: by streamed index, where a chunk's layer finds its records; copied to a slot's fed_table.
  // A layer's part is written once a chunk, by whose end it has been copied.
  gpu::PinnedMemory fed_addresses_;
  uint64_t fed_table_bytes_ = 0;
  gpu::OwnedStream copy_stream_;
  std::unique_ptr<gpu::LinkPacer> pacer_;  // of copy_stream_; null: none
  StreamedExperts* source_ = nullptr;
  std::optional<StreamCopier> copier_;  // for the source
  std::vector<Slot> slots_;
  uint32_t next_slot_ = 0;    // that compute takes
  uint32_t next_layer_ = 0;   // index into streamed_: what is copied next
};

}  // namespace moraine
