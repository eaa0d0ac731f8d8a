// AMX's tile unit under the kernels of amx_gemm.h. The only file compiled for AMX.
#include "compute/cpu/amx_gemm.h"
#include "compute/cpu/kernels_amx.h"

namespace moraine {
namespace {

// Registers: 0 and 1 products, 2 and 3 activations (a row a token), 4 and 5 weights (8 rows of 4
// columns x 16 weight rows, as they lie in a record's tile).
struct AmxTiles {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 32, 32, 64, 64};
    uint8_t rows[16] = {};
  };
  static void Configure(uint32_t tokens) {
    const uint8_t n = static_cast<uint8_t>(tokens);
    Config config;
    const uint8_t rows[] = {n, n, n, n, 8, 8};
    for (uint32_t i = 0; i < 6; ++i) config.rows[i] = rows[i];
    asm volatile("" : : "r"(&config) : "memory");  // GCC 12 takes it for a load of 8 bytes
    _tile_loadconfig(&config);
  }
  static void Release() { _tile_release(); }

  // The compiler is told by the empty asm that a tile load reads memory: GCC 12's does not say so.
  template <int half>
  static void Dots(const int8_t* x, const uint8_t* w, int32_t* out) {
    asm volatile("" ::: "memory");
    if constexpr (half == 0) {
      _tile_zero(0);
      _tile_loadd(2, x, 32);
      _tile_loadd(4, w, 64);
      _tile_dpbssd(0, 2, 4);
      _tile_stored(0, out, 64);
    } else {
      _tile_zero(1);
      _tile_loadd(3, x, 32);
      _tile_loadd(5, w, 64);
      _tile_dpbssd(1, 3, 5);
      _tile_stored(1, out, 64);
    }
  }
};

}  // namespace

void AmxPackedQ8(const PanelArguments& a) { PackedGemm<AmxGemm<AmxTiles, AmxQ8>>(a); }
void AmxPackedQ4(const PanelArguments& a) { PackedGemm<AmxGemm<AmxTiles, AmxQ4>>(a); }
void AmxPackedQ4Bf16(const PanelArguments& a) { PackedGemm<AmxGemm<AmxTiles, AmxQ4Bf16>>(a); }
void AmxPackedMxfp4(const PanelArguments& a) { PackedGemm<AmxGemm<AmxTiles, AmxMxfp4>>(a); }
void AmxPackedIq4Nl(const PanelArguments& a) { PackedGemm<AmxGemm<AmxTiles, AmxIq4Nl>>(a); }

}  // namespace moraine
