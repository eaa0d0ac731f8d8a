// GpuModel: the forward pass on an NVIDIA GPU: dense weights, KV cache and routed experts in VRAM, or the
// experts of some layers in page-locked DRAM, whence they are streamed.
//
// Why a model of its own and not DecoderModel over another backend: on the GPU nothing of a pass returns to
// the host before the logits (the router's choice is read by the next kernel), so there is no
// MoeExecutor to ask, and a decode step is one recorded graph.
//
// Two ways through a layer, which share weights and cache:
//   up to 8 tokens   products of the weights with 16 bits of float32 activations, sums float32: decode, and
//                    with a float32 cache all prompts; captured as a CUDA graph for each number of tokens
//   more             bf16 activations on tensor cores (docs/gpu.md says where they are rounded)
//
// What is there: blocks as gpu_support.h has them, encodings bf16, q8, q4 (f32 for routers). Anything else is
// kUnsupported, naming what.
//
// Prompts only: with `host_kv` the model computes prompts for a CPU that computes the answers. Pages are then the
// pool's blocks, by number; what a step writes is in the pool when it returns, and what the CPU has written
// comes over when a segment names it `stale`. With `source` the records of streamed layers are somebody
// else's, too (streamed_experts.h).
//
// Answers with the CPU: with `host_experts`, too, segments of few tokens are computed layer by layer, each expert
// where its owner says: in a slot of vram_slots(), in page-locked memory, or by him on the CPU meanwhile
// (host_experts.h). If all experts fit into VRAM, he is never asked, and there are no slots.
//
// Several GPUs: layers are divided among them, and a prompt's pieces follow each other through (gpu_pipeline.h).
//
// The KV cache is a pool of pages of 64 positions; whose they are is the caller's business, who names a
// sequence's pages with every step. So sequences can share pages, and a page number means the same in
// all layers.
//
// Threads: owned by one thread. Nothing is allocated after Open, but for graphs when they are first needed.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "compute/encoding.h"
#include "compute/kv_format.h"
#include "engine/gpu/host_experts.h"
#include "engine/gpu/stage_plan.h"
#include "engine/gpu/streamed_experts.h"
#include "engine/gpu/vram_plan.h"
#include "io/block_reader.h"
#include "model/config.h"
#include "model/kv_pool.h"
#include "store/store.h"

namespace moraine {

inline constexpr uint32_t kGpuPagePositions = 64;

struct GpuModelOptions {
  uint64_t vram_budget_bytes = 0;  // of each GPU; 0: what is free, but for a reserve
  // By number, in the order of layers, which are divided among them (stage_plan.h); empty: the first. One that is
  // named twice has two stages. Several not with host_kv.
  std::vector<uint32_t> gpus = {};
  uint32_t max_context = 0;        // positions of a sequence, and of the whole cache
  uint32_t prefill_chunk = 0;      // 0: chosen by what the budget spares
  KvFormat kv_format = KvFormat::kBf16;  // or kFp8 or kF32
  uint32_t max_sequences = 1;      // that recurrent state is kept of
  BlockReaderOptions io;
  // Above 0: experts are streamed no faster than this, bytes a second: emulates a slower link
  // (memory/cuda/link_pacer.h). Answers whose experts would be read in place, over the link, are then refused.
  double link_limit_bytes_per_s = 0;
  int threads = 0;  // that check checksums while records are loaded; 0: one a CPU
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> progress;
  // Both or neither; they outlive the model.
  const KvPool* host_kv = nullptr;
  StreamedExperts* source = nullptr;
  HostExperts* host_experts = nullptr;  // only with both; outlives the model
};

// Some tokens that follow on what a sequence has.
struct GpuSegment {
  std::span<const int32_t> tokens;   // at most max_chunk(), all below the vocabulary's size
  uint32_t first = 0;                // position of the first of them
  const uint32_t* pages = nullptr;   // of the sequence, up to that of the last token
  uint32_t sequence = 0;             // below max_sequences: whose recurrent state it goes on with
  std::span<const uint32_t> stale = {};  // of these, what the CPU has written since (host_kv)
  uint32_t logits = 0;               // wanted of so many last tokens
  const std::function<void(uint32_t position, std::span<const float> logits)>* sink = nullptr;
  const std::atomic<bool>* cancelled = nullptr;  // looked at while layers are enqueued
  Status status = {};  // out: if not ok, positions from `first` on hold nothing of meaning
};

// Of copies from one GPU to the next.
struct PeerSpeed {
  double gb_per_s = 0;     // of 64 MiB
  double small_us = 0;     // of 8 KiB: a token's hidden state of 2048 floats
};

class GpuModel {
 public:
  // The store must outlive the model. Reads and checks all records. kUnsupported: no GPU, a build
  // without CUDA, or what the GPU cannot compute yet. kResourceExhausted: VRAM or page-locked DRAM does
  // not suffice, with bytes needed and there.
  static Result<std::unique_ptr<GpuModel>> Open(const Store& store, const ModelConfig& config,
                                                std::span<const ExpertLayout> layouts,
                                                const GpuModelOptions& options);
  virtual ~GpuModel() = default;

  // Segments of different sequences. Those of few tokens are computed together.
  virtual void Step(std::span<GpuSegment> batch) = 0;
  virtual uint32_t max_chunk() const = 0;
  virtual uint32_t page_count() const = 0;
  // Experts that the last segment's tokens took, tokens x top_k; host_kv only, layers with experts only.
  virtual const uint32_t* routed(uint32_t layer) const = 0;

  // With host_experts: places for single experts, plan().hot_slots of them. What slot_copier() has copied is there
  // for every Step that is called after the copy was asked for; a slot that a Step may read is not to be
  // overwritten before the Step has returned. Copies may be asked for while a Step asks its HostExperts, but
  // not waited for: the GPU is waiting for them meanwhile.
  virtual VramSlots vram_slots() const = 0;
  virtual DeviceCopier& slot_copier() = 0;

  // Of all GPUs together, and of each.
  virtual const VramPlan& plan() const = 0;
  virtual std::span<const StagePlan> stages() const { return {}; }
  virtual const std::string& gpu_name() const = 0;
  // GB/s of copies from page-locked memory to the first GPU, measured now; of an emulated link at most its.
  virtual Result<double> MeasureLink() = 0;
  // From the first GPU to the second, measured now; zeros where there is one.
  virtual Result<PeerSpeed> MeasurePeers() { return PeerSpeed{}; }
};

// Ok, or why there is no GPU here.
Status FindGpu();
// How many there are; the status of FindGpu if none.
Result<uint32_t> CountGpus();
// Memory that the GPU copies from and to at the link's speed, as long as the handle lives.
Result<std::shared_ptr<void>> LockForGpu(std::span<std::byte> memory);

}  // namespace moraine
