#include "compute/cuda/attention_launch.h"
#include "compute/cuda/launch.h"

namespace moraine::gpu {

Status RunPrefillAttention(const PrefillAttention& attention, Stream stream) {
  const PagedKv& kv = attention.kv;
  if (kv.kv_heads == 0 || attention.query_heads % kv.kv_heads != 0) {
    return InvalidArgument(std::to_string(attention.query_heads) + " query heads over " +
                           std::to_string(kv.kv_heads) + " KV heads");
  }
  if (kv.keys == nullptr) return Unsupported("prefill attention over a cache that is not bf16");
  if (attention.token_count == 0) return OkStatus();
  const bool hopper = DeviceAttribute(cudaDevAttrComputeCapabilityMajor) == 9;
  const bool fits = kv.head_dim == 64 || kv.head_dim == 128;
  const bool wgmma =
      attention.path == GemmPath::kBest ? hopper && fits : attention.path == GemmPath::kWgmma;
  if (wgmma && !(hopper && fits)) {
    return Unsupported("attention by wgmma: needs Hopper and heads of 64 or 128 dimensions, not " +
                       std::to_string(kv.head_dim));
  }
  return wgmma ? LaunchWgmmaAttention(attention, stream)
               : LaunchMmaSyncAttention(attention, stream);
}

}  // namespace moraine::gpu
