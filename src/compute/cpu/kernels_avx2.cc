// AVX2 without VNNI: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in int16.
#include "compute/cpu/kernels_256.h"

namespace moraine {
namespace {

// A pair of nibbles times int8 is at most 2 * 15 * 127 = 3810, and all eight pairs of a group 30480:
// they fit int16, so one vpmaddwd widens for the whole group.
struct Q4 {
  static constexpr uint32_t kHalfBytes = 256, kUnpackedBytes = 512;
  static constexpr int kBlockTokens = 3;

  template <int T>
  static void Dots(const uint8_t* words, const Tokens<T>& x, uint32_t group, __m256i* dots) {
    const __m256i nibble = _mm256_set1_epi8(0xF), ones = _mm256_set1_epi16(1);
    __m256i pairs[T];
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i low = _mm256_and_si256(w, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int8_t* q = x.q[t] + group * 32 + j * 4;
        const __m256i both = _mm256_add_epi16(_mm256_maddubs_epi16(low, Broadcast4(q)),
                                              _mm256_maddubs_epi16(high, Broadcast4(q + 16)));
        pairs[t] = j == 0 ? both : _mm256_add_epi16(pairs[t], both);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      dots[t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[t], ones),
                                 _mm256_set1_epi32(x.groups[t][group].offset));
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
  static void UnpackedDots(const uint8_t* words, const Tokens<T>& x, uint32_t group,
                           __m256i (*dots)[T]) {
    __m256i pairs[2][T];
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w0 = LoadWords(words + j * 64), w1 = LoadWords(words + j * 64 + 32);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i q = Broadcast4(x.q[t] + group * 32 + j * 4);
        const __m256i p0 = _mm256_maddubs_epi16(w0, q), p1 = _mm256_maddubs_epi16(w1, q);
        pairs[0][t] = j == 0 ? p0 : _mm256_add_epi16(pairs[0][t], p0);
        pairs[1][t] = j == 0 ? p1 : _mm256_add_epi16(pairs[1][t], p1);
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i offset = _mm256_set1_epi32(x.groups[t][group].offset);
      dots[0][t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[0][t], ones), offset);
      dots[1][t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[1][t], ones), offset);
    }
  }
};

struct Q8 {
  static constexpr uint32_t kHalfBytes = 512, kUnpackedBytes = 512;
  static constexpr int kBlockTokens = 4;

  // Signs move from the weights to the activations. A pair is at most 2 * 128 * 127 = 32512: it fits
  // int16 but two do not, so every word is widened. Activations are never -128.
  template <int T>
  static void Dots(const uint8_t* words, const Tokens<T>& x, uint32_t group, __m256i* dots) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w = LoadWords(words + j * 64);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i signed_x = _mm256_sign_epi8(Broadcast4(x.q[t] + group * 32 + j * 4), w);
        const __m256i dot = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), ones);
        dots[t] = j == 0 ? dot : _mm256_add_epi32(dots[t], dot);
      }
    }
  }

  static void Unpack(const uint8_t* half, uint8_t* words) { __builtin_memcpy(words, half, 512); }

  template <int T>
  static void UnpackedDots(const uint8_t* words, const Tokens<T>& x, uint32_t group,
                           __m256i (*dots)[T]) {
    Dots<T>(words, x, group, dots[0]);
    Dots<T>(words + 32, x, group, dots[1]);
  }
};

}  // namespace

const KernelTable kAvx2Kernels = {PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
                                  PanelQuantised<Q8>, PanelQuantised<Q4>, kNeverPacked,
                                  MORAINE_LANE_KERNELS(Lanes256)};

}  // namespace moraine
