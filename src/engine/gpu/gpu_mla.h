// Multi-head latent attention of one layer in VRAM: weights, and the layer's cache (compute/cuda/latent_attention.h).
//
// Two ways through it, as through every layer: few tokens absorbed, with the store's own k_up and v_up; many with
// keys and values of each head. For the latter k_up, which the store has as the matrix that a query is multiplied
// by, is transposed when the model is loaded, to bf16 (as the tensor cores would round it anyway): 2 bytes a
// weight more, 56 MB for DeepSeek-V2-Lite, 1 GB for DeepSeek-V3. v_up is used as it is both times.
#pragma once

#include <cstdint>

#include "compute/cuda/latent_attention.h"
#include "engine/gpu/gpu_dense.h"
#include "model/config.h"

namespace moraine {

struct GpuMla {
  MlaConfig config;
  GpuProjection first;             // of the hidden state: q_a or q, and kv_a
  gpu::DeviceMatrix q_a;           // without rows: queries come from the hidden state
  gpu::DeviceMatrix q, kv_a, o;    // q: q_b, if there is q_a
  gpu::DeviceMatrix k_up, v_up;    // stacks, a matrix a head
  gpu::DeviceMatrix k_rows;        // k_up of all heads transposed: heads x nope_dim rows; many tokens only
  const float *q_a_norm = nullptr, *kv_a_norm = nullptr;
  const float *cos = nullptr, *sin = nullptr;  // of all positions
  gpu::LatentCache cache;                      // without block tables

  uint32_t query_width() const { return config.heads * (config.nope_dim + config.rope_dim); }
  uint32_t value_width() const { return config.heads * config.value_dim; }
  gpu::LatentSizes sizes() const {
    return {config.kv_rank, config.rope_dim, config.nope_dim, config.value_dim};
  }
};

}  // namespace moraine
