// How keys and values are kept between steps. float32 is exact; the others are lossy and opt-in.
//
// One position of one head is `head_dim` values side by side. q8 has a scale for each head at each position,
// because keys of one head differ in size by far less than heads do.
// Layout of a head in bytes: f32: 4 each; bf16: 2 each; q8: an f32 scale (largest magnitude / 127), then one
// int8 code each, padded to a multiple of 4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace moraine {

enum class KvFormat : uint8_t { kF32, kBf16, kQ8 };

const char* KvFormatName(KvFormat format);  // "f32", "bf16", "q8"
Result<KvFormat> ParseKvFormat(std::string_view name);

// Positions of a block of keys and values where a sequence has them in blocks that lie anywhere; what a
// kernel of attention works on at a time, so that it looks a block's place up once.
inline constexpr uint32_t kKvBlockPositions = 64;

// Bytes of one head at one position.
size_t KvHeadBytes(KvFormat format, uint32_t head_dim);

// Bytes from one position of a head to the next, and from one head to the next.
struct KvStrides {
  size_t position = 0, head = 0;
};

// count x heads x head_dim floats, x_stride floats from position to position, into out. The same bytes on
// every CPU. A NaN or an infinity becomes, in q8, a NaN scale: it stays visible in the result.
void EncodeKv(KvFormat format, const float* x, size_t x_stride, uint32_t count, uint32_t heads,
              uint32_t head_dim, std::byte* out, const KvStrides& strides);

}  // namespace moraine
