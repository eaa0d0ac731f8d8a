// AVX-512 with VNNI: one register is 16 rows, the whole height of a tile. Integer dot products as in
// kernels_avx_vnni.cc.
#include <immintrin.h>

#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"

namespace moraine {
namespace {

struct Lanes512 {
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

void StoreRows(const PanelArguments& a, uint32_t token, __m512 v) {
  _mm512_mask_storeu_ps(a.y + token * a.y_stride, Lanes512::Mask(a.row_count), v);
}

__m512i Broadcast4(const int8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}

template <uint32_t kBytes>
void PrefetchAfter(const uint8_t* data) {
#pragma GCC unroll 32
  for (uint32_t i = 0; i < kBytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(data) + kPrefetchBytes + i, _MM_HINT_T0);
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

template <class Columns, int T>
void FloatTokens(const PanelArguments& a, uint32_t token) {
  const float* x[T];
  __m512 even[T], odd[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = a.x + ActivationRow(a, token + t) * a.x_stride;
    even[t] = odd[t] = _mm512_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t* data = a.tiles + tile * a.tile_stride;
    if constexpr (T == 1) PrefetchAfter<32 * Columns::kBytes>(data);
    for (uint32_t c = 0; c < 64; c += 2, data += Columns::kBytes) {
      const ColumnPair w = Columns::Load(data);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        even[t] = _mm512_fmadd_ps(w.even, _mm512_set1_ps(x[t][tile * 64 + c]), even[t]);
        odd[t] = _mm512_fmadd_ps(w.odd, _mm512_set1_ps(x[t][tile * 64 + c + 1]), odd[t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) StoreRows(a, token + t, _mm512_add_ps(even[t], odd[t]));
}

struct DotQ4 {
  static constexpr uint32_t kHalfBytes = 256;
  static constexpr int32_t kOffset = 8;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group, __m512i* dots) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m512i w = _mm512_load_si512(words + j * 64);
      const __m512i low = _mm512_and_si512(w, nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const int8_t* x = q[t] + group * 32 + j * 4;
        dots[t] = _mm512_dpbusd_epi32(dots[t], low, Broadcast4(x));
        dots[t] = _mm512_dpbusd_epi32(dots[t], high, Broadcast4(x + 16));
      }
    }
  }
};

struct DotQ8 {
  static constexpr uint32_t kHalfBytes = 512;
  static constexpr int32_t kOffset = 128;

  template <int T>
  static void Run(const uint8_t* words, const int8_t* const* q, uint32_t group, __m512i* dots) {
    const __m512i flip = _mm512_set1_epi8(-128);
#pragma GCC unroll 8
    for (uint32_t j = 0; j < 8; ++j) {
      const __m512i w = _mm512_xor_si512(_mm512_load_si512(words + j * 64), flip);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        dots[t] = _mm512_dpbusd_epi32(dots[t], w, Broadcast4(q[t] + group * 32 + j * 4));
      }
    }
  }
};

template <class Dot, int T>
void QuantisedTokens(const PanelArguments& a, uint32_t token) {
  const int8_t* q[T];
  const float* scales[T];
  const int32_t* sums[T];
  __m512 total[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    const size_t row = ActivationRow(a, token + t);
    q[t] = a.q + row * a.q_stride;
    scales[t] = a.scales + row * a.group_stride;
    sums[t] = a.sums + row * a.group_stride;
    total[t] = _mm512_setzero_ps();
  }
  for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
    const uint8_t* data = a.tiles + tile * a.tile_stride;
    if constexpr (T == 1) PrefetchAfter<64 + 2 * Dot::kHalfBytes>(data);
#pragma GCC unroll 2
    for (uint32_t h = 0; h < 2; ++h) {
      const uint32_t group = tile * 2 + h;
      __m512i dots[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) dots[t] = _mm512_set1_epi32(sums[t][group] * -Dot::kOffset);
      Dot::template Run<T>(data + 64 + h * Dot::kHalfBytes, q, group, dots);
      const __m512 w = _mm512_cvtph_ps(
          _mm256_load_si256(reinterpret_cast<const __m256i*>(data + h * 32)));
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 scale = _mm512_mul_ps(w, _mm512_set1_ps(scales[t][group]));
        total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, total[t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) StoreRows(a, token + t, total[t]);
}

template <class Columns>
void PanelFloat(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 8 <= a.token_count; token += 8) FloatTokens<Columns, 8>(a, token);
  for (; token + 2 <= a.token_count; token += 2) FloatTokens<Columns, 2>(a, token);
  if (token < a.token_count) FloatTokens<Columns, 1>(a, token);
}

template <class Dot>
void PanelQuantised(const PanelArguments& a) {
  uint32_t token = 0;
  for (; token + 8 <= a.token_count; token += 8) QuantisedTokens<Dot, 8>(a, token);
  for (; token + 2 <= a.token_count; token += 2) QuantisedTokens<Dot, 2>(a, token);
  if (token < a.token_count) QuantisedTokens<Dot, 1>(a, token);
}

}  // namespace

const KernelTable kAvx512Kernels = {PanelFloat<F32Columns>, PanelFloat<Bf16Columns>,
                                    PanelQuantised<DotQ8>, PanelQuantised<DotQ4>,
                                    MORAINE_LANE_KERNELS(Lanes512)};

}  // namespace moraine
