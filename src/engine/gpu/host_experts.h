// HostExperts: the CPU's half of an answer's step that GPU and CPU compute together.
//
// The GPU computes attention, norms, routers and dense layers; each routed expert of a token is computed where it is
// cheapest at that moment. A layer goes so:
//
//   GPU   attention, router  ->  choice and hidden state to the host
//   host                         Place: per expert an address that the GPU can read, or none
//   GPU   experts with an address   |   host  Compute: the others, on the CPU        at the same time
//   GPU   adds both to the residual stream
//
// Addresses are those of VRAM slots (VramSlots), whose records somebody has copied there before, or of
// page-locked memory (where the host has it: a GPU of a 64-bit system reads it under the same address), which the
// GPU then reads over the link, each byte once, without a copy.
//
// While Place and Compute run the GPU waits for them, busily (compute/cuda/host_exchange.h): nothing in them may wait
// for the GPU, nor allocate or free its memory.
//
// An interface, so that who knows slots, leases and costs (engine/) and who knows streams and events (engine/gpu/)
// do not know each other, and either is tested without the other.
//
// Threads: all calls come from the thread that owns the model.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace moraine {

// What a layer's router chose, page-locked; valid until the layer's Compute returns.
struct RoutedLayer {
  uint32_t layer = 0;
  uint32_t token_count = 0, top_k = 0;
  const uint32_t* experts = nullptr;  // token_count x top_k, best first
  const float* weights = nullptr;     // token_count x top_k
  const float* hidden = nullptr;      // token_count x hidden: the residual stream, before the layer's norm
};

class HostExperts {
 public:
  virtual ~HostExperts() = default;
  // Writes records[e] for each expert e of the choice: an address that stays readable until Release of this layer, or
  // null for an expert that Compute will compute. The other entries are not read. Returns how many have an
  // address.
  virtual Result<uint32_t> Place(const RoutedLayer& layer, const std::byte** records) = 0;
  // out[t] = the weighted sum, in router order, over the experts without an address: token_count x hidden,
  // row-major, overwritten. False: there were none, and `out` was not written.
  virtual Result<bool> Compute(const RoutedLayer& layer, float* out) = 0;
  // The GPU has read what Place gave for this layer, or will not read it any more. Called for each layer for which
  // Place was called, before the next layer's Place or at the end of the step, after an error too.
  virtual void Release(uint32_t layer) = 0;
};

// Places in VRAM for single experts, which somebody else fills by DeviceCopier and knows the contents of.
struct VramSlots {
  std::byte* memory = nullptr;  // on the device
  uint64_t slot_bytes = 0;
  uint32_t count = 0;

  std::byte* slot(uint32_t index) const { return memory + index * slot_bytes; }
};

}  // namespace moraine
