// Linear attention of one layer in VRAM: weights, and the recurrent state of all sequences (compute/cuda/gated_delta.h).
//
// Where the state of a sequence is, is recurrent_slots.h's to know. Pure: the CPU-only build counts bytes.
#pragma once

#include <cstdint>

#include "compute/cuda/gated_delta.h"
#include "engine/gpu/gpu_dense.h"
#include "model/config.h"

namespace moraine {

struct GpuDelta {
  GatedDeltaConfig config;
  GpuProjection first;       // of the hidden state: q, k, v, z
  gpu::DeviceMatrix a, b, o;  // a and b float32
  const float *conv = nullptr, *decay_log = nullptr, *decay_bias = nullptr, *norm = nullptr;
  float* slots = nullptr;
};

inline gpu::DeltaShape DeltaShapeOf(const GatedDeltaConfig& c) {
  return {c.key_heads, c.value_heads, c.key_dim, c.value_dim, c.taps};
}
// Of a layer, of one slot.
inline uint64_t DeltaSlotBytes(const GatedDeltaConfig& c) {
  return DeltaShapeOf(c).StateFloats() * sizeof(float);
}
// Rows of a prompt that convolution and memory take at a time; bounds their float32 scratch.
inline constexpr uint32_t kDeltaRows = 2048;

}  // namespace moraine
