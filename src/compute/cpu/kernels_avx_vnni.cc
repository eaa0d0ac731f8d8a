// AVX2 with AVX-VNNI: vpdpbusd multiplies unsigned by signed bytes and adds four in int32. Weights
// are made unsigned (nibbles are; int8 by flipping the sign bit, which adds 128), and the offset is
// taken off through the sum of the activations, as the accumulator's start value.
#include "compute/cpu/kernels_256.h"

namespace moraine {
namespace {

struct DotQ4 {
  static constexpr uint32_t kHalfBytes = 256;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group,
                  const int32_t* const* sums, __m256i* dots) {
    const __m256i nibble = _mm256_set1_epi8(0xF);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dots[t] = _mm256_set1_epi32(sums[t][group] * -8);
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i low = _mm256_and_si256(w, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int8_t* x = q[t] + group * 32 + j * 4;
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], low, Broadcast4(x));
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], high, Broadcast4(x + 16));
      }
    }
  }
};

struct DotQ8 {
  static constexpr uint32_t kHalfBytes = 512;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group,
                  const int32_t* const* sums, __m256i* dots) {
    const __m256i flip = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dots[t] = _mm256_set1_epi32(sums[t][group] * -128);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w = _mm256_xor_si256(LoadWords(words + j * 64), flip);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        dots[t] = _mm256_dpbusd_avx_epi32(dots[t], w, Broadcast4(q[t] + group * 32 + j * 4));
      }
    }
  }
};

}  // namespace

const KernelTable kAvxVnniKernels = {PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
                                     PanelQuantised<DotQ8>, PanelQuantised<DotQ4>,
                                     MORAINE_LANE_KERNELS(Lanes256)};

}  // namespace moraine
