#include "model/kv_cache.h"

namespace moraine {

uint64_t KvCache::BytesFor(const ModelConfig& config, uint32_t max_positions, KvFormat format) {
  return uint64_t{2} * config.layers.size() * max_positions * config.kv_heads *
         KvHeadBytes(format, config.head_dim);
}

Result<KvCache> KvCache::Allocate(const ModelConfig& config, uint32_t max_positions,
                                  KvFormat format) {
  KvCache cache;
  ASSIGN_OR_RETURN(cache.arena_, HostArena::Allocate(BytesFor(config, max_positions, format),
                                                     {.huge_pages = false, .populate = false}));
  cache.format_ = format;
  cache.heads_ = config.kv_heads;
  cache.head_dim_ = config.head_dim;
  cache.strides_.position = KvHeadBytes(format, config.head_dim);
  cache.strides_.head = cache.strides_.position * max_positions;
  cache.plane_bytes_ = cache.strides_.head * config.kv_heads;
  cache.max_positions_ = max_positions;
  return cache;
}

void KvCache::Write(uint32_t layer, uint32_t first, uint32_t count, const float* keys,
                    const float* values) {
  CHECK(first + count <= max_positions_);
  std::byte* const out = arena_.data() + 2 * layer * plane_bytes_ + first * strides_.position;
  const size_t floats = size_t{heads_} * head_dim_;
  EncodeKv(format_, keys, floats, count, heads_, head_dim_, out, strides_);
  EncodeKv(format_, values, floats, count, heads_, head_dim_, out + plane_bytes_, strides_);
}

KvView KvCache::layer(uint32_t index) const {
  const std::byte* const plane = arena_.data() + 2 * index * plane_bytes_;
  return {format_, plane, plane + plane_bytes_, strides_};
}

}  // namespace moraine
