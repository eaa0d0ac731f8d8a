#include "compute/kv_format.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "compute/e4m3.h"
#include "compute/encode.h"

namespace moraine {
namespace {

void EncodeHeadQ8(const float* x, uint32_t head_dim, std::byte* out) {
  float largest = 0;
  bool finite = true;
  for (uint32_t d = 0; d < head_dim; ++d) {
    largest = std::max(largest, std::abs(x[d]));
    finite = finite && std::isfinite(x[d]);
  }
  const float scale = finite ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  const float inverse = finite && largest > 0 ? 127 / largest : 0;
  std::memcpy(out, &scale, sizeof(scale));
  auto* codes = reinterpret_cast<int8_t*>(out + sizeof(scale));
  for (uint32_t d = 0; d < head_dim; ++d) {
    const float code = finite ? std::nearbyint(x[d] * inverse) : 0.0f;
    codes[d] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
  }
}

void EncodeHeadFp8(const float* x, uint32_t head_dim, std::byte* codes, std::byte* scale_out) {
  uint32_t largest = 0;
  for (uint32_t d = 0; d < head_dim; ++d) {
    largest = std::max(largest, std::bit_cast<uint32_t>(x[d]) & 0x7FFFFFFF);
  }
  const uint32_t scale = E4m3Scale(largest);
  for (uint32_t d = 0; d < head_dim; ++d) codes[d] = std::byte(E4m3Code(x[d], scale));
  *scale_out = std::byte(scale);
}

}  // namespace

const char* KvFormatName(KvFormat format) {
  switch (format) {
    case KvFormat::kF32: return "f32";
    case KvFormat::kBf16: return "bf16";
    case KvFormat::kQ8: return "q8";
    case KvFormat::kFp8: return "fp8";
  }
  return "unknown";
}

Result<KvFormat> ParseKvFormat(std::string_view name) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16, KvFormat::kQ8,
                                KvFormat::kFp8}) {
    if (name == KvFormatName(format)) return format;
  }
  return InvalidArgument("KV format '" + std::string(name) + "': expected f32, bf16, q8 or fp8");
}

size_t KvHeadBytes(KvFormat format, uint32_t head_dim) {
  switch (format) {
    case KvFormat::kF32: return size_t{head_dim} * 4;
    case KvFormat::kBf16: return size_t{head_dim} * 2;
    case KvFormat::kQ8: return 4 + (size_t{head_dim} + 3) / 4 * 4;
    case KvFormat::kFp8: return size_t{head_dim} + 1;
  }
  return 0;
}

void EncodeKv(KvFormat format, const float* x, size_t x_stride, uint32_t count, uint32_t heads,
              uint32_t head_dim, const KvPlace& place) {
  const size_t head_bytes = KvHeadBytes(format, head_dim);
  for (uint32_t t = 0; t < count; ++t) {
    const size_t position = place.first + t, index = position % kKvBlockPositions;
    for (uint32_t h = 0; h < heads; ++h) {
      const float* head = x + t * x_stride + size_t{h} * head_dim;
      std::byte* const of_head = place.out + h * place.strides.head;
      std::byte* const to = of_head + position * place.strides.position;
      if (format == KvFormat::kF32) {
        std::memcpy(to, head, head_bytes);
      } else if (format == KvFormat::kQ8) {
        EncodeHeadQ8(head, head_dim, to);
      } else if (format == KvFormat::kFp8) {
        std::byte* const piece = of_head + (position - index) * place.strides.position;
        EncodeHeadFp8(head, head_dim, piece + index * head_dim,
                      piece + kKvBlockPositions * head_dim + index);
      } else {
        for (uint32_t d = 0; d < head_dim; ++d) {
          const uint16_t bits = FloatToBf16(head[d]);
          std::memcpy(to + 2 * size_t{d}, &bits, sizeof(bits));
        }
      }
    }
  }
}

}  // namespace moraine
