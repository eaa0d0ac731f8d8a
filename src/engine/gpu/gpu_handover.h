// GpuHandover: what the CPU gives to and gets from a prompt that is computed on the GPU while answers are
// computed on the CPU: keys and values both ways, and which experts the prompt's tokens took.
//
// A page of the GPU's cache and the block of the CPU's pool with its number hold the same positions in the
// same order, keys and then values of all heads (gpu_attention.h, model/kv_planes.h), or latents: a run of pages is
// one or two copies of rows a layer, to the bit. A layer's keys and values go back on a stream of their own while the
// next layers are computed.
//
// Cost: 4 bytes of page-locked memory a token of a chunk, rank and layer.
// Threads: owned by one thread. Nothing is allocated after Create.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "engine/gpu/gpu_network.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/kv_pool.h"

namespace moraine {

class GpuHandover {
 public:
  // The pool and the network must outlive it.
  static Result<std::unique_ptr<GpuHandover>> Create(const ModelConfig& config,
                                                     const GpuNetwork& network, const KvPool& pool,
                                                     uint32_t max_tokens);
  ~GpuHandover();  // waits for copies

  // A chunk begins: `stale` pages are brought to the GPU before what is enqueued on `compute` from now on;
  // `written` ones, those that the chunk writes to, will go back.
  Status Begin(std::span<const uint32_t> stale, std::span<const uint32_t> written,
               gpu::Stream compute);
  // A layer's keys and values, or its router's choice (count values), are there once `compute` has come
  // so far.
  Status OnKeysAndValues(uint32_t layer, gpu::Stream compute);
  Status OnRouted(uint32_t layer, const uint32_t* experts, uint32_t count, gpu::Stream compute);
  // Waits for what goes back.
  Status Finish();
  // Instead of OnKeysAndValues: the pages written of all layers, when `compute` has been waited for.
  Status TakeWritten();

  // The pages that hold positions first .. first + count - 1 of a sequence.
  static void AppendPages(const uint32_t* pages, uint32_t first, uint32_t count,
                          std::vector<uint32_t>* to);

  // Tokens x top_k of the last chunk, once all has been finished.
  uint32_t* routed(uint32_t layer) const {
    return routed_.as<uint32_t>() + layer * layer_stride_;
  }

 private:
  struct Run {
    uint32_t first = 0, count = 0;  // pages
  };

  GpuHandover(const GpuNetwork& network, const KvPool& pool) : network_(network), pool_(pool) {}
  static void CollectRuns(std::span<const uint32_t> pages, std::vector<uint32_t>* sorted,
                          std::vector<Run>* runs);
  Status CopyPages(uint32_t layer, const Run& run, bool to_gpu, gpu::Stream stream) const;

  const GpuNetwork& network_;
  const KvPool& pool_;
  gpu::OwnedStream back_;
  std::vector<gpu::Event> written_;  // by layer
  gpu::PinnedMemory routed_;
  uint64_t layer_stride_ = 0;
  std::vector<uint32_t> sorted_;
  std::vector<Run> stale_runs_, written_runs_;
};

}  // namespace moraine
