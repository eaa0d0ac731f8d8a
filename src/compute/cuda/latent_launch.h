// The ways of RunLatentPrefillAttention, and RunLatentDecodeAttention over a float32 cache.
// Internal to compute/cuda.
#pragma once

#include "base/status.h"
#include "compute/cuda/latent_attention.h"

namespace moraine::gpu {

Status LaunchLatentDecodeF32(const LatentDecodeAttention& attention, Stream stream);
Status LaunchMmaSyncLatent(const LatentPrefillAttention& attention, Stream stream);
// Hopper, DeepSeek's sizes.
Status LaunchWgmmaLatent(const LatentPrefillAttention& attention, Stream stream);

}  // namespace moraine::gpu
