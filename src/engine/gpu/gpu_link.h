// GpuLink: brings the residual stream from a stage to the next one.
//
//   from    computes piece k        piece k + 1 ...
//   copy          \-- peer copy into the inbox, on a stream of its own
//   to                    inbox -> residual stream, computes piece k
//
// The inbox is why `from` need not wait until `to` has computed the piece before: it is taken from there when
// `to` begins. `from` waits only for the copy, which reads what its next piece overwrites: 16 MiB for 2048 tokens of
// 2048 floats, against some 20 ms of 24 layers.
// The copy is CUDA's peer copy: over NVLink or PCIe where the GPUs reach each other, through the host where not.
//
//   computed  (from)  before the copy        arrived  (copy)  before `from` and `to` go on
//   taken     (to)    before the next copy
//
// Threads: owned by one thread. Nothing is allocated after Create, nothing waits.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "engine/gpu/gpu_stage.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine {

class GpuLink {
 public:
  // max_tokens: of a piece; columns: of the residual stream. The stages must outlive it.
  static Result<std::unique_ptr<GpuLink>> Create(GpuStage& from, GpuStage& to, uint32_t max_tokens,
                                                 uint32_t columns);
  ~GpuLink();  // waits for copies

  // What `from` has been told to compute goes into the residual stream of `to` before what `to` is told from
  // now on.
  Status Bring(uint32_t tokens);
  // The same without the inbox, where `to` has nothing left to compute: less to wait for.
  Status BringToIdle(uint32_t tokens);
  bool reaches_peer() const { return reaches_peer_; }

 private:
  GpuLink(GpuStage& from, GpuStage& to) : from_(from), to_(to) {}

  GpuStage &from_, &to_;
  uint64_t token_bytes_ = 0;
  bool reaches_peer_ = false;
  gpu::OwnedStream copy_stream_;  // of the sender's GPU
  gpu::Event computed_, arrived_, taken_;
  gpu::DeviceMemory inbox_;  // of the receiver's GPU
};

}  // namespace moraine
