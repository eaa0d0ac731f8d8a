// E4M3 (the 8-bit float of OCP: a sign, 4 bits of exponent, 3 of mantissa, at most 448) as the fp8 cache
// of keys and values has it: codes of a head behind a scale.
//
// A value is E4M3(code) / 256 times 2^(scale - 127); the scale is a byte, the exponent field of a float,
// picked so that the head's largest magnitude is between 0.875 and 1.75 times it. A power of two, because a
// code's precision is relative: a scale that maps the largest value to 448 exactly would gain nothing, but
// products with it would be rounded. With this one every value is exact in bf16 and in float32, so that
// whoever unpacks it, into whichever of the two, has the same numbers. And it is one byte instead of four.
//
// Codes keep 4 significant bits of what is at least 2^-14 of the head's largest magnitude (half of an ulp is
// 6.25 % at most), and multiples of 2^-17 of the scale below. Rounding is to nearest, ties to even; the
// scale leaves nothing to saturate. NaN and infinities: scale 255, whose float is infinite, and codes 0; their
// product is NaN. Code 0x7F, E4M3's NaN, is never written. Heads below 2^-95 have the scale of 2^-95.
//
// Shared by the host and by kernels: the same bits on every CPU and GPU.
#pragma once

#include <bit>
#include <cstdint>

namespace moraine {

inline constexpr uint32_t kE4m3LeastScale = 32, kE4m3NanScale = 255;

// largest: the bits of a head's largest magnitude as a float, of which a NaN is larger than any.
constexpr uint32_t E4m3Scale(uint32_t largest) {
  const uint32_t scale = (largest + 0x1FFFFF) >> 23;  // mantissas over 1.75 carry
  return scale < kE4m3LeastScale ? kE4m3LeastScale : scale > kE4m3NanScale ? kE4m3NanScale : scale;
}

constexpr uint32_t E4m3Code(float x, uint32_t scale) {
  if (scale == kE4m3NanScale) return 0;
  // Exact, by a power of two: of at most 448.
  const uint32_t bits = std::bit_cast<uint32_t>(x * std::bit_cast<float>((262 - scale) << 23));
  const uint32_t sign = bits >> 24 & 0x80, magnitude = bits & 0x7FFFFFFF;
  constexpr uint32_t kLeastNormal = 121u << 23;  // 2^-6
  if (magnitude >= kLeastNormal) {
    return sign | (((magnitude + 0x7FFFF + (magnitude >> 20 & 1)) >> 20) - (120 << 3));
  }
  // Multiples of 2^-9, which is an ulp of 2^14.
  constexpr float kRounder = 16384.0f;
  return sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + kRounder) -
                 std::bit_cast<uint32_t>(kRounder));
}

constexpr float E4m3Value(uint32_t code, uint32_t scale) {
  const float unscaled = std::bit_cast<float>((code & 0x80) << 24 | (code & 0x7F) << 20);
  return unscaled * 0x1p112f * std::bit_cast<float>(scale << 23);
}

}  // namespace moraine
