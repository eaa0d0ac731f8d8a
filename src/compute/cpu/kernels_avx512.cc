// AVX-512 with VNNI: one register is 16 rows, the whole height of a tile. Integer dot products as in
// kernels_avx_vnni.cc.
#include <immintrin.h>

#include "compute/cpu/attention_kernels.h"
#include "compute/cpu/kernel_table.h"
#include "compute/cpu/kernels_amx.h"
#include "compute/cpu/lane_kernels.h"
#include "compute/cpu/packed_gemm.h"
#include "compute/cpu/recurrent_kernels.h"

namespace moraine {
namespace {

struct Lanes512 {
  static constexpr uint32_t kTileRows = 8, kTileVectors = 2;
  using V = __m512;
  static __mmask16 Mask(uint32_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load_n(const float* p, uint32_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static V load_bf16(const uint8_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static V load_int8(const int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Codes one place lower are E4M3 / 256 as f16.
  static V load_e4m3(const uint8_t* p) {
    const __m256i high = _mm256_slli_epi16(
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 8);
    return _mm512_cvtph_ps(
        _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(~0x4000)));
  }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  static void store_n(float* p, V v, uint32_t n) { _mm512_mask_storeu_ps(p, Mask(n), v); }
  static void store_int8(int8_t* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static V set1(float x) { return _mm512_set1_ps(x); }
  static float first(V v) { return _mm512_cvtss_f32(v); }
  static V add(V x, V y) { return _mm512_add_ps(x, y); }
  static V sub(V x, V y) { return _mm512_sub_ps(x, y); }
  static V mul(V x, V y) { return _mm512_mul_ps(x, y); }
  static V div(V x, V y) { return _mm512_div_ps(x, y); }
  static V fma(V x, V y, V z) { return _mm512_fmadd_ps(x, y, z); }
  static V max(V x, V y) { return _mm512_max_ps(x, y); }
  static V min(V x, V y) { return _mm512_min_ps(x, y); }
  static V abs(V x) { return _mm512_abs_ps(x); }
  static V round(V x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static float sqrt1(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
  static V zero_if_less(V x, V y, V v) {
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), _mm512_setzero_ps());
  }
  static V add_exponent(V p, V shifted) {
    return _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
  }
  // Four columns at a time: rows i, i + 4, i + 8 and i + 12 meet in one register while they are
  // loaded, which takes no shuffle, then 4 x 4 within each quarter.
  static void transpose(const float* in, size_t stride, float* out) {
#pragma GCC unroll 4
    for (uint32_t column = 0; column < kLaneCount; column += 4) {
      __m512 row[4];
#pragma GCC unroll 4
      for (uint32_t i = 0; i < 4; ++i) {
        const float* p = in + i * stride + column;
        row[i] = _mm512_castps128_ps512(_mm_loadu_ps(p));
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 4 * stride), 1);
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 8 * stride), 2);
        row[i] = _mm512_insertf32x4(row[i], _mm_loadu_ps(p + 12 * stride), 3);
      }
      const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(row[0], row[1]));
      const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(row[0], row[1]));
      const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(row[2], row[3]));
      const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(row[2], row[3]));
      float* to = out + column * kLaneCount;
      _mm512_storeu_ps(to, _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)));
      _mm512_storeu_ps(to + 16, _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)));
      _mm512_storeu_ps(to + 32, _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)));
      _mm512_storeu_ps(to + 48, _mm512_castpd_ps(_mm512_unpackhi_pd(b, d)));
    }
  }
  // By halves, as every table; _mm512_reduce_add_ps leaves the order to the compiler.
  static float reduce_add(V v) {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four =
        _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static float reduce_max(V v) {
    const __m256 eight =
        _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four =
        _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
};

size_t ActivationRow(const PanelArguments& a, uint32_t token) {
  return a.token_rows != nullptr ? a.token_rows[token] : token;
}

__m512i Broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
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
const uint8_t* Ahead(const PanelArguments& a, const uint8_t* tiles, const uint8_t* next,
                     uint32_t tile) {
  constexpr uint32_t kAhead = (kPrefetchBytes + kTileBytes - 1) / kTileBytes;
  const uint32_t ahead = tile + kAhead;
  return ahead < a.tile_count ? tiles + ahead * a.tile_stride
                              : next + (ahead - a.tile_count) * a.tile_stride;
}
template <uint32_t kBytes>
void Prefetch(const uint8_t* p) {
#pragma GCC unroll 16
  for (uint32_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + i, _MM_HINT_T0);
  }
}

struct ColumnPair {
  __m512 even, odd;
};
struct F32Columns {
  static constexpr uint32_t kBytes = 128;  // of 2 columns x 16 rows
  static ColumnPair Load(const uint8_t* p) {
    return {_mm512_load_ps(p), _mm512_load_ps(p + 64)};
  }
};
struct Bf16Columns {
  static constexpr uint32_t kBytes = 64;
  static ColumnPair Load(const uint8_t* p) {
    const __m512i words = _mm512_load_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(
                words, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
  }
};

// P panels x T tokens: 2 P T accumulators.
template <class Columns, int P, int T>
void FloatBlock(const PanelArguments& a, uint32_t panel, uint32_t token) {
  const Panel* panels = a.panels + panel;
  const NextPanels<P> next(a, panel);
  const float* x[T];
  __m512 even[P][T], odd[P][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = a.x + ActivationRow(a, token + t) * a.x_stride;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) even[p][t] = odd[p][t] = _mm512_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t *data[P], *ahead[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      data[p] = panels[p].tiles + tile * a.tile_stride;
      ahead[p] = Ahead<32 * Columns::kBytes>(a, panels[p].tiles, next.tiles[p], tile);
    }
    for (uint32_t c = 0; c < 64; c += 2) {
      ColumnPair w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        w[p] = Columns::Load(data[p] + c / 2 * Columns::kBytes);
        if constexpr (T <= 2) Prefetch<Columns::kBytes>(ahead[p] + c / 2 * Columns::kBytes);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 x_even = _mm512_set1_ps(x[t][tile * 64 + c]);
        const __m512 x_odd = _mm512_set1_ps(x[t][tile * 64 + c + 1]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
          even[p][t] = _mm512_fmadd_ps(w[p].even, x_even, even[p][t]);
          odd[p][t] = _mm512_fmadd_ps(w[p].odd, x_odd, odd[p][t]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __mmask16 rows = Lanes512::Mask(panels[p].row_count);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      _mm512_mask_storeu_ps(panels[p].y + (token + t) * a.y_stride, rows,
                            _mm512_add_ps(even[p][t], odd[p][t]));
    }
  }
}

// Token blocks of 4, 2 and 1 over P panels at a time.
template <class Columns, int P, int T>
void FloatTokens(const PanelArguments& a, uint32_t token) {
  uint32_t panel = 0;
  for (; panel + P <= a.panel_count; panel += P) FloatBlock<Columns, P, T>(a, panel, token);
  for (; panel < a.panel_count; ++panel) FloatBlock<Columns, 1, T>(a, panel, token);
}

template <class Columns>
void PanelFloat(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 4 <= a.token_count; token += 4) FloatTokens<Columns, 2, 4>(a, token);
  for (; token + 2 <= a.token_count; token += 2) FloatTokens<Columns, 2, 2>(a, token);
  if (token < a.token_count) FloatTokens<Columns, 2, 1>(a, token);
}

// Scales of 16 rows.
struct F16Scales {
  static __m512 LoadScales(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }
};
struct Bf16Scales {
  static __m512 LoadScales(const uint8_t* p) { return Lanes512::load_bf16(p); }
};

// Integer dot products of one group of 32 columns: codes as unsigned bytes, 8 words of 4 columns.
template <class Scales>
struct Q4 : Scales {
  static constexpr uint32_t kHalfBytes = 256;
  static constexpr uint32_t kOffset = kQ4Offset;
  static void Unpack(const uint8_t* half, __m512i* words) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m512i w = _mm512_load_si512(half + j * 64);
      words[j] = _mm512_and_si512(w, nibble);
      words[j + 4] = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
    }
  }
};
// Nibbles that a table makes codes of 8 bits.
template <class Codes, class Scales>
struct TableCodes : Scales {
  static constexpr uint32_t kHalfBytes = 256;
  static constexpr uint32_t kOffset = kQ8Offset;
  static void Unpack(const uint8_t* half, __m512i* words) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
    const __m512i table = _mm512_xor_si512(
        _mm512_broadcast_i32x4(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(Codes::kCodes))),
        _mm512_set1_epi8(-128));
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m512i w = _mm512_load_si512(half + j * 64);
      words[j] = _mm512_shuffle_epi8(table, _mm512_and_si512(w, nibble));
      words[j + 4] =
          _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble));
    }
  }
};
struct Q8 : F16Scales {
  static constexpr uint32_t kHalfBytes = 512;
  static constexpr uint32_t kOffset = kQ8Offset;
  static void Unpack(const uint8_t* half, __m512i* words) {
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      words[j] = _mm512_xor_si512(_mm512_load_si512(half + j * 64), _mm512_set1_epi8(-128));
    }
  }
};

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

// Few tokens: weights go from memory through registers once.
template <class Code, int P, int T>
void DirectBlock(const PanelArguments& a, uint32_t panel, uint32_t token) {
  constexpr uint32_t kTileBytes = 64 + 2 * Code::kHalfBytes;
  const Panel* panels = a.panels + panel;
  const NextPanels<P> next(a, panel);
  const Tokens<T> x(a, token);
  __m512 total[P][T];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) total[p][t] = _mm512_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const uint8_t* data = panels[p].tiles + tile * a.tile_stride;
      const uint8_t* ahead = Ahead<kTileBytes>(a, panels[p].tiles, next.tiles[p], tile);
#pragma GCC unroll 2
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t group = tile * 2 + h;
        Prefetch<64 + Code::kHalfBytes>(ahead + h * Code::kHalfBytes);
        __m512i words[8], dots[T];
        Code::Unpack(data + 64 + h * Code::kHalfBytes, words);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          dots[t] = _mm512_set1_epi32(x.groups[t][group].offsets[Code::kOffset]);
        }
#pragma GCC unroll 8
        for (uint32_t j = 0; j < 8; ++j) {
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            dots[t] = _mm512_dpbusd_epi32(dots[t], words[j],
                                          Broadcast4(x.q[t] + group * 32 + j * 4));
          }
        }
        const __m512 w = Code::LoadScales(data + h * 32);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 scale = _mm512_mul_ps(w, _mm512_set1_ps(x.groups[t][group].scale));
          total[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, total[p][t]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const __mmask16 rows = Lanes512::Mask(panels[p].row_count);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      _mm512_mask_storeu_ps(panels[p].y + (token + t) * a.y_stride, rows, total[p][t]);
    }
  }
}

// Many tokens: a stretch of columns of two panels is unpacked once into L1, codes as unsigned bytes
// and scales as floats, and each block of tokens passes over it. Totals wait in y in between, which
// changes no bit.
constexpr uint32_t kStretchTiles = 8;  // 16 KiB of codes, half of L1
struct Stretch {
  alignas(64) uint8_t codes[2][kStretchTiles * 2 * 512];
  alignas(64) float scales[2][kStretchTiles * 2 * 16];
  uint32_t first_tile, groups;
};

template <class Code, int P>
void UnpackStretch(const PanelArguments& a, const Panel* panels, Stretch* stretch) {
  for (int p = 0; p < P; ++p) {
    for (uint32_t group = 0; group < stretch->groups; ++group) {
      const uint8_t* data = panels[p].tiles + (stretch->first_tile + group / 2) * a.tile_stride;
      __m512i words[8];
      Code::Unpack(data + 64 + group % 2 * Code::kHalfBytes, words);
#pragma GCC unroll 8
      for (uint32_t j = 0; j < 8; ++j) {
        _mm512_store_si512(stretch->codes[p] + group * 512 + j * 64, words[j]);
      }
      _mm512_store_ps(stretch->scales[p] + group * 16, Code::LoadScales(data + group % 2 * 32));
    }
  }
}

template <class Code, int P, int T>
void StretchBlock(const PanelArguments& a, const Panel* panels, const Stretch& stretch,
                  const NextStretch& next, uint32_t token) {
  const Tokens<T> x(a, token);
  __m512 total[P][T];
  __mmask16 rows[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    rows[p] = Lanes512::Mask(panels[p].row_count);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      total[p][t] = stretch.first_tile == 0
                        ? _mm512_setzero_ps()
                        : _mm512_maskz_loadu_ps(rows[p], panels[p].y + (token + t) * a.y_stride);
    }
  }
  for (uint32_t g = 0; g < stretch.groups; ++g) {
    const uint32_t group = stretch.first_tile * 2 + g;
    __m512i dots[P][T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512i offset = _mm512_set1_epi32(x.groups[t][group].offsets[Code::kOffset]);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) dots[p][t] = offset;
    }
    if (g % 2 == 0) {
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) next.Fetch(p, g / 2);
    }
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      __m512i w[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        w[p] = _mm512_load_si512(stretch.codes[p] + g * 512 + j * 64);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512i word = Broadcast4(x.q[t] + group * 32 + j * 4);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) dots[p][t] = _mm512_dpbusd_epi32(dots[p][t], w[p], word);
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const __m512 w = _mm512_load_ps(stretch.scales[p] + g * 16);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 scale = _mm512_mul_ps(w, _mm512_set1_ps(x.groups[t][group].scale));
        total[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[p][t]), scale, total[p][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      _mm512_mask_storeu_ps(panels[p].y + (token + t) * a.y_stride, rows[p], total[p][t]);
    }
  }
}

template <uint32_t T>
struct Block {
  static constexpr uint32_t kTokens = T;
};

template <class Code, int P>
void ManyTokens(const PanelArguments& a, uint32_t panel) {
  Stretch stretch;
  const Panel* panels = a.panels + panel;
  for (uint32_t tile = 0; tile < a.tile_count; tile += kStretchTiles) {
    const uint32_t left = a.tile_count - tile;
    stretch.first_tile = tile;
    stretch.groups = 2 * (left < kStretchTiles ? left : kStretchTiles);
    UnpackStretch<Code, P>(a, panels, &stretch);
    NextStretch next;
    next.Find(a, panels, P, tile, kStretchTiles);
    uint32_t token = 0;
    const auto run = [&](auto block) {
      constexpr uint32_t T = decltype(block)::kTokens;
      for (; token + T <= a.token_count; token += T) {
        next.Share((64 + 2 * Code::kHalfBytes) / 64, token / 7, (a.token_count + 6) / 7);
        StretchBlock<Code, P, T>(a, panels, stretch, next, token);
      }
    };
    run(Block<7>());
    run(Block<4>());
    run(Block<2>());
    run(Block<1>());
  }
}

template <class Code, int T>
void FewTokens(const PanelArguments& a, uint32_t token) {
  if (a.panel_count == 4) {
    DirectBlock<Code, 4, T>(a, 0, token);
    return;
  }
  for (uint32_t panel = 0; panel < a.panel_count; ++panel) DirectBlock<Code, 1, T>(a, panel, token);
}

// Unpacking into L1 is two passes of weights instead of one; from about 12 tokens on it is less than
// unpacking once a block of tokens.
constexpr uint32_t kManyTokens = 12;

template <class Code>
void PanelQuantised(const PanelArguments& a) {
  if (a.token_count >= kManyTokens) {
    uint32_t panel = 0;
    for (; panel + 2 <= a.panel_count; panel += 2) ManyTokens<Code, 2>(a, panel);
    if (panel < a.panel_count) ManyTokens<Code, 1>(a, panel);
    return;
  }
  uint32_t token = 0;
  for (; token + 4 <= a.token_count; token += 4) FewTokens<Code, 4>(a, token);
  for (; token + 2 <= a.token_count; token += 2) FewTokens<Code, 2>(a, token);
  if (token < a.token_count) FewTokens<Code, 1>(a, token);
}

// AMX against these kernels, two threads, q4 and q8: 0.92 and 1.04 times as fast with 16 tokens,
// 0.96 and 1.08 with 32, 1.08 and 1.13 with 128.
constexpr uint32_t kAmxTokens = 32;

template <class Code, PanelFunction kPacked>
void PackedOrFew(const PanelArguments& a) {
  (a.packed != nullptr ? kPacked : PanelQuantised<Code>)(a);
}

}  // namespace

using Q4F16 = Q4<F16Scales>;
using Q4Bf16 = Q4<Bf16Scales>;
using Mxfp4 = TableCodes<E2M1Codes, Bf16Scales>;
using Iq4Nl = TableCodes<Iq4NlCodes, F16Scales>;

const KernelTable kAvx512Kernels = {
    PanelFloat<F32Columns>, PanelFloat<Bf16Columns>, PanelQuantised<Q8>, PanelQuantised<Q4F16>,
    PanelQuantised<Q4Bf16>, PanelQuantised<Mxfp4>, PanelQuantised<Iq4Nl>, kNeverPacked,
    MORAINE_LANE_KERNELS(Lanes512)};

const KernelTable kAmxKernels = {
    PanelFloat<F32Columns>, PanelFloat<Bf16Columns>, PackedOrFew<Q8, AmxPackedQ8>,
    PackedOrFew<Q4F16, AmxPackedQ4>, PackedOrFew<Q4Bf16, AmxPackedQ4Bf16>,
    PackedOrFew<Mxfp4, AmxPackedMxfp4>, PackedOrFew<Iq4Nl, AmxPackedIq4Nl>, kAmxTokens,
    MORAINE_LANE_KERNELS(Lanes512)};

}  // namespace moraine
