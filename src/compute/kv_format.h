// How keys and values are kept between steps. float32 is exact; the others are lossy and opt-in.
//
// One position of one head is `head_dim` values side by side. q8 has a scale for each head at each position,
// because keys of one head differ in size by far less than heads do.
// Layout of a head in bytes: f32: 4 each; bf16: 2 each; q8: an f32 scale (largest magnitude / 127), then one
// int8 code each, padded to a multiple of 4.
//
// fp8 is the format of tensor cores: codes of one byte (e4m3.h) that stay aligned, so the scales are apart. What a
// head has at 64 positions is one piece: 64 x head_dim codes, position by position, then 64 scales of a byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace moraine {

enum class KvFormat : uint8_t { kF32, kBf16, kQ8, kFp8 };

const char* KvFormatName(KvFormat format);  // "f32", "bf16", "q8", "fp8"
Result<KvFormat> ParseKvFormat(std::string_view name);

// Positions of a block of keys and values where a sequence has them in blocks that lie anywhere; what a
// kernel of attention works on at a time, so that it looks a block's place up once.
inline constexpr uint32_t kKvBlockPositions = 64;

// Bytes of one head at one position, the scale included.
size_t KvHeadBytes(KvFormat format, uint32_t head_dim);

// Bytes from one position of a head to the next, and from one head to the next. In fp8 64 x `position` are from
// one piece of a head to the next one's.
struct KvStrides {
  size_t position = 0, head = 0;
};

// Where positions go: out is position 0's place, first is the number of the first one.
struct KvPlace {
  std::byte* out = nullptr;
  KvStrides strides;
  size_t first = 0;
};

// count x heads x head_dim floats, x_stride floats from position to position. The same bytes on every CPU. A
// NaN or an infinity becomes a scale, in q8 and fp8, that makes the whole head NaN: it stays visible in the result.
void EncodeKv(KvFormat format, const float* x, size_t x_stride, uint32_t count, uint32_t heads,
              uint32_t head_dim, const KvPlace& place);

}  // namespace moraine
