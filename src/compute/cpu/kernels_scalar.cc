// The reference: plain loops over the layout of encoding.h, in the operation order that every other
// table follows. Fused multiply-adds are library calls where the target has no FMA: slow, exact.
#include "compute/cpu/attention_kernels.h"
#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"
#include "compute/cpu/recurrent_kernels.h"

namespace moraine {
namespace {

struct ScalarLanes {
  static constexpr uint32_t kTileRows = 2, kTileVectors = 1;
  struct V {
    float lane[kLaneCount];
  };
  template <typename Function>
  static V Map(Function function) {
    V out;
    for (uint32_t i = 0; i < kLaneCount; ++i) out.lane[i] = function(i);
    return out;
  }
  static V load(const float* p) {
    return Map([&](uint32_t i) { return p[i]; });
  }
  static V load_n(const float* p, uint32_t n) {
    return Map([&](uint32_t i) { return i < n ? p[i] : 0.0f; });
  }
  static V load_bf16(const uint8_t* p) {
    return Map([&](uint32_t i) {
      uint16_t bits;
      __builtin_memcpy(&bits, p + 2 * i, 2);
      return __builtin_bit_cast(float, uint32_t{bits} << 16);
    });
  }
  static V load_int8(const int8_t* p) {
    return Map([&](uint32_t i) { return static_cast<float>(p[i]); });
  }
  // E4M3 / 256 (compute/e4m3.h).
  static V load_e4m3(const uint8_t* p) {
    return Map([&](uint32_t i) {
      const uint32_t bits = (p[i] & 0x80u) << 24 | (p[i] & 0x7Fu) << 20;
      return __builtin_bit_cast(float, bits) * 0x1p112f;
    });
  }
  static void store(float* p, V v) { store_n(p, v, kLaneCount); }
  static void store_n(float* p, V v, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) p[i] = v.lane[i];
  }
  // v holds integers in [-128, 127].
  static void store_int8(int8_t* p, V v) {
    for (uint32_t i = 0; i < kLaneCount; ++i) p[i] = static_cast<int8_t>(v.lane[i]);
  }
  static V set1(float x) {
    return Map([&](uint32_t) { return x; });
  }
  static float first(V v) { return v.lane[0]; }
  static V add(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] + b.lane[i]; });
  }
  static V sub(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] - b.lane[i]; });
  }
  static V mul(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] * b.lane[i]; });
  }
  static V div(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] / b.lane[i]; });
  }
  static V fma(V a, V b, V c) {
    return Map([&](uint32_t i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static V max(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V min(V a, V b) {
    return Map([&](uint32_t i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static V abs(V a) {
    return Map([&](uint32_t i) { return __builtin_fabsf(a.lane[i]); });
  }
  static V round(V a) {
    return Map([&](uint32_t i) { return __builtin_rintf(a.lane[i]); });
  }
  static float sqrt1(float x) { return __builtin_sqrtf(x); }
  static V zero_if_less(V a, V b, V v) {
    return Map([&](uint32_t i) { return a.lane[i] < b.lane[i] ? 0.0f : v.lane[i]; });
  }
  // p * 2^n, n in the low bits of `shifted`, by adding n to p's exponent field.
  static V add_exponent(V p, V shifted) {
    return Map([&](uint32_t i) {
      const uint32_t n = __builtin_bit_cast(uint32_t, shifted.lane[i]) << 23;
      return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p.lane[i]) + n);
    });
  }
  // out[i * 16 + j] = in[j * stride + i], 16 x 16.
  static void transpose(const float* in, size_t stride, float* out) {
    for (uint32_t i = 0; i < kLaneCount; ++i) {
      for (uint32_t j = 0; j < kLaneCount; ++j) out[i * kLaneCount + j] = in[j * stride + i];
    }
  }
  // Halves are added until one lane is left: the order of the SIMD reductions.
  static float reduce_add(V v) {
    for (uint32_t half = kLaneCount / 2; half > 0; half /= 2) {
      for (uint32_t i = 0; i < half; ++i) v.lane[i] += v.lane[i + half];
    }
    return v.lane[0];
  }
  static float reduce_max(V v) {
    for (uint32_t half = kLaneCount / 2; half > 0; half /= 2) {
      for (uint32_t i = 0; i < half; ++i) {
        v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
      }
    }
    return v.lane[0];
  }
};

uint32_t Load32(const uint8_t* p) {
  uint32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

float HalfToFloat(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) {
    return __builtin_bit_cast(float, sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  }
  // Widened with float's smallest exponents, then scaled by 2^112: subnormals come out right.
  const float value = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | sign);
}

uint32_t ActivationRow(const PanelArguments& a, uint32_t token) {
  return a.token_rows != nullptr ? a.token_rows[token] : token;
}

// bf16 and f32: even and odd columns are two chains, added at the end. Two, because one chain of
// fused multiply-adds would wait for its own latency.
template <typename Weight>
void FloatPanel(const PanelArguments& a, const Panel& panel, Weight weight) {
  for (uint32_t t = 0; t < a.token_count; ++t) {
    const float* x = a.x + ActivationRow(a, t) * a.x_stride;
    for (uint32_t r = 0; r < panel.row_count; ++r) {
      float even = 0.0f, odd = 0.0f;
      for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
        const uint8_t* data = panel.tiles + tile * a.tile_stride;
        for (uint32_t c = 0; c < 64; c += 2) {
          even = __builtin_fmaf(weight(data, r, c), x[tile * 64 + c], even);
          odd = __builtin_fmaf(weight(data, r, c + 1), x[tile * 64 + c + 1], odd);
        }
      }
      panel.y[t * a.y_stride + r] = even + odd;
    }
  }
}
template <typename Weight>
void PanelFloat(const PanelArguments& a, Weight weight) {
  for (uint32_t p = 0; p < a.panel_count; ++p) FloatPanel(a, a.panels[p], weight);
}

void PanelF32(const PanelArguments& a) {
  PanelFloat(a, [](const uint8_t* tile, uint32_t r, uint32_t c) {
    return __builtin_bit_cast(float, Load32(tile + (c * 16 + r) * 4));
  });
}

void PanelBf16(const PanelArguments& a) {
  PanelFloat(a, [](const uint8_t* tile, uint32_t r, uint32_t c) {
    const uint32_t word = Load32(tile + (c / 2 * 16 + r) * 4);
    return __builtin_bit_cast(float, c % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
  });
}

// Quantised: an exact integer dot product for each group of 32 columns, then one fused multiply-add
// with the product of both scales, groups in column order.
template <typename Code, typename Scale>
void QuantisedPanel(const PanelArguments& a, const Panel& panel, Code code, Scale scale_at) {
  for (uint32_t t = 0; t < a.token_count; ++t) {
    const size_t row = ActivationRow(a, t);
    const int8_t* q = a.q + row * a.q_stride;
    const ActivationGroup* groups = a.groups + row * a.group_stride;
    for (uint32_t r = 0; r < panel.row_count; ++r) {
      float sum = 0.0f;
      for (uint32_t tile = 0; tile < a.tile_count; ++tile) {
        const uint8_t* data = panel.tiles + tile * a.tile_stride;
        for (uint32_t h = 0; h < 2; ++h) {
          int32_t dot = 0;
          for (uint32_t c = 0; c < 32; ++c) {
            dot += code(data, r, h, c) * q[tile * 64 + h * 32 + c];
          }
          const float scale = scale_at(data + h * 32 + r * 2) * groups[tile * 2 + h].scale;
          sum = __builtin_fmaf(static_cast<float>(dot), scale, sum);
        }
      }
      panel.y[t * a.y_stride + r] = sum;
    }
  }
}
template <typename Code, typename Scale>
void PanelQuantised(const PanelArguments& a, Code code, Scale scale_at) {
  for (uint32_t p = 0; p < a.panel_count; ++p) QuantisedPanel(a, a.panels[p], code, scale_at);
}

void PanelQ8(const PanelArguments& a) {
  PanelQuantised(a, [](const uint8_t* tile, uint32_t r, uint32_t h, uint32_t c) {
    return static_cast<int32_t>(
        static_cast<int8_t>(tile[64 + ((h * 8 + c / 4) * 16 + r) * 4 + c % 4]));
  }, HalfToFloat);
}

float Bf16ToFloat(const uint8_t* p) {
  uint16_t bits;
  __builtin_memcpy(&bits, p, 2);
  return __builtin_bit_cast(float, uint32_t{bits} << 16);
}

template <class Codes, float (*kScale)(const uint8_t*)>
void PanelNibbles(const PanelArguments& a) {
  PanelQuantised(a, [](const uint8_t* tile, uint32_t r, uint32_t h, uint32_t c) {
    const uint32_t column = c % 16;
    const uint8_t byte = tile[64 + h * 256 + (column / 4 * 16 + r) * 4 + column % 4];
    return static_cast<int32_t>(Codes::kCodes[c < 16 ? byte & 0xF : byte >> 4]);
  }, kScale);
}

}  // namespace

const KernelTable kScalarKernels = {PanelF32, PanelBf16, PanelQ8,
                                    PanelNibbles<LinearCodes, HalfToFloat>,
                                    PanelNibbles<LinearCodes, Bf16ToFloat>,
                                    PanelNibbles<E2M1Codes, Bf16ToFloat>,
                                    PanelNibbles<Iq4NlCodes, HalfToFloat>, kNeverPacked,
                                    MORAINE_LANE_KERNELS(ScalarLanes)};

}  // namespace moraine
