#include "store/source_type.h"

#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <limits>

#include "base/check.h"

namespace moraine {
namespace {

constexpr int8_t kIq4NlCodes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
constexpr float kE2M1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                             -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

int Byte(const std::byte* p) { return static_cast<int>(*p); }
int Signed(const std::byte* p) { return static_cast<int8_t>(*p); }
template <typename T>
T Load(const std::byte* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}
float Half(const std::byte* p) { return FromF16(Load<uint16_t>(p)); }

// Element i of 32 nibbles, of which byte b has elements b and 16 + b.
int Nibble(const std::byte* bytes, int i) { return Byte(bytes + i % 16) >> (i / 16 * 4) & 0xF; }

template <typename Value>
void DecodeNibbles(float* out, Value value) {
  for (int i = 0; i < 32; ++i) out[i] = value(i);
}

void DecodeF32(const std::byte* block, float* out) { std::memcpy(out, block, sizeof(float)); }
void DecodeF16(const std::byte* block, float* out) { *out = Half(block); }
void DecodeBf16(const std::byte* block, float* out) { *out = FromBf16(Load<uint16_t>(block)); }

// As E5M2 has f16's exponent, it is the upper byte of one.
void DecodeE5M2(const std::byte* block, float* out) {
  *out = FromF16(static_cast<uint16_t>(Byte(block) << 8));
}
// Four bits of exponent with bias 7, three of mantissa, no infinity; NaN is all ones.
constexpr std::array<float, 256> MakeE4M3() {
  std::array<float, 256> values = {};
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 0xF, mantissa = code & 7;
    float value = static_cast<float>(exponent == 0 ? mantissa : 8 + mantissa) * 0x1p-9f;
    for (int i = 1; i < exponent; ++i) value *= 2;
    if ((code & 0x7F) == 0x7F) value = std::numeric_limits<float>::quiet_NaN();
    values[static_cast<size_t>(code)] = code >= 128 ? -value : value;
  }
  return values;
}
constexpr std::array<float, 256> kE4M3 = MakeE4M3();
void DecodeE4M3(const std::byte* block, float* out) {
  *out = kE4M3[static_cast<size_t>(*block)];
}
void DecodeE8M0(const std::byte* block, float* out) {
  *out = FromE8M0(static_cast<uint8_t>(*block));
}

void DecodeQ4_0(const std::byte* block, float* out) {
  const float d = Half(block);
  DecodeNibbles(out, [&](int i) { return static_cast<float>(Nibble(block + 2, i) - 8) * d; });
}
void DecodeInt4(const std::byte* block, float* out) {
  const float d = FromBf16(Load<uint16_t>(block));
  DecodeNibbles(out, [&](int i) { return static_cast<float>(Nibble(block + 2, i) - 8) * d; });
}
void DecodeInt8(const std::byte* block, float* out) {
  const float d = Load<float>(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Signed(block + 4 + i)) * d;
}
void DecodeQ4_1(const std::byte* block, float* out) {
  const float d = Half(block), m = Half(block + 2);
  DecodeNibbles(out, [&](int i) { return static_cast<float>(Nibble(block + 4, i)) * d + m; });
}
// Five bits: the fifths of all 32 elements lie in front of the nibbles.
int FiveBits(const std::byte* bits, int i) {
  return Nibble(bits + 4, i) | static_cast<int>(Load<uint32_t>(bits) >> i & 1) << 4;
}
void DecodeQ5_0(const std::byte* block, float* out) {
  const float d = Half(block);
  DecodeNibbles(out, [&](int i) { return static_cast<float>(FiveBits(block + 2, i) - 16) * d; });
}
void DecodeQ5_1(const std::byte* block, float* out) {
  const float d = Half(block), m = Half(block + 2);
  DecodeNibbles(out, [&](int i) { return static_cast<float>(FiveBits(block + 4, i)) * d + m; });
}
void DecodeQ8_0(const std::byte* block, float* out) {
  const float d = Half(block);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(Signed(block + 2 + i)) * d;
}
void DecodeIq4Nl(const std::byte* block, float* out) {
  const float d = Half(block);
  DecodeNibbles(out, [&](int i) {
    return static_cast<float>(kIq4NlCodes[Nibble(block + 2, i)]) * d;
  });
}
void DecodeMxfp4(const std::byte* block, float* out) {
  const float d = FromE8M0(static_cast<uint8_t>(*block));
  DecodeNibbles(out, [&](int i) { return kE2M1[Nibble(block + 1, i)] * d; });
}

// scales[16] (scale low nibble, minimum high) | 64 B of 2-bit codes | d | dmin. Sub-blocks of 16.
void DecodeQ2_K(const std::byte* block, float* out) {
  const float d = Half(block + 80), dmin = Half(block + 82);
  for (int i = 0; i < 256; ++i) {
    const int scales = Byte(block + i / 16);
    // 32 bytes hold 128 elements: two bits for each of four runs of 32.
    const int code = Byte(block + 16 + i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
    out[i] = d * static_cast<float>(scales & 0xF) * static_cast<float>(code) -
             dmin * static_cast<float>(scales >> 4);
  }
}

// 32 B of third bits | 64 B of 2-bit codes as Q2_K | 12 B of scales | d. Sub-blocks of 16, whose
// 6-bit scales have 32 added: low nibbles in 8 bytes, then the upper two bits in 4.
void DecodeQ3_K(const std::byte* block, float* out) {
  const float d = Half(block + 108);
  for (int i = 0; i < 256; ++i) {
    const int sub = i / 16, low = Byte(block + 96 + sub % 8) >> (sub / 8 * 4) & 0xF;
    const int scale = (low | (Byte(block + 104 + sub % 4) >> (sub / 4 * 2) & 3) << 4) - 32;
    const int two = Byte(block + 32 + i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
    const int third = Byte(block + i % 32) >> (i / 32) & 1;
    out[i] = d * static_cast<float>(scale) * static_cast<float>(two + 4 * third - 4);
  }
}

// Scale and minimum of sub-block j of Q4_K and Q5_K, six bits each in 12 bytes.
struct ScaleAndMin {
  float scale, min;
};
ScaleAndMin SixBitPair(const std::byte* bytes, int j) {
  if (j < 4) {
    return {static_cast<float>(Byte(bytes + j) & 63), static_cast<float>(Byte(bytes + 4 + j) & 63)};
  }
  const int low = Byte(bytes + 4 + j), scale_top = Byte(bytes + j - 4) >> 6;
  const int min_top = Byte(bytes + j) >> 6;
  return {static_cast<float>((low & 0xF) | scale_top << 4),
          static_cast<float>(low >> 4 | min_top << 4)};
}

// d | dmin | 12 B of scales | 128 B of nibbles: of each 64 elements the first 32 low, then high.
// Q5_K has 32 B of fifth bits in front of the nibbles: bit j of byte i % 32 for sub-block j.
template <int kFifthBytes>
void DecodeQ45_K(const std::byte* block, float* out) {
  const float d = Half(block), dmin = Half(block + 2);
  const std::byte* codes = block + 16 + kFifthBytes;
  for (int j = 0; j < 8; ++j) {
    const ScaleAndMin pair = SixBitPair(block + 4, j);
    const float scale = d * pair.scale, min = dmin * pair.min;
    for (int i = 0; i < 32; ++i) {
      int code = Byte(codes + j / 2 * 32 + i) >> (j % 2 * 4) & 0xF;
      if (kFifthBytes > 0) code |= (Byte(block + 16 + i) >> j & 1) << 4;
      out[j * 32 + i] = scale * static_cast<float>(code) - min;
    }
  }
}

// 128 B of low nibbles | 64 B of upper two bits | int8 scales[16] | d. Of each 128 elements, runs
// of 32: nibbles of runs 0 and 2 share bytes, those of 1 and 3 too; upper bits of all four share.
void DecodeQ6_K(const std::byte* block, float* out) {
  const float d = Half(block + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, run = i / 32 % 4, at = i % 32;
    const int low = Byte(block + half * 64 + run % 2 * 32 + at) >> (run / 2 * 4) & 0xF;
    const int high = Byte(block + 128 + half * 32 + at) >> (run * 2) & 3;
    const float scale = d * static_cast<float>(Signed(block + 192 + i / 16));
    out[i] = scale * static_cast<float>((low | high << 4) - 32);
  }
}

// d | upper bits of scales u16 | low nibbles of scales, 4 B | 8 x 16 B as IQ4_NL. Scales have 32
// added.
void DecodeIq4Xs(const std::byte* block, float* out) {
  const float d = Half(block);
  const int high = Load<uint16_t>(block + 2);
  for (int j = 0; j < 8; ++j) {
    const int low = Byte(block + 4 + j / 2) >> (j % 2 * 4) & 0xF;
    const float scale = d * static_cast<float>((low | (high >> (2 * j) & 3) << 4) - 32);
    for (int i = 0; i < 32; ++i) {
      out[j * 32 + i] = scale * static_cast<float>(kIq4NlCodes[Nibble(block + 8 + j * 16, i)]);
    }
  }
}

// The digit of weight 3^-(place + 1) of a byte, which stands for the fraction byte / 256.
int Trit(const std::byte* byte, int place) {
  constexpr int kPowers[] = {1, 3, 9, 27, 81};
  return (Byte(byte) * kPowers[place] & 0xFF) * 3 >> 8;
}

// 32 bytes of five digits: place p of byte i is element 32 p + i; 16 of five, likewise, for the 80
// elements from 160 on; 4 of four for the last 16 | d. Digits are less 1.
void DecodeTq1_0(const std::byte* block, float* out) {
  const float d = Half(block + 52);
  for (int i = 0; i < 256; ++i) {
    const int digit = i < 160   ? Trit(block + i % 32, i / 32)
                      : i < 240 ? Trit(block + 32 + (i - 160) % 16, (i - 160) / 16)
                                : Trit(block + 48 + (i - 240) % 4, (i - 240) / 4);
    out[i] = static_cast<float>(digit - 1) * d;
  }
}

// 64 B of 2-bit codes as Q2_K, less 1 | d.
void DecodeTq2_0(const std::byte* block, float* out) {
  const float d = Half(block + 64);
  for (int i = 0; i < 256; ++i) {
    const int code = Byte(block + i / 128 * 32 + i % 32) >> (i / 32 % 4 * 2) & 3;
    out[i] = static_cast<float>(code - 1) * d;
  }
}

template <auto kDecode, uint32_t kElements, uint32_t kBytes>
void DecodeAll(const std::byte* blocks, uint64_t count, float* out) {
  for (uint64_t i = 0; i < count; ++i, blocks += kBytes, out += kElements) kDecode(blocks, out);
}
template <auto kDecode, uint32_t kElements, uint32_t kBytes>
constexpr SourceTypeInfo Row(SourceType type, const char* name, int ggml_type,
                             const char* safetensors, bool quantised) {
  return {type, name, {kElements, kBytes}, ggml_type, safetensors, quantised,
          DecodeAll<kDecode, kElements, kBytes>};
}
// Blocks of a GGUF.
template <auto kDecode, uint32_t kElements, uint32_t kBytes>
constexpr SourceTypeInfo Ggml(SourceType type, const char* name, int ggml_type) {
  return Row<kDecode, kElements, kBytes>(type, name, ggml_type, nullptr, true);
}
// Packed weights that have no blocks.
constexpr SourceTypeInfo Floats(SourceType type, const char* name) {
  return {type, name, {1, 1}, -1, nullptr, true, nullptr};
}
constexpr SourceTypeInfo Part(SourceType type, const char* name, uint32_t bytes) {
  return {type, name, {1, bytes}, -1, name, false, nullptr};
}

constexpr SourceTypeInfo kTypes[] = {
    Row<DecodeF32, 1, 4>(SourceType::kF32, "F32", 0, "F32", false),
    Row<DecodeF16, 1, 2>(SourceType::kF16, "F16", 1, "F16", false),
    Row<DecodeBf16, 1, 2>(SourceType::kBf16, "BF16", 30, "BF16", false),
    Ggml<DecodeQ4_0, 32, 18>(SourceType::kQ4_0, "Q4_0", 2),
    Ggml<DecodeQ4_1, 32, 20>(SourceType::kQ4_1, "Q4_1", 3),
    Ggml<DecodeQ5_0, 32, 22>(SourceType::kQ5_0, "Q5_0", 6),
    Ggml<DecodeQ5_1, 32, 24>(SourceType::kQ5_1, "Q5_1", 7),
    Ggml<DecodeQ8_0, 32, 34>(SourceType::kQ8_0, "Q8_0", 8),
    Ggml<DecodeQ2_K, 256, 84>(SourceType::kQ2_K, "Q2_K", 10),
    Ggml<DecodeQ3_K, 256, 110>(SourceType::kQ3_K, "Q3_K", 11),
    Ggml<DecodeQ45_K<0>, 256, 144>(SourceType::kQ4_K, "Q4_K", 12),
    Ggml<DecodeQ45_K<32>, 256, 176>(SourceType::kQ5_K, "Q5_K", 13),
    Ggml<DecodeQ6_K, 256, 210>(SourceType::kQ6_K, "Q6_K", 14),
    Ggml<DecodeIq4Nl, 32, 18>(SourceType::kIq4Nl, "IQ4_NL", 20),
    Ggml<DecodeIq4Xs, 256, 136>(SourceType::kIq4Xs, "IQ4_XS", 23),
    Ggml<DecodeMxfp4, 32, 17>(SourceType::kMxfp4, "MXFP4", 39),
    Ggml<DecodeTq1_0, 256, 54>(SourceType::kTq1_0, "TQ1_0", 34),
    Ggml<DecodeTq2_0, 256, 66>(SourceType::kTq2_0, "TQ2_0", 35),
    Ggml<DecodeInt4, 32, 18>(SourceType::kInt4, "INT4", -1),
    Ggml<DecodeInt8, 32, 36>(SourceType::kInt8, "INT8", -1),
    Floats(SourceType::kInt4Unordered, "INT4 (columns reordered)"),
    Floats(SourceType::kInt8Unordered, "INT8 (columns reordered)"),
    Floats(SourceType::kInt8Asymmetric, "INT8 (asymmetric)"),
    Ggml<DecodeE4M3, 1, 1>(SourceType::kFp8, "FP8", -1),
    Floats(SourceType::kNvfp4, "NVFP4"),
    Row<DecodeE4M3, 1, 1>(SourceType::kF8E4M3, "F8_E4M3", -1, "F8_E4M3", false),
    Row<DecodeE5M2, 1, 1>(SourceType::kF8E5M2, "F8_E5M2", -1, "F8_E5M2", false),
    Row<DecodeE8M0, 1, 1>(SourceType::kF8E8M0, "F8_E8M0", -1, "F8_E8M0", false),
    Part(SourceType::kI64, "I64", 8),
    Part(SourceType::kI32, "I32", 4),
    Part(SourceType::kI8, "I8", 1),
    Part(SourceType::kU8, "U8", 1),
};
static_assert(std::size(kTypes) == kSourceTypeCount);

}  // namespace

const SourceTypeInfo& InfoOf(SourceType type) {
  const SourceTypeInfo& info = kTypes[static_cast<size_t>(type)];
  CHECK(info.type == type, "the table is in the order of the enumeration");
  return info;
}

std::optional<SourceType> SourceTypeOfGgml(uint32_t number) {
  for (const SourceTypeInfo& info : kTypes) {
    if (info.ggml_type >= 0 && static_cast<uint32_t>(info.ggml_type) == number) return info.type;
  }
  return std::nullopt;
}

std::optional<SourceType> SourceTypeOfSafetensors(std::string_view dtype) {
  for (const SourceTypeInfo& info : kTypes) {
    if (info.safetensors != nullptr && dtype == info.safetensors) return info.type;
  }
  return std::nullopt;
}

float FromBf16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

// Exponent and mantissa moved into place and rebiased by one exact multiplication, which also makes
// subnormals right; infinities and NaNs get the full exponent back.
float FromF16(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFF) << 13;
  uint32_t result = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1.0p112f);
  if (magnitude >= 0x0F800000) result |= 0x7F800000;
  return std::bit_cast<float>(result | static_cast<uint32_t>(bits & 0x8000) << 16);
}

float FromE8M0(uint8_t exponent) {
  if (exponent == 0xFF) return std::numeric_limits<float>::quiet_NaN();
  // 2^-127 is a subnormal of float.
  return std::bit_cast<float>(exponent == 0 ? 0x00400000u : uint32_t{exponent} << 23);
}

float FromE2M1(uint32_t code) { return kE2M1[code & 0xF]; }

}  // namespace moraine
