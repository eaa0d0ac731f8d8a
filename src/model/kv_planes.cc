#include "model/kv_planes.h"

namespace moraine {

KvPlanes::KvPlanes(const PositionBlocks& blocks, uint32_t heads, uint32_t head_dim,
                   KvFormat format)
    : blocks_(blocks), format_(format), heads_(heads), head_dim_(head_dim) {
  strides_.position = KvHeadBytes(format, head_dim);
  strides_.head = strides_.position * kKvBlockPositions;
  plane_bytes_ = strides_.head * heads;
}

void KvPlanes::Write(uint32_t first, uint32_t count, const float* keys,
                     const float* values) const {
  const size_t floats = size_t{heads_} * head_dim_;
  ForBlocks(first, count, [&](uint32_t position, uint32_t part, uint32_t index) {
    std::byte* const block = blocks_.BlockOf(position);
    const size_t from = (position - first) * floats;
    EncodeKv(format_, keys + from, floats, part, heads_, head_dim_, {block, strides_, index});
    EncodeKv(format_, values + from, floats, part, heads_, head_dim_,
             {block + plane_bytes_, strides_, index});
  });
}

}  // namespace moraine
