// What the AVX2 and the AVX-VNNI tables share: 16 lanes as two 256-bit registers, the float panels,
// and the frame of the quantised ones. Included by one file for each, inside its own flags;
// everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"

namespace moraine {
namespace {

alignas(32) constexpr int32_t kTailMask[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                               -1, -1, -1, -1, -1, 0,  0,  0,  0,  0,  0,
                                               0,  0,  0,  0,  0,  0,  0,  0,  0,  0};

struct Lanes256 {
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

inline void StoreRows(const PanelArguments& a, uint32_t token, __m256 low, __m256 high) {
  float* y = a.y + token * a.y_stride;
  if (a.row_count == 16) {
    Lanes256::store(y, {low, high});
  } else {
    Lanes256::store_n(y, {low, high}, a.row_count);
  }
}

inline __m256i LoadWords(const uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256i Broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

template <uint32_t kBytes>
inline void PrefetchAfter(const uint8_t* data) {
#pragma GCC unroll 32
  for (uint32_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data) + kPrefetchBytes + i, _MM_HINT_T0);
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

// T tokens at a time: 2 x 2 x T accumulators, 2 is what 16 registers hold.
template <class Columns, int T>
void FloatTokens(const PanelArguments& a, uint32_t token) {
  const float* x[T];
  __m256 even[2][T], odd[2][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = a.x + ActivationRow(a, token + t) * a.x_stride;
    even[0][t] = even[1][t] = odd[0][t] = odd[1][t] = _mm256_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t* data = a.tiles + tile * a.tile_stride;
    if constexpr (T == 1) PrefetchAfter<32 * Columns::kBytes>(data);
    for (uint32_t c = 0; c < 64; c += 2, data += Columns::kBytes) {
      const ColumnPair w0 = Columns::Load(data, 0), w1 = Columns::Load(data, 1);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m256 x_even = _mm256_broadcast_ss(x[t] + tile * 64 + c);
        const __m256 x_odd = _mm256_broadcast_ss(x[t] + tile * 64 + c + 1);
        even[0][t] = _mm256_fmadd_ps(w0.even, x_even, even[0][t]);
        even[1][t] = _mm256_fmadd_ps(w1.even, x_even, even[1][t]);
        odd[0][t] = _mm256_fmadd_ps(w0.odd, x_odd, odd[0][t]);
        odd[1][t] = _mm256_fmadd_ps(w1.odd, x_odd, odd[1][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    StoreRows(a, token + t, _mm256_add_ps(even[0][t], odd[0][t]),
              _mm256_add_ps(even[1][t], odd[1][t]));
  }
}

template <class Columns>
void PanelFloat(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 2 <= a.token_count; token += 2) FloatTokens<Columns, 2>(a, token);
  if (token < a.token_count) FloatTokens<Columns, 1>(a, token);
}

// Dot::Run gives the exact integer dot products of 8 rows and one group of 32 columns.
template <class Dot, int T>
void QuantisedTokens(const PanelArguments& a, uint32_t token) {
  const int8_t* q[T];
  const float* scales[T];
  const int32_t* sums[T];
  __m256 total[2][T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const size_t row = ActivationRow(a, token + t);
    q[t] = a.q + row * a.q_stride;
    scales[t] = a.scales + row * a.group_stride;
    sums[t] = a.sums + row * a.group_stride;
    total[0][t] = total[1][t] = _mm256_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t* data = a.tiles + tile * a.tile_stride;
    if constexpr (T == 1) PrefetchAfter<64 + 2 * Dot::kHalfBytes>(data);
#pragma GCC unroll 2
    for (uint32_t h = 0; h < 2; ++h) {
      const uint32_t group = tile * 2 + h;
#pragma GCC unroll 2
      for (uint32_t part = 0; part < 2; ++part) {
        __m256i dots[T];
        Dot::template Run<T>(data + 64 + h * Dot::kHalfBytes + part * 32, q, group, sums, dots);
        const __m256 w = _mm256_cvtph_ps(
            _mm_load_si128(reinterpret_cast<const __m128i*>(data + h * 32 + part * 16)));
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256 scale = _mm256_mul_ps(w, _mm256_broadcast_ss(scales[t] + group));
          total[part][t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), scale, total[part][t]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) StoreRows(a, token + t, total[0][t], total[1][t]);
}

template <class Dot>
void PanelQuantised(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 4 <= a.token_count; token += 4) QuantisedTokens<Dot, 4>(a, token);
  for (; token + 2 <= a.token_count; token += 2) QuantisedTokens<Dot, 2>(a, token);
  if (token < a.token_count) QuantisedTokens<Dot, 1>(a, token);
}

}  // namespace
}  // namespace moraine
