// The two ways of RunPrefillAttention. Internal to compute/cuda.
#pragma once

#include "base/status.h"
#include "compute/cuda/gpu_attention.h"

namespace moraine::gpu {

Status LaunchMmaSyncAttention(const PrefillAttention& attention, Stream stream);
// Hopper, heads of 64 and 128 dimensions.
Status LaunchWgmmaAttention(const PrefillAttention& attention, Stream stream);

}  // namespace moraine::gpu
