// HostMeeting: what a step of few tokens and the host exchange while it runs: the page-locked
// memory, the words by which each tells the other (compute/cuda/host_exchange.h), and the kernels
// for it that GpuPass enqueues among its own.
//
// A layer that meets is one whose experts do not stay in VRAM. Its number among those is its turn,
// from 1 on.
//
//   host, before a step   Begin                       all words 0
//   GPU                   EnqueueExchange's kernel    routed = turn; waits for placed
//   host                  Routed, then Place          placed
//   host                  Compute                     computed, where a sum follows
//   GPU                   EnqueueSum's kernel         waits for computed, if so
//   host, whenever        Abandon                     the GPU waits for nothing any more
//
// What the GPU hands over lies in two buffers in turn: it may go on to the next layer, which begins
// by writing there, while the host still looks at this one; to the one after it cannot, without
// word from the host.
//
// Rows of keys and values go straight to the host's pool if that is page-locked.
//
// Cost: page-locked memory of 3 rows a token, for 8 tokens; of VRAM 8 bytes an expert of a layer.
// Threads: owned by one thread. Nothing is allocated after Create.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "compute/cuda/host_exchange.h"
#include "engine/gpu/gpu_handover.h"
#include "engine/gpu/host_experts.h"
#include "engine/gpu/vram_plan.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/config.h"
#include "model/kv_pool.h"

namespace moraine {

class HostMeeting {
 public:
  // The handover and the pool must outlive it.
  static Result<std::unique_ptr<HostMeeting>> Create(const ModelConfig& config,
                                                     const VramPlan& plan, GpuHandover& handover,
                                                     const KvPool& pool);

  bool meets(uint32_t layer) const { return turns_[layer] > 0; }
  // Layers that meet, in order.
  const std::vector<uint32_t>& layers() const { return layers_; }
  // Once: finds out whether the pool is page-locked and of a format whose rows are runs of bytes,
  // and so whether rows go there from the kernels.
  void FindPool();
  bool rows_to_pool() const { return pool_on_device_ != nullptr; }

  // For GpuPass: fills in the host's side and enqueues.
  // Of a layer that does not meet.
  Status EnqueueLayer(uint32_t layer, gpu::LayerToHost to_host, gpu::Stream stream) const;
  Status EnqueueExchange(uint32_t layer, gpu::HostExchange exchange, gpu::Stream stream) const;
  Status EnqueueSum(uint32_t layer, gpu::HostSum sum, gpu::Stream stream) const;
  const std::byte* const* records() const;  // by expert, on the device, between both

  // The host's side, while the GPU computes. Begin and Abandon also while it does not.
  void Begin();
  void Abandon();
  bool Routed(uint32_t turn) const;
  bool timed_out() const;
  RoutedLayer routed(uint32_t turn, uint32_t token_count) const;
  const std::byte** host_records() const { return host_records_; }
  // Whether some expert of the choice has no address in host_records().
  bool SumFollows(const RoutedLayer& layer) const;
  void TellPlaced(uint32_t turn, bool sum_follows);
  float* sum() const { return sum_; }
  void TellComputed(uint32_t turn);

 private:
  HostMeeting(const ModelConfig& config, GpuHandover& handover, const KvPool& pool)
      : config_(config), handover_(handover), pool_(pool) {}

  const ModelConfig& config_;
  GpuHandover& handover_;
  const KvPool& pool_;
  std::byte* pool_on_device_ = nullptr;
  std::vector<uint32_t> turns_;  // by layer, 0: does not meet
  std::vector<uint32_t> layers_;
  gpu::PinnedMemory memory_;
  gpu::HostMailbox* mailbox_ = nullptr;
  const std::byte** host_records_ = nullptr;
  float *weights_[2] = {}, *hidden_[2] = {}, *sum_ = nullptr;
  gpu::DeviceMemory on_device_;  // records by expert, then sum_state
};

}  // namespace moraine
