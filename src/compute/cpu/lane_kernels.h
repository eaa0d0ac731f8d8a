// Kernels that are written once over 16 lanes and compiled for each ISA.
//
// L is the lane type of the including file and lives in its anonymous namespace, so that every
// instantiation has internal linkage: no symbol of one ISA can stand in for another's. What L
// provides is what ScalarLanes in kernels_scalar.cc shows. `max(a, b)` is `a > b ? a : b`, as
// the x86 instruction: a NaN in b wins, which is why b is always the new value below.
#pragma once

#include "compute/cpu/kernel_table.h"

namespace moraine {

template <typename L>
struct LaneKernels {
  using V = typename L::V;

  static V LoadTail(const float* p, size_t left) {
    return left >= kLaneCount ? L::load(p) : L::load_n(p, static_cast<uint32_t>(left));
  }
  static void StoreTail(float* p, V v, size_t left) {
    if (left >= kLaneCount) {
      L::store(p, v);
    } else {
      L::store_n(p, v, static_cast<uint32_t>(left));
    }
  }

  // e^x by x = n ln2 + r and the degree-6 polynomial of Cephes' expf: 1 ulp on [-87, 88]. Below -87
  // zero (a softmax term under 1e-37 is none), above 88 e^88, NaN stays NaN.
  static V Exp(V x) {
    const V low = L::set1(-87.0f);
    const V clamped = L::min(L::set1(88.0f), L::max(low, x));
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low mantissa bits.
    const V magic = L::set1(12582912.0f);
    const V shifted = L::fma(clamped, L::set1(1.44269504088896341f), magic);
    const V n = L::sub(shifted, magic);
    V r = L::fma(n, L::set1(-0.693359375f), clamped);
    r = L::fma(n, L::set1(2.12194440e-4f), r);
    V p = L::set1(1.9875691500e-4f);
    p = L::fma(p, r, L::set1(1.3981999507e-3f));
    p = L::fma(p, r, L::set1(8.3334519073e-3f));
    p = L::fma(p, r, L::set1(4.1665795894e-2f));
    p = L::fma(p, r, L::set1(1.6666665459e-1f));
    p = L::fma(p, r, L::set1(5.0000001201e-1f));
    p = L::fma(p, L::mul(r, r), L::add(r, L::set1(1.0f)));
    return L::zero_if_less(x, low, L::add_exponent(p, shifted));
  }

  static void Quantise(const float* x, uint32_t cols, uint32_t padded_cols, int8_t* q,
                       ActivationGroup* groups) {
    for (uint32_t begin = 0, group = 0; begin < padded_cols; begin += 32, ++group) {
      const size_t left = begin < cols ? cols - begin : 0;
      const V x0 = LoadTail(x + begin, left);
      const V x1 = left > 16 ? LoadTail(x + begin + 16, left - 16) : L::set1(0.0f);
      const float largest = L::reduce_max(L::max(L::abs(x0), L::abs(x1)));
      const V zero = L::set1(0.0f);
      // x * 0 is 0 for a finite x and NaN for the rest.
      const float poison = L::reduce_add(L::add(L::mul(x0, zero), L::mul(x1, zero)));
      const bool finite = poison == 0.0f;
      // Under 1e-30 the reciprocal would leave float's range; such a group is zero.
      const bool live = finite && largest > 1e-30f;
      const V inverse = L::set1(live ? 127.0f / largest : 0.0f);
      const V q0 = live ? L::round(L::mul(x0, inverse)) : zero;
      const V q1 = live ? L::round(L::mul(x1, inverse)) : zero;
      L::store_int8(q + begin, q0);
      L::store_int8(q + begin + 16, q1);
      groups[group].scale = finite ? (live ? largest / 127.0f : 0.0f) : poison;
      const int32_t sum = static_cast<int32_t>(L::reduce_add(L::add(q0, q1)));
      groups[group].offsets[kQ4Offset] = -8 * sum;
      groups[group].offsets[kQ8Offset] = -128 * sum;
    }
  }

  static void RmsNorm(const float* x, const float* weight, float epsilon, uint32_t cols,
                      float* out) {
    V sum = L::set1(0.0f);
    for (uint32_t c = 0; c < cols; c += kLaneCount) {
      const V v = LoadTail(x + c, cols - c);
      sum = L::fma(v, v, sum);
    }
    const float mean = L::reduce_add(sum) / static_cast<float>(cols);
    const V scale = L::set1(1.0f / L::sqrt1(mean + epsilon));
    for (uint32_t c = 0; c < cols; c += kLaneCount) {
      const V v = L::mul(LoadTail(x + c, cols - c), scale);
      StoreTail(out + c, L::mul(v, LoadTail(weight + c, cols - c)), cols - c);
    }
  }

  static void Rope(float* head, uint32_t half, const float* cos, const float* sin) {
    for (uint32_t i = 0; i < half; i += kLaneCount) {
      const size_t left = half - i;
      const V first = LoadTail(head + i, left), second = LoadTail(head + half + i, left);
      const V c = LoadTail(cos + i, left), s = LoadTail(sin + i, left);
      StoreTail(head + i, L::sub(L::mul(first, c), L::mul(second, s)), left);
      StoreTail(head + half + i, L::add(L::mul(second, c), L::mul(first, s)), left);
    }
  }

  static void Add(float* x, const float* y, size_t count) {
    for (size_t i = 0; i < count; i += kLaneCount) {
      const size_t left = count - i;
      StoreTail(x + i, L::add(LoadTail(x + i, left), LoadTail(y + i, left)), left);
    }
  }

  static void SiluMul(const float* gate, const float* up, size_t count, float* out) {
    const V one = L::set1(1.0f);
    for (size_t i = 0; i < count; i += kLaneCount) {
      const size_t left = count - i;
      const V g = LoadTail(gate + i, left);
      const V silu = L::div(g, L::add(one, Exp(L::sub(L::set1(0.0f), g))));
      StoreTail(out + i, L::mul(silu, LoadTail(up + i, left)), left);
    }
  }

  // A NaN stays: it is always the new value of min and max.
  static void ClampedSwiGlu(const float* gate, const float* up, size_t count, float limit,
                            float* out) {
    const V one = L::set1(1.0f), high = L::set1(limit), low = L::set1(-limit);
    for (size_t i = 0; i < count; i += kLaneCount) {
      const size_t left = count - i;
      const V g = L::min(high, LoadTail(gate + i, left));
      const V u = L::max(low, L::min(high, LoadTail(up + i, left)));
      const V glu = L::div(g, L::add(one, Exp(L::mul(g, L::set1(-1.702f)))));
      StoreTail(out + i, L::mul(glu, L::add(u, one)), left);
    }
  }

  static bool SearchGroup(const float* x, const float* weights, const ScaleSearch& search,
                          int8_t* codes, float* scale) {
    return weights == nullptr ? Search<false>(x, nullptr, search, codes, scale)
                              : Search<true>(x, weights, search, codes, scale);
  }

  // For given codes n the best scale is s = sum(w x n) / sum(w n^2), and the squared error is then
  // sum(w x^2) - sum(w x n)^2 / sum(w n^2): so a candidate costs one pass and no division by element.
  // The candidates are independent until the last loop: a branch on each would be mispredicted often.
  template <bool kWeighted>
  static bool Search(const float* x, const float* weights, const ScaleSearch& search, int8_t* codes,
                     float* scale) {
    const V x0 = L::load(x), x1 = L::load(x + 16), zero = L::set1(0.0f);
    const float highest = L::reduce_max(L::max(x0, x1));
    const float lowest = -L::reduce_max(L::max(L::sub(zero, x0), L::sub(zero, x1)));
    // x * 0 is 0 for a finite x and NaN for the rest.
    const float poison = L::reduce_add(L::add(L::mul(x0, zero), L::mul(x1, zero)));
    float extreme = highest > -lowest ? highest : lowest;
    const float magnitude = extreme < 0 ? -extreme : extreme;
    if (!(poison == 0.0f && magnitude <= search.limit)) return false;
    if (search.low == -search.high) extreme = magnitude;
    *scale = 0.0f;
    L::store_int8(codes, zero);
    L::store_int8(codes + 16, zero);
    if (!(magnitude > 1e-30f)) return true;  // f16 scales end at 6e-8: this group is zero
    // Dividing by the extreme first keeps the squares in range for any finite input.
    const V unit = L::set1(1.0f / extreme);
    const V u0 = L::mul(x0, unit), u1 = L::mul(x1, unit);
    const V w0 = kWeighted ? L::load(weights) : zero, w1 = kWeighted ? L::load(weights + 16) : zero;
    const V wu0 = kWeighted ? L::mul(w0, u0) : u0, wu1 = kWeighted ? L::mul(w1, u1) : u1;
    const V low = L::set1(search.low), high = L::set1(search.high);
    const auto code = [&](V u, int candidate) {
      const float inverse =
          search.nominal + static_cast<float>(candidate - search.steps) * search.step;
      return L::min(high, L::max(low, L::round(L::mul(u, L::set1(inverse)))));
    };
    float xn[kMaxScaleCandidates], nn[kMaxScaleCandidates];
    const int candidates = 2 * search.steps + 1;
    for (int k = 0; k < candidates; ++k) {
      const V n0 = code(u0, k), n1 = code(u1, k);
      const V wn0 = kWeighted ? L::mul(w0, n0) : n0, wn1 = kWeighted ? L::mul(w1, n1) : n1;
      xn[k] = L::reduce_add(L::fma(wu1, n1, L::mul(wu0, n0)));
      nn[k] = L::reduce_add(L::fma(wn1, n1, L::mul(wn0, n0)));
    }
    int best = 0;
    float best_gain = 0.0f;
    for (int k = 0; k < candidates; ++k) {
      const float gain = xn[k] * xn[k] / nn[k];  // nn > 0: the extreme's own code is not zero
      best = gain > best_gain ? k : best;
      best_gain = gain > best_gain ? gain : best_gain;
    }
    *scale = extreme * (xn[best] / nn[best]);
    L::store_int8(codes, code(u0, best));
    L::store_int8(codes + 16, code(u1, best));
    return true;
  }
};

// The entries of a table that come from LaneKernels<L>, RecurrentKernels<L> (recurrent_kernels.h)
// and AttentionKernels<L> (attention_kernels.h), in the order of KernelTable.
#define MORAINE_LANE_KERNELS(L)                                                                   \
  LaneKernels<L>::Quantise, LaneKernels<L>::RmsNorm, LaneKernels<L>::Rope, LaneKernels<L>::Add,   \
      LaneKernels<L>::SiluMul, LaneKernels<L>::ClampedSwiGlu, RecurrentKernels<L>::SigmoidMul,    \
      RecurrentKernels<L>::ConvSilu, RecurrentKernels<L>::DeltaRule,                              \
      LaneKernels<L>::SearchGroup, AttentionKernels<L>::Attend, AttentionKernels<L>::Merge,       \
      AttentionKernels<L>::Finish

}  // namespace moraine
