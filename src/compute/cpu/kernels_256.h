// What the AVX2 and the AVX-VNNI tables share: 16 lanes as two 256-bit registers, the float panels,
// and the frame of the quantised ones. Included by one file for each, inside its own flags;
// everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "compute/cpu/attention_kernels.h"
#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"
#include "compute/cpu/packed_gemm.h"
#include "compute/cpu/recurrent_kernels.h"

namespace moraine {
namespace {

alignas(32) constexpr int32_t kTailMask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                               -1, -1, -1, -1, -1, 0,  0,  0,  0,  0,  0,
                                               0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

struct Lanes256 {
  // 12 accumulators, 2 registers of the block and one broadcast: 15 of 16.
  static constexpr uint32_t kTileRows = 6, kTileVectors = 1;
  struct V {
    __m256 a, b;  // lanes 0-7 and 8-15
  };
  // Lanes [8 * part, 8 * part + 8) of a mask with the first n lanes set.
  static __m256i Mask(uint32_t n, uint32_t part) {
    return _mm256_loadu_si256(
        reinterpret_cast<const __m256i*>(kTailMask + kLaneCount - n + 8 * part));
  }
  static V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static V load_n(const float* p, uint32_t n) {
    return {_mm256_maskload_ps(p, Mask(n, 0)), _mm256_maskload_ps(p + 8, Mask(n, 1))};
  }
  static __m256 LoadBf16(const uint8_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static V load_bf16(const uint8_t* p) { return {LoadBf16(p), LoadBf16(p + 16)}; }
  static V load_int8(const int8_t* p) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
  }
  // Codes one place lower are E4M3 / 256 as f16.
  static V load_e4m3(const uint8_t* p) {
    const __m256i high = _mm256_slli_epi16(
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 8);
    const __m256i halves =
        _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(~0x4000));
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  static void store(float* p, V v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static void store_n(float* p, V v, uint32_t n) {
    _mm256_maskstore_ps(p, Mask(n, 0), v.a);
    _mm256_maskstore_ps(p + 8, Mask(n, 1), v.b);
  }
  static void store_int8(int8_t* p, V v) {
    const __m256i words = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(words),
                                     _mm256_extracti128_si256(words, 1)));
  }
  static V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static float first(V v) { return _mm256_cvtss_f32(v.a); }
  static V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static V fma(V x, V y, V z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
  static V max(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static V min(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static V abs(V x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static V round(V x) {
    return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
            _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static float sqrt1(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
  static V zero_if_less(V x, V y, V v) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), v.a),
            _mm256_andnot_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ), v.b)};
  }
  static __m256 AddExponent(__m256 p, __m256 shifted) {
    return _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
  }
  static V add_exponent(V p, V shifted) {
    return {AddExponent(p.a, shifted.a), AddExponent(p.b, shifted.b)};
  }
  // Four columns at a time: rows i and i + 4 meet in one register while they are loaded, which takes
  // no shuffle, then 4 x 4 within each half.
  static void transpose(const float* in, size_t stride, float* out) {
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; ++half) {
#pragma GCC unroll 4
      for (uint32_t column = 0; column < kLaneCount; column += 4) {
        __m256 row[4];
#pragma GCC unroll 4
        for (uint32_t i = 0; i < 4; ++i) {
          const float* p = in + (half * 8 + i) * stride + column;
          row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)),
                                        _mm_loadu_ps(p + 4 * stride), 1);
        }
        const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(row[0], row[1]));
        const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(row[0], row[1]));
        const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(row[2], row[3]));
        const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(row[2], row[3]));
        float* to = out + column * kLaneCount + half * 8;
        _mm256_storeu_ps(to, _mm256_castpd_ps(_mm256_unpacklo_pd(a, c)));
        _mm256_storeu_ps(to + 16, _mm256_castpd_ps(_mm256_unpackhi_pd(a, c)));
        _mm256_storeu_ps(to + 32, _mm256_castpd_ps(_mm256_unpacklo_pd(b, d)));
        _mm256_storeu_ps(to + 48, _mm256_castpd_ps(_mm256_unpackhi_pd(b, d)));
      }
    }
  }
  static float reduce_add(V v) {
    const __m256 eight = _mm256_add_ps(v.a, v.b);
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float reduce_max(V v) {
    const __m256 eight = _mm256_max_ps(v.a, v.b);
    const __m128 four =
        _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
};

inline size_t ActivationRow(const PanelArguments& a, uint32_t token) {
  return a.token_rows != nullptr ? a.token_rows[token] : token;
}

inline void StoreRows(const Panel& panel, size_t offset, __m256 low, __m256 high) {
  if (panel.row_count == 16) {
    Lanes256::store(panel.y + offset, {low, high});
  } else {
    Lanes256::store_n(panel.y + offset, {low, high}, panel.row_count);
  }
}

inline __m256i LoadWords(const uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
inline void StoreWords(uint8_t* p, __m256i words) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), words);
}
inline __m256i Broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

// The panels whose turn comes after those of a block, in their places.
template <int P>
struct NextPanels {
  NextPanels(const PanelArguments& a, uint32_t panel) {
#pragma GCC unroll 4
    for (uint32_t p = 0; p < P; ++p) {
      const uint32_t next = panel + P + p;
      const bool wraps = next >= a.panel_count;
      tiles[p] = a.panels[(wraps ? next - a.panel_count : next) % kMaxPanels].tiles +
                 (wraps ? a.next_panel : 0);
    }
  }
  const uint8_t* tiles[P];
};

// Where the weights lie that are wanted kPrefetchBytes from now: further along this panel or, near
// its end, in the next. (A prefetch of nothing is ignored.)
template <uint32_t kTileBytes>
inline const uint8_t* Ahead(const PanelArguments& a, const uint8_t* tiles, const uint8_t* next,
                     uint32_t tile) {
  constexpr uint32_t kAhead = (kPrefetchBytes + kTileBytes - 1) / kTileBytes;
  const uint32_t ahead = tile + kAhead;
  return ahead < a.tile_count ? tiles + ahead * a.tile_stride
                              : next + (ahead - a.tile_count) * a.tile_stride;
}
template <uint32_t kBytes>
inline void Prefetch(const uint8_t* p) {
#pragma GCC unroll 16
  for (uint32_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + i, _MM_HINT_T0);
  }
}

// Two columns of eight rows.
struct ColumnPair {
  __m256 even, odd;
};
struct F32Columns {
  static constexpr uint32_t kBytes = 128;  // of 2 columns x 16 rows
  static ColumnPair Load(const uint8_t* p, uint32_t part) {
    const float* values = reinterpret_cast<const float*>(p) + 8 * part;
    return {_mm256_load_ps(values), _mm256_load_ps(values + 16)};
  }
};
struct Bf16Columns {
  static constexpr uint32_t kBytes = 64;
  static ColumnPair Load(const uint8_t* p, uint32_t part) {
    const __m256i words = LoadWords(p + 32 * part);
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(
                words, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))))};
  }
};

// P panels x T tokens: 4 P T accumulators, of which 16 registers hold 8.
template <class Columns, int P, int T>
void FloatBlock(const PanelArguments& a, uint32_t panel, uint32_t token) {
  const Panel* panels = a.panels + panel;
  const NextPanels<P> next(a, panel);
  const float* x[T];
  __m256 even[P][2][T], odd[P][2][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = a.x + ActivationRow(a, token + t) * a.x_stride;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      even[p][0][t] = even[p][1][t] = odd[p][0][t] = odd[p][1][t] = _mm256_setzero_ps();
    }
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t *data[P], *ahead[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      data[p] = panels[p].tiles + tile * a.tile_stride;
      ahead[p] = Ahead<32 * Columns::kBytes>(a, panels[p].tiles, next.tiles[p], tile);
    }
    for (uint32_t c = 0; c < 64; c += 2) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const uint8_t* words = data[p] + c / 2 * Columns::kBytes;
        if constexpr (T <= 2) Prefetch<Columns::kBytes>(ahead[p] + c / 2 * Columns::kBytes);
        const ColumnPair w0 = Columns::Load(words, 0), w1 = Columns::Load(words, 1);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256 x_even = _mm256_broadcast_ss(x[t] + tile * 64 + c);
          const __m256 x_odd = _mm256_broadcast_ss(x[t] + tile * 64 + c + 1);
          even[p][0][t] = _mm256_fmadd_ps(w0.even, x_even, even[p][0][t]);
          even[p][1][t] = _mm256_fmadd_ps(w1.even, x_even, even[p][1][t]);
          odd[p][0][t] = _mm256_fmadd_ps(w0.odd, x_odd, odd[p][0][t]);
          odd[p][1][t] = _mm256_fmadd_ps(w1.odd, x_odd, odd[p][1][t]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      StoreRows(panels[p], (token + t) * a.y_stride, _mm256_add_ps(even[p][0][t], odd[p][0][t]),
                _mm256_add_ps(even[p][1][t], odd[p][1][t]));
    }
  }
}

template <class Columns>
void PanelFloat(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 2 <= a.token_count; token += 2) {
    for (uint32_t p = 0; p < a.panel_count; ++p) FloatBlock<Columns, 1, 2>(a, p, token);
  }
  if (token == a.token_count) return;
  uint32_t panel = 0;
  for (; panel + 2 <= a.panel_count; panel += 2) FloatBlock<Columns, 2, 1>(a, panel, token);
  if (panel < a.panel_count) FloatBlock<Columns, 1, 1>(a, panel, token);
}

// What T tokens bring to one group after the other.
template <int T>
struct Tokens {
  Tokens(const PanelArguments& a, uint32_t token) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const size_t row = ActivationRow(a, token + t);
      q[t] = a.q + row * a.q_stride;
      groups[t] = a.groups + row * a.group_stride;
    }
  }
  const int8_t* q[T];
  const ActivationGroup* groups[T];
};

// Scales of 8 rows.
struct F16Scales {
  static __m256 LoadScales(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
};
struct Bf16Scales {
  static __m256 LoadScales(const uint8_t* p) { return Lanes256::LoadBf16(p); }
};

// Word j of a group's 8 words of 4 columns, of 8 rows, from nibbles: codes, kFlip on each byte.
template <class Codes, uint8_t kFlip>
struct TableWords {
  static __m256i Word(const uint8_t* words, uint32_t j) {
    const __m256i codes = _mm256_broadcastsi128_si256(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(Codes::kCodes)));
    const __m256i table = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(kFlip)));
    const __m256i w = LoadWords(words + j % 4 * 64);
    const __m256i nibbles =
        _mm256_and_si256(j < 4 ? w : _mm256_srli_epi16(w, 4), _mm256_set1_epi8(0xF));
    return _mm256_shuffle_epi8(table, nibbles);
  }
};

// Few tokens: weights go from memory through registers once. Code::Dots gives the exact integer dot
// products of 8 rows and one group of 32 columns, Code::LoadScales their scales.
template <class Code, int P, int T>
void DirectBlock(const PanelArguments& a, uint32_t panel, uint32_t token) {
  const Panel* panels = a.panels + panel;
  const NextPanels<P> next(a, panel);
  const Tokens<T> x(a, token);
  __m256 total[P][2][T];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) total[p][0][t] = total[p][1][t] = _mm256_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const uint8_t* data = panels[p].tiles + tile * a.tile_stride;
      const uint8_t* ahead =
          Ahead<64 + 2 * Code::kHalfBytes>(a, panels[p].tiles, next.tiles[p], tile);
#pragma GCC unroll 2
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t group = tile * 2 + h;
        Prefetch<64 + Code::kHalfBytes>(ahead + h * Code::kHalfBytes);
#pragma GCC unroll 2
        for (uint32_t part = 0; part < 2; ++part) {
          __m256i dots[T];
          Code::template Dots<T>(data + 64 + h * Code::kHalfBytes + part * 32, x, group, dots);
          const __m256 w = Code::LoadScales(data + h * 32 + part * 16);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            const __m256 scale = _mm256_mul_ps(w, _mm256_broadcast_ss(&x.groups[t][group].scale));
            total[p][part][t] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), scale, total[p][part][t]);
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      StoreRows(panels[p], (token + t) * a.y_stride, total[p][0][t], total[p][1][t]);
    }
  }
}

// Many tokens: packed_gemm.h. T tokens x 16 rows at a time, totals in L1: they are used once in a
// group, and their registers hold more sums. A Code has
//   Unpack(half, words)                        one group of 16 rows as its dot products want it
//   Input, Prepare(pass, &input)               a block's activations likewise, once for all panels
//   UnpackedDots<T>(words, ..., dots)          exact, of 16 rows and T tokens
constexpr uint32_t kStretchPanelTiles = 16;  // of all panels; 16 or 32 KiB of codes
template <class Code>
struct Gemm {
  static constexpr uint32_t kPanels = Code::kPanels;
  static constexpr uint32_t kStretchTiles = kStretchPanelTiles / kPanels;
  static constexpr uint32_t kTileBytes = 64 + 2 * Code::kHalfBytes;
  struct Stretch {
    alignas(64) uint8_t codes[kStretchTiles * 2 * Code::kUnpackedBytes];
    alignas(64) float scales[kStretchTiles * 2 * 16];
  };
  static void End() {}

  static void Unpack(const uint8_t* tiles, size_t tile_stride, uint32_t groups, Stretch* stretch) {
    for (uint32_t g = 0; g < groups; ++g) {
      const uint8_t* data = tiles + g / 2 * tile_stride;
      Code::Unpack(data + 64 + g % 2 * Code::kHalfBytes, stretch->codes + g * Code::kUnpackedBytes);
      _mm256_store_ps(stretch->scales + g * 16, Code::LoadScales(data + g % 2 * 32));
      _mm256_store_ps(stretch->scales + g * 16 + 8, Code::LoadScales(data + g % 2 * 32 + 16));
    }
  }

  // Not inlined: addresses that are constants from three pointers on fit the registers.
  template <int T>
  __attribute__((noinline)) static void Tokens(const Pass& pass, uint32_t panel,
                                               const Stretch& stretch,
                                               const typename Code::Input& input, uint32_t token,
                                               float (*totals)[16]) {
    const uint8_t* codes = stretch.codes;
    const float* scales = stretch.scales;
    const PackedGroup* x = pass.x;
    for (uint32_t g = 0; g < pass.groups; ++g, ++x, codes += Code::kUnpackedBytes, scales += 16) {
      __m256i dots[2][T];
      Code::template UnpackedDots<T>(codes, *x, input, g, token, dots);
      if (token == 0 && g % 2 == 0) pass.next.Fetch(panel, g / 2);
      asm volatile("" ::: "memory");  // or totals would move into registers and push sums out
#pragma GCC unroll 2
      for (uint32_t part = 0; part < 2; ++part) {
        const __m256 w = _mm256_load_ps(scales + part * 8);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256 scale = _mm256_mul_ps(w, _mm256_broadcast_ss(x->scales + token + t));
          float* total = totals[t] + part * 8;
          _mm256_store_ps(total, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[part][t]), scale,
                                                 _mm256_load_ps(total)));
        }
      }
    }
  }

  static void RunPanel(const Pass& pass, uint32_t panel, const Stretch& stretch,
                       const typename Code::Input& input) {
    alignas(64) float totals[kPackedTokens][16];
    const uint32_t rows = pass.panels[panel].row_count;
    for (uint32_t t = 0; t < pass.tokens; ++t) {
      const float* y = pass.y(panel, t);
      const Lanes256::V sum = pass.first ? Lanes256::set1(0.0f)
                              : rows == 16 ? Lanes256::load(y)
                                           : Lanes256::load_n(y, rows);
      Lanes256::store(totals[t], sum);
    }
    constexpr int T = Code::kBlockTokens;
    uint32_t t = 0;
    for (; t + T <= pass.tokens; t += T) Tokens<T>(pass, panel, stretch, input, t, totals + t);
    for (; t + 4 <= pass.tokens; t += 4) Tokens<4>(pass, panel, stretch, input, t, totals + t);
    for (; t < pass.tokens; ++t) Tokens<1>(pass, panel, stretch, input, t, totals + t);
    for (t = 0; t < pass.tokens; ++t) {
      StoreRows(pass.panels[panel], pass.y_offset + t * pass.y_stride, _mm256_load_ps(totals[t]),
                _mm256_load_ps(totals[t] + 8));
    }
  }

  template <int P>
  static void Run(const Pass& pass, const Stretch* stretch) {
    typename Code::Input input;
    Code::Prepare(pass, &input);
    for (uint32_t p = 0; p < P; ++p) RunPanel(pass, p, stretch[p], input);
  }
};

// Four tokens leave memory time to spare, and one panel's sums fill the registers; with one or two
// it is four panels, streams that memory is read faster by.
template <class Code, int T>
void FewTokens(const PanelArguments& a, uint32_t token) {
  if (T <= 2 && a.panel_count == 4) {
    DirectBlock<Code, 4, T>(a, 0, token);
    return;
  }
  for (uint32_t panel = 0; panel < a.panel_count; ++panel) DirectBlock<Code, 1, T>(a, panel, token);
}

template <class Code>
void PanelQuantised(const PanelArguments& a) {
  if (a.packed != nullptr) {
    PackedGemm<Gemm<Code>>(a);
    return;
  }
  uint32_t token = 0;
  for (; token + 4 <= a.token_count; token += 4) FewTokens<Code, 4>(a, token);
  for (; token + 2 <= a.token_count; token += 2) FewTokens<Code, 2>(a, token);
  if (token < a.token_count) FewTokens<Code, 1>(a, token);
}

}  // namespace
}  // namespace moraine
