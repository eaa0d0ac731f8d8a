// The two ways of RunPrefillAttention, and RunDecodeAttention over caches in float32 and fp8.
// Internal to compute/cuda.
#pragma once

#include "base/status.h"
#include "compute/cuda/gpu_attention.h"

namespace moraine::gpu {

Status LaunchMmaSyncAttention(const PrefillAttention& attention, Stream stream);
// Hopper, heads of 64 and 128 dimensions.
Status LaunchWgmmaAttention(const PrefillAttention& attention, Stream stream);
Status LaunchDecodeAttentionF32(const DecodeAttention& attention, Stream stream);
Status LaunchDecodeAttentionFp8(const DecodeAttention& attention, Stream stream);

}  // namespace moraine::gpu
