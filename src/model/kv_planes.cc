#include "model/kv_planes.h"

#include "base/check.h"

namespace moraine {

KvPlanes::KvPlanes(std::byte* data, uint32_t heads, uint32_t head_dim, KvFormat format,
                   uint32_t max_positions)
    : data_(data),
      format_(format),
      heads_(heads),
      head_dim_(head_dim),
      max_positions_(max_positions) {
  strides_.position = KvHeadBytes(format, head_dim);
  strides_.head = strides_.position * max_positions;
  plane_bytes_ = strides_.head * heads;
}

void KvPlanes::Write(uint32_t first, uint32_t count, const float* keys, const float* values) {
  CHECK(first + count <= max_positions_);
  std::byte* const out = data_ + first * strides_.position;
  const size_t floats = size_t{heads_} * head_dim_;
  EncodeKv(format_, keys, floats, count, heads_, head_dim_, out, strides_);
  EncodeKv(format_, values, floats, count, heads_, head_dim_, out + plane_bytes_, strides_);
}

}  // namespace moraine
