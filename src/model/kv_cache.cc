#include "model/kv_cache.h"

namespace moraine {

uint64_t KvCache::BytesFor(const ModelConfig& config, uint32_t max_positions) {
  return uint64_t{2} * config.layers.size() * max_positions * config.kv_heads * config.head_dim *
         sizeof(float);
}

Result<KvCache> KvCache::Allocate(const ModelConfig& config, uint32_t max_positions) {
  KvCache cache;
  ASSIGN_OR_RETURN(cache.arena_, HostArena::Allocate(BytesFor(config, max_positions),
                                                     {.huge_pages = false, .populate = false}));
  cache.base_ = reinterpret_cast<float*>(cache.arena_.data());
  cache.stride_ = size_t{config.kv_heads} * config.head_dim;
  cache.layer_floats_ = cache.stride_ * max_positions;
  cache.max_positions_ = max_positions;
  return cache;
}

}  // namespace moraine
