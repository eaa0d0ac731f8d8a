#include "compute/cuda/latent_attention.h"

#include <string>

#include "compute/cuda/latent_launch.h"
#include "compute/cuda/launch.h"

namespace moraine::gpu {

Status RunLatentPrefillAttention(const LatentPrefillAttention& attention, Stream stream) {
  if (attention.cache.bf16 == nullptr) {
    return Unsupported("prefill attention over a float32 cache of latents");
  }
  if (attention.token_count == 0 || attention.heads == 0) return OkStatus();
  const bool hopper = DeviceAttribute(cudaDevAttrComputeCapabilityMajor) == 9;
  const bool fits = attention.sizes == kLatentSizes[0];
  const bool wgmma =
      attention.path == GemmPath::kBest ? hopper && fits : attention.path == GemmPath::kWgmma;
  if (wgmma && !(hopper && fits)) {
    return Unsupported("latent attention by wgmma: needs Hopper and heads of 128 + 64, not " +
                       std::to_string(attention.sizes.nope) + " + " +
                       std::to_string(attention.sizes.rope) + " dimensions");
  }
  return wgmma ? LaunchWgmmaLatent(attention, stream) : LaunchMmaSyncLatent(attention, stream);
}

}  // namespace moraine::gpu
