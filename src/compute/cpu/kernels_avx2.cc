// AVX2 without VNNI: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in int16.
#include "compute/cpu/kernels_256.h"

namespace moraine {
namespace {

// Nibbles are unsigned already; the offset of 8 is taken off through the sum of the activations. A
// pair is at most 2 * 15 * 127 = 3810, and all eight pairs of a group 30480: they fit int16, so one
// vpmaddwd widens for the whole group.
struct DotQ4 {
  static constexpr uint32_t kHalfBytes = 256;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group,
                  const int32_t* const* sums, __m256i* dots) {
    const __m256i nibble = _mm256_set1_epi8(0xF), ones = _mm256_set1_epi16(1);
    __m256i pairs[T];
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i low = _mm256_and_si256(w, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int8_t* x = q[t] + group * 32 + j * 4;
        const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(low, Broadcast4(x)),
                                              _mm256_maddubs_epi16(high, Broadcast4(x + 16)));
        pairs[t] = j == 0 ? both : _mm256_add_epi16(pairs[t], both);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      dots[t] = _mm256_sub_epi32(_mm256_madd_epi16(pairs[t], ones),
                                 _mm256_set1_epi32(sums[t][group] * 8));
    }
  }
};

// Signs move from the weights to the activations. A pair is at most 2 * 128 * 127 = 32512: it fits
// int16 but two do not, so every word is widened. Activations are never -128.
struct DotQ8 {
  static constexpr uint32_t kHalfBytes = 512;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group,
                  const int32_t* const*, __m256i* dots) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i x = _mm256_sign_epi8(Broadcast4(q[t] + group * 32 + j * 4), w);
        const __m256i dot = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones);
        dots[t] = j == 0 ? dot : _mm256_add_epi32(dots[t], dot);
      }
    }
  }
};

}  // namespace

const KernelTable kAvx2Kernels = {PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
                                  PanelQuantised<DotQ8>, PanelQuantised<DotQ4>,
                                  MORAINE_LANE_KERNELS(Lanes256)};

}  // namespace moraine
