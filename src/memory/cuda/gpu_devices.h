// Which GPU a thread's calls mean, and copies from one GPU to another.
//
// CUDA has a current device for each thread, 0 until the thread says otherwise: allocations, new streams and
// events, and launches are of that one. Copies, waits and frees find their device by what they are given.
//
// Errors and threads as in gpu_runtime.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine::gpu {

// How many there are. kUnsupported: none.
Result<uint32_t> CountGpus();
// Makes it the calling thread's current one; some tens of nanoseconds if it is already. kInvalidArgument: there
// is no such GPU.
Status UseGpu(uint32_t device);

// Lets two GPUs copy to each other directly. False: they cannot, and CUDA takes copies through the host. Of a GPU
// and itself true.
Result<bool> AllowPeerAccess(uint32_t a, uint32_t b);
struct PeerCopy {
  void* to = nullptr;
  uint32_t to_device = 0;
  const void* from = nullptr;
  uint32_t from_device = 0;
  uint64_t bytes = 0;
};
// On a stream of either GPU.
Status CopyToPeer(const PeerCopy& copy, Stream stream);

}  // namespace moraine::gpu
