// AVX2 with AVX-VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four in int32. Weights
// are made unsigned (nibbles are; int8 by flipping the sign bit, which adds 128), and what that adds
// is taken off through the activations' offset, the accumulator's start value.
#include "compute/cpu/kernels_256.h"

namespace moraine {
namespace {

// 16 rows from 8 words of 4 columns, unsigned.
template <int T, uint32_t kOffsets>
inline void WordDots(const uint8_t* words, const PackedGroup& x, uint32_t token,
                     __m256i (*dots)[T]) {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    dots[0][t] = dots[1][t] = _mm256_set1_epi32(x.offsets[kOffsets][token + t]);
  }
#pragma GCC unroll 8
  for (uint32_t j = 0; j < 8; ++j) {
    const __m256i w0 = LoadWords(words + j * 64), w1 = LoadWords(words + j * 64 + 32);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i word = Broadcast4(x.codes[token + t] + j * 4);
      dots[0][t] = _mm256_dpbusd_avx_epi32(dots[0][t], w0, word);
      dots[1][t] = _mm256_dpbusd_avx_epi32(dots[1][t], w1, word);
    }
  }
}

template <class Scales>
struct Q4 : Scales {
  static constexpr uint32_t kHalfBytes = 256, kUnpackedBytes = 512;
  static constexpr int kBlockTokens = 6;
  static constexpr uint32_t kPanels = 1;
  struct Input {};
  static void Prepare(const Pass&, Input*) {}

  template <int T>
  static void Dots(const uint8_t* words, const Tokens<T>& x, uint32_t group, __m256i* dots) {
    const __m256i nibble = _mm256_set1_epi8(0xF);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dots[t] = _mm256_set1_epi32(x.groups[t][group].offsets[kQ4Offset]);
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i low = _mm256_and_si256(w, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int8_t* q = x.q[t] + group * 32 + j * 4;
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], low, Broadcast4(q));
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], high, Broadcast4(q + 16));
      }
    }
  }

  static void Unpack(const uint8_t* half, uint8_t* words) {
    const __m256i nibble = _mm256_set1_epi8(0xF);
#pragma GCC unroll 8
    for (uint32_t i = 0; i < 8; ++i) {
      const __m256i w = LoadWords(half + i * 32);
      StoreWords(words + i * 32, _mm256_and_si256(w, nibble));
      StoreWords(words + 256 + i * 32, _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble));
    }
  }

  template <int T>
  static void UnpackedDots(const uint8_t* words, const PackedGroup& x, const Input&, uint32_t,
                           uint32_t token, __m256i (*dots)[T]) {
    WordDots<T, kQ4Offset>(words, x, token, dots);
  }
};

// Codes of 8 bits, their sign bits flipped: q8's as they lie there, those of a table after a shuffle.
struct Q8Words {
  static constexpr uint32_t kHalfBytes = 512;
  static __m256i Word(const uint8_t* words, uint32_t j) {
    return _mm256_xor_si256(LoadWords(words + j * 64), _mm256_set1_epi8(-128));
  }
};
template <class Codes>
struct NibbleWords : TableWords<Codes, 0x80> {
  static constexpr uint32_t kHalfBytes = 256;
};

template <class Words, class Scales>
struct FlippedCodes : Words, Scales {
  static constexpr uint32_t kUnpackedBytes = 512;
  static constexpr int kBlockTokens = 6;
  static constexpr uint32_t kPanels = 1;
  struct Input {};
  static void Prepare(const Pass&, Input*) {}

  template <int T>
  static void Dots(const uint8_t* words, const Tokens<T>& x, uint32_t group, __m256i* dots) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      dots[t] = _mm256_set1_epi32(x.groups[t][group].offsets[kQ8Offset]);
    }
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w = Words::Word(words, j);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], w, Broadcast4(x.q[t] + group * 32 + j * 4));
      }
    }
  }

  static void Unpack(const uint8_t* half, uint8_t* words) {
#pragma GCC unroll 16
    for (uint32_t i = 0; i < 16; ++i) {
      StoreWords(words + i * 32, Words::Word(half + i % 2 * 32, i / 2));
    }
  }

  template <int T>
  static void UnpackedDots(const uint8_t* words, const PackedGroup& x, const Input&, uint32_t,
                           uint32_t token, __m256i (*dots)[T]) {
    WordDots<T, kQ8Offset>(words, x, token, dots);
  }
};

}  // namespace

const KernelTable kAvxVnniKernels = {
    PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
    PanelQuantised<FlippedCodes<Q8Words, F16Scales>>, PanelQuantised<Q4<F16Scales>>,
    PanelQuantised<Q4<Bf16Scales>>,
    PanelQuantised<FlippedCodes<NibbleWords<E2M1Codes>, Bf16Scales>>,
    PanelQuantised<FlippedCodes<NibbleWords<Iq4NlCodes>, F16Scales>>, kPackedTokens,
    MORAINE_LANE_KERNELS(Lanes256)};

}  // namespace moraine
