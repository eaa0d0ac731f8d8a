#include "emulated_amx.h"

#include "compute/cpu/amx_gemm.h"

namespace moraine {
namespace {

// TDPBSSD as the manual defines it: B's row k holds four consecutive columns of each of 16 outputs.
struct EmulatedTiles {
  static inline thread_local uint32_t rows = 0;
  static void Configure(uint32_t tokens) { rows = tokens; }
  static void Release() { rows = 0; }
  template <int>
  static void Dots(const int8_t* x, const uint8_t* w, int32_t* out) {
    for (uint32_t m = 0; m < rows; ++m) {
      for (uint32_t n = 0; n < 16; ++n) {
        int32_t sum = 0;
        for (uint32_t k = 0; k < 32; ++k) {
          sum += x[m * 32 + k] * static_cast<int8_t>(w[k / 4 * 64 + n * 4 + k % 4]);
        }
        out[m * 16 + n] = sum;
      }
    }
  }
};

}  // namespace

void EmulatedAmxQ8(const PanelArguments& a) { PackedGemm<AmxGemm<EmulatedTiles, AmxQ8>>(a); }
void EmulatedAmxQ4(const PanelArguments& a) { PackedGemm<AmxGemm<EmulatedTiles, AmxQ4>>(a); }
void EmulatedAmxQ4Bf16(const PanelArguments& a) { PackedGemm<AmxGemm<EmulatedTiles, AmxQ4Bf16>>(a); }
void EmulatedAmxMxfp4(const PanelArguments& a) { PackedGemm<AmxGemm<EmulatedTiles, AmxMxfp4>>(a); }
void EmulatedAmxIq4Nl(const PanelArguments& a) { PackedGemm<AmxGemm<EmulatedTiles, AmxIq4Nl>>(a); }

}  // namespace moraine
