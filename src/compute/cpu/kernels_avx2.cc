// AVX2 without VNNI: vpmaddubsw multiplies unsigned by signed bytes and adds pairs in int16.
#include "compute/cpu/kernels_256.h"

namespace moraine {
namespace {

// Ends a step of a sum. GCC would otherwise make a tree of a chain, whose leaves are all spilled.
inline void Keep(__m256i& sum) { asm volatile("" : "+x"(sum)); }

// A pair of nibbles times int8 is at most 2 * 15 * 127 = 3810, and all eight pairs of a group 30480:
// they fit int16, so one vpmaddwd widens for the whole group.
template <class Scales>
struct Q4 : Scales {
  static constexpr uint32_t kHalfBytes = 256, kUnpackedBytes = 512;
  static constexpr int kBlockTokens = 4;
  static constexpr uint32_t kPanels = 1;
  struct Input {};
  static void Prepare(const Pass&, Input*) {}

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
        Keep(pairs[t]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      dots[t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[t], ones),
                                 _mm256_set1_epi32(x.groups[t][group].offsets[kQ4Offset]));
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
    __m256i pairs[2][T];
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w0 = LoadWords(words + j * 64), w1 = LoadWords(words + j * 64 + 32);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i q = Broadcast4(x.codes[token + t] + j * 4);
        const __m256i p0 = _mm256_maddubs_epi16(w0, q), p1 = _mm256_maddubs_epi16(w1, q);
        pairs[0][t] = j == 0 ? p0 : _mm256_add_epi16(pairs[0][t], p0);
        pairs[1][t] = j == 0 ? p1 : _mm256_add_epi16(pairs[1][t], p1);
        Keep(pairs[0][t]);
        Keep(pairs[1][t]);
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m256i offset = _mm256_set1_epi32(x.offsets[kQ4Offset][token + t]);
      dots[0][t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[0][t], ones), offset);
      dots[1][t] = _mm256_add_epi32(_mm256_madd_epi16(pairs[1][t], ones), offset);
    }
  }
};

// Signed codes of 8 bits: q8's as they lie there, those of a table after a shuffle.
struct Q8Words {
  static constexpr uint32_t kHalfBytes = 512;
  static __m256i Word(const uint8_t* words, uint32_t j) { return LoadWords(words + j * 64); }
};
template <class Codes>
struct NibbleWords : TableWords<Codes, 0> {
  static constexpr uint32_t kHalfBytes = 256;
};

template <class Words, class Scales>
struct SignedCodes : Words, Scales {
  static constexpr uint32_t kUnpackedBytes = 1024;
  static constexpr int kBlockTokens = 4;
  static constexpr uint32_t kPanels = 4;

  // Signs move from the weights to the activations. A pair is at most 2 * 128 * 127 = 32512: it fits
  // int16 but two do not, so every word is widened. Activations are never -128.
  template <int T>
  static void Dots(const uint8_t* words, const Tokens<T>& x, uint32_t group, __m256i* dots) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m256i w = Words::Word(words, j);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i signed_x = _mm256_sign_epi8(Broadcast4(x.q[t] + group * 32 + j * 4), w);
        const __m256i dot = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), ones);
        dots[t] = j == 0 ? dot : _mm256_add_epi32(dots[t], dot);
        Keep(dots[t]);
      }
    }
  }

  // Many tokens: int16, of which vpmaddwd adds two products in 32 bits. Two of them and two additions
  // make four instructions for four columns, as above, but two of them run on any of three ports,
  // where three of the above share two. Columns 0 and 2 of each four in a word, then 1 and 3.
  static __m256i Even(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
  static __m256i Odd(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }
  static void Unpack(const uint8_t* half, uint8_t* words) {
    for (uint32_t i = 0; i < 16; ++i) {
      const __m256i w = Words::Word(half + i % 2 * 32, i / 2);
      StoreWords(words + i / 2 * 128 + i % 2 * 32, Even(w));
      StoreWords(words + i / 2 * 128 + i % 2 * 32 + 64, Odd(w));
    }
  }
  struct Input {
    alignas(64) uint8_t words[kStretchPanelTiles / kPanels * 2][kPackedTokens][64];
  };
  static void Prepare(const Pass& pass, Input* input) {
    for (uint32_t g = 0; g < pass.groups; ++g) {
      for (uint32_t t = 0; t < pass.tokens; ++t) {
        const __m256i x = LoadWords(reinterpret_cast<const uint8_t*>(pass.x[g].codes[t]));
        StoreWords(input->words[g][t], Even(x));
        StoreWords(input->words[g][t] + 32, Odd(x));
      }
    }
  }

  template <int T>
  static void UnpackedDots(const uint8_t* words, const PackedGroup&, const Input& input,
                           uint32_t group, uint32_t token, __m256i (*dots)[T]) {
    const int8_t* x = reinterpret_cast<const int8_t*>(input.words[group][token]);
#pragma GCC unroll 16
    for (uint32_t j = 0; j < 16; ++j) {
      const __m256i w0 = LoadWords(words + j * 64), w1 = LoadWords(words + j * 64 + 32);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256i pair = Broadcast4(x + t * 64 + j / 2 * 4 + j % 2 * 32);
        const __m256i p0 = _mm256_madd_epi16(w0, pair), p1 = _mm256_madd_epi16(w1, pair);
        dots[0][t] = j == 0 ? p0 : _mm256_add_epi32(dots[0][t], p0);
        dots[1][t] = j == 0 ? p1 : _mm256_add_epi32(dots[1][t], p1);
        Keep(dots[0][t]);
        Keep(dots[1][t]);
      }
    }
  }
};

}  // namespace

const KernelTable kAvx2Kernels = {
    PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
    PanelQuantised<SignedCodes<Q8Words, F16Scales>>, PanelQuantised<Q4<F16Scales>>,
    PanelQuantised<Q4<Bf16Scales>>, PanelQuantised<SignedCodes<NibbleWords<E2M1Codes>, Bf16Scales>>,
    PanelQuantised<SignedCodes<NibbleWords<Iq4NlCodes>, F16Scales>>, kPackedTokens,
    MORAINE_LANE_KERNELS(Lanes256)};

}  // namespace moraine
