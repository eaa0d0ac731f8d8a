// Quantised weights for many tokens with AMX: a tile of 16 tokens x 32 columns times one of 32 columns x 16
// rows gives the integer dot products of a group exactly; AVX-512 scales and adds them in the order of
// every other table. So the bits are the same, too.
//
// What binds is not the multiplier (16 cycles a group of 16 x 16 results) but the scaling: 16
// conversions, multiplications and fused multiply-adds on two ports, 24 cycles, and as many loads.
// Hence one product at a time with its 16 totals in registers; the next tile's products are under
// way while this one's are scaled. q8 weights are read as they lie in the record.
//
// Tiles is the tile unit: AMX itself (kernels_amx.cc) or plain loops (a test, on any CPU that has
// AVX-512). It has
//   Configure(rows), Release()   rows: tokens of the following products, 1 to 16
//   Dots<half>(x, w, out)        out[token][row] = sum over 32 of x[token] * w[row], int8 x int8;
//                                half: 0 or 1, so that two can be under way
#pragma once

#include <immintrin.h>

#include "compute/cpu/kernel_table.h"
#include "compute/cpu/packed_gemm.h"

namespace moraine {
namespace {

struct AmxF16Scales {
  static __m512 LoadScales(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)));
  }
};
struct AmxBf16Scales {
  static __m512 LoadScales(const uint8_t* p) {
    const __m256i bits = _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
};

struct AmxQ8 : AmxF16Scales {
  static constexpr uint32_t kTileBytes = 1088;
  static constexpr bool kUnpacks = false;
};
template <class Codes, class Scales>
struct AmxNibbles : Scales {
  static constexpr uint32_t kTileBytes = 576;
  static constexpr bool kUnpacks = true;
  // 256 bytes of nibbles to 512 signed codes.
  static void Unpack(const uint8_t* half, uint8_t* codes) {
    const __m512i nibble = _mm512_set1_epi8(0xF);
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(Codes::kCodes)));
#pragma GCC unroll 4
    for (uint32_t j = 0; j < 4; ++j) {
      const __m512i w = _mm512_load_si512(half + j * 64);
      const __m512i low = _mm512_and_si512(w, nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
      _mm512_store_si512(codes + j * 64, _mm512_shuffle_epi8(table, low));
      _mm512_store_si512(codes + 256 + j * 64, _mm512_shuffle_epi8(table, high));
    }
  }
};
using AmxQ4 = AmxNibbles<LinearCodes, AmxF16Scales>;
using AmxQ4Bf16 = AmxNibbles<LinearCodes, AmxBf16Scales>;
using AmxMxfp4 = AmxNibbles<E2M1Codes, AmxBf16Scales>;
using AmxIq4Nl = AmxNibbles<Iq4NlCodes, AmxF16Scales>;

template <class Tiles, class Code>
struct AmxGemm {
  static constexpr uint32_t kPanels = 4, kStretchTiles = 8, kTileBytes = Code::kTileBytes;
  struct Stretch {
    alignas(64) float scales[kStretchTiles * 2 * 16];
    const uint8_t* codes;  // of group g: codes + g / 2 * tile_stride + g % 2 * 512
    size_t tile_stride;
    alignas(64) uint8_t unpacked[Code::kUnpacks ? kStretchTiles * 1024 : 64];
  };
  static void End() { Tiles::Release(); }

  static void Unpack(const uint8_t* tiles, size_t tile_stride, uint32_t groups, Stretch* stretch) {
    for (uint32_t g = 0; g < groups; ++g) {
      const uint8_t* data = tiles + g / 2 * tile_stride;
      _mm512_store_ps(stretch->scales + g * 16, Code::LoadScales(data + g % 2 * 32));
      if constexpr (Code::kUnpacks) {
        Code::Unpack(data + 64 + g % 2 * 256, stretch->unpacked + g * 512);
      }
    }
    stretch->codes = Code::kUnpacks ? stretch->unpacked : tiles + 64;
    stretch->tile_stride = Code::kUnpacks ? 1024 : tile_stride;
  }

  // The products of the two groups of a tile.
  struct Products {
    alignas(64) int32_t dots[2][kPackedTokens][16];
  };
  static void Multiply(const Pass& pass, const Stretch& stretch, uint32_t tile, Products* out) {
    const uint8_t* codes = stretch.codes + tile * stretch.tile_stride;
    Tiles::template Dots<0>(pass.x[2 * tile].codes[0], codes, out->dots[0][0]);
    Tiles::template Dots<1>(pass.x[2 * tile + 1].codes[0], codes + 512, out->dots[1][0]);
  }
  template <int T>
  static void Scale(const Pass& pass, const Stretch& stretch, uint32_t tile,
                    const Products& products, __m512 (&total)[T]) {
#pragma GCC unroll 2
    for (uint32_t half = 0; half < 2; ++half) {
      const uint32_t g = 2 * tile + half;
      const __m512 w = _mm512_load_ps(stretch.scales + g * 16);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(products.dots[half][t]));
        const __m512 scale = _mm512_mul_ps(w, _mm512_set1_ps(pass.x[g].scales[t]));
        total[t] = _mm512_fmadd_ps(dot, scale, total[t]);
      }
    }
  }

  // T: tokens rounded up to fours; those beyond pass.tokens are computed from whatever is there and
  // not stored.
  template <int T>
  static void RunPanel(const Pass& pass, const Stretch& stretch, uint32_t panel) {
    const __mmask16 rows = static_cast<__mmask16>((1u << pass.panels[panel].row_count) - 1);
    const auto rows_of = [&](int t) {
      return static_cast<uint32_t>(t) < pass.tokens ? rows : __mmask16{0};
    };
    __m512 total[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      total[t] = pass.first ? _mm512_setzero_ps()
                            : _mm512_maskz_loadu_ps(rows_of(t), pass.y(panel, t));
    }
    Products products[2];
    const uint32_t tiles = pass.groups / 2;
    Multiply(pass, stretch, 0, &products[0]);
    pass.next.Fetch(panel, 0);
    for (uint32_t tile = 1; tile < tiles; ++tile) {
      Multiply(pass, stretch, tile, &products[tile % 2]);
      pass.next.Fetch(panel, tile);
      Scale<T>(pass, stretch, tile - 1, products[(tile - 1) % 2], total);
    }
    Scale<T>(pass, stretch, tiles - 1, products[(tiles - 1) % 2], total);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) {
      _mm512_mask_storeu_ps(pass.y(panel, t), rows_of(t), total[t]);
    }
  }

  template <int P>
  static void Run(const Pass& pass, const Stretch* stretch) {
    if (pass.other_tokens) Tiles::Configure(pass.tokens);
    for (uint32_t p = 0; p < P; ++p) {
      switch ((pass.tokens + 3) / 4) {
        case 1: RunPanel<4>(pass, stretch[p], p); break;
        case 2: RunPanel<8>(pass, stretch[p], p); break;
        case 3: RunPanel<12>(pass, stretch[p], p); break;
        default: RunPanel<16>(pass, stretch[p], p);
      }
    }
  }
};

}  // namespace
}  // namespace moraine
