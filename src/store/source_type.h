// SourceType: the number formats that published checkpoints have weights in, and what their bytes
// mean. One table: a type is a row of it (name, elements of a block and its bytes, its number in
// GGUF, its name in safetensors, its decoder).
//
// Blocks, little-endian, d and m f16 unless said otherwise; elements are consecutive in a row:
//   Q4_0 (32 in 18 B)   d | byte i: element i low nibble, 16 + i high;       (nibble - 8) d
//   Q4_1 (32 in 20 B)   d m | nibbles as Q4_0;                               nibble d + m
//   Q5_0 (32 in 22 B)   d | fifth bits u32 | nibbles as Q4_0;                (code - 16) d
//   Q5_1 (32 in 24 B)   d m | fifth bits u32 | nibbles as Q4_0;              code d + m
//   Q8_0 (32 in 34 B)   d | int8;                                            code d
//   IQ4_NL (32 in 18 B) d | nibbles as Q4_0;                                 kIq4NlCodes[nibble] d
//   MXFP4 (32 in 17 B)  e8m0 exponent | nibbles as Q4_0;   E2M1[nibble] 2^(e - 127), NaN for e 255
//   INT4 (32 in 18 B)   as Q4_0, d is bf16 (compressed-tensors: store/packed_weight.h)
//   Q2_K .. Q6_K, IQ4_XS (256 elements): sub-blocks with integer scales behind one d; see the
//                       decoders
//   TQ1_0, TQ2_0 (256 elements): -d, 0 or d, five in a byte or four; see the decoders
// Not read, because their codes are indices into tables that ggml's source states and no published
// rule gives: IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S.
//   INT8 (32 in 36 B)   d float32 | int8;                                    code d
//   FP8 (1 B)           F8_E4M3 whose scales lie in another tensor (store/packed_weight.h)
//   NVFP4               E2M1 whose scales lie in another tensor (likewise)
//   INT4 and INT8 unordered, INT8 asymmetric
//                       whose neighbouring columns have different scales, or whose codes less a zero
//                       point need nine bits (likewise): only as floats
// Sources: ggml-common.h and ggml-quants.c of github.com/ggml-org/ggml; the OCP Microscaling
// Formats (MX) and 8-bit Floating Point specifications.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace moraine {

enum class SourceType : uint8_t {
  kF32, kF16, kBf16,
  kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K, kIq4Nl, kIq4Xs, kMxfp4,
  kTq1_0, kTq2_0,
  kInt4, kInt8, kInt4Unordered, kInt8Unordered, kInt8Asymmetric, kFp8, kNvfp4,
  kF8E4M3, kF8E5M2, kF8E8M0,
  // Parts of packed weights, never weights themselves: they have no decoder.
  kI64, kI32, kI8, kU8,
};
inline constexpr int kSourceTypeCount = 32;

// Elements of a row that are stored together, and the bytes they take.
struct SourceBlock {
  uint32_t elements = 1, bytes = 0;
};

struct SourceTypeInfo {
  SourceType type;
  const char* name;
  SourceBlock block;
  int ggml_type;            // number in GGUF; -1: not a type of GGUF
  const char* safetensors;  // dtype; null: not a type of safetensors
  bool quantised;           // codes behind a scale
  // count blocks -> count x block.elements floats. Exact where a product of scale and code fits the
  // 24 bits of a float, which is all types but those with two terms (Q4_1, Q5_1, Q2_K, Q4_K, Q5_K),
  // whose sum is rounded once. Null: not numbers by itself.
  void (*decode)(const std::byte* blocks, uint64_t count, float* out);
};
const SourceTypeInfo& InfoOf(SourceType type);

inline const char* SourceTypeName(SourceType type) { return InfoOf(type).name; }
inline SourceBlock BlockOf(SourceType type) { return InfoOf(type).block; }
inline bool IsQuantised(SourceType type) { return InfoOf(type).quantised; }
// elements: whole blocks.
inline uint64_t SourceBytes(SourceType type, uint64_t elements) {
  return elements / BlockOf(type).elements * BlockOf(type).bytes;
}

std::optional<SourceType> SourceTypeOfGgml(uint32_t number);
std::optional<SourceType> SourceTypeOfSafetensors(std::string_view dtype);

// 2^(exponent - 127), NaN for 255: a scale of MX formats.
float FromE8M0(uint8_t exponent);
float FromE2M1(uint32_t code);  // of four bits
float FromBf16(uint16_t bits);
float FromF16(uint16_t bits);

}  // namespace moraine
