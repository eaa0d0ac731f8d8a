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
  static float Exp1(float x) { return L::first(Exp(L::set1(x))); }

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

  // scores[j] = scale * q . keys[j]. Four positions at a time: each is one chain of fused
  // multiply-adds, and four hide the latency of one.
  static void Scores(const float* q, const float* keys, size_t kv_stride, uint32_t head_dim,
                     float scale, uint32_t count, float* scores) {
    uint32_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const float* k = keys + j * kv_stride;
      V s0 = L::set1(0.0f), s1 = s0, s2 = s0, s3 = s0;
      for (uint32_t d = 0; d < head_dim; d += kLaneCount) {
        const size_t left = head_dim - d;
        const V v = LoadTail(q + d, left);
        s0 = L::fma(v, LoadTail(k + d, left), s0);
        s1 = L::fma(v, LoadTail(k + kv_stride + d, left), s1);
        s2 = L::fma(v, LoadTail(k + 2 * kv_stride + d, left), s2);
        s3 = L::fma(v, LoadTail(k + 3 * kv_stride + d, left), s3);
      }
      scores[j] = scale * L::reduce_add(s0);
      scores[j + 1] = scale * L::reduce_add(s1);
      scores[j + 2] = scale * L::reduce_add(s2);
      scores[j + 3] = scale * L::reduce_add(s3);
    }
    for (; j < count; ++j) {
      V sum = L::set1(0.0f);
      for (uint32_t d = 0; d < head_dim; d += kLaneCount) {
        const size_t left = head_dim - d;
        sum = L::fma(LoadTail(q + d, left), LoadTail(keys + j * kv_stride + d, left), sum);
      }
      scores[j] = scale * L::reduce_add(sum);
    }
  }

  // accumulator = accumulator * correction + sum_j weights[j] * values[j], in the order of j.
  static void AccumulateValues(const float* weights, const float* values, size_t kv_stride,
                               uint32_t head_dim, uint32_t count, float correction,
                               float* accumulator) {
    const V factor = L::set1(correction);
    uint32_t d = 0;
    for (; d + 4 * kLaneCount <= head_dim; d += 4 * kLaneCount) {
      V a0 = L::mul(L::load(accumulator + d), factor);
      V a1 = L::mul(L::load(accumulator + d + 16), factor);
      V a2 = L::mul(L::load(accumulator + d + 32), factor);
      V a3 = L::mul(L::load(accumulator + d + 48), factor);
      for (uint32_t j = 0; j < count; ++j) {
        const V w = L::set1(weights[j]);
        const float* v = values + j * kv_stride + d;
        a0 = L::fma(w, L::load(v), a0);
        a1 = L::fma(w, L::load(v + 16), a1);
        a2 = L::fma(w, L::load(v + 32), a2);
        a3 = L::fma(w, L::load(v + 48), a3);
      }
      L::store(accumulator + d, a0);
      L::store(accumulator + d + 16, a1);
      L::store(accumulator + d + 32, a2);
      L::store(accumulator + d + 48, a3);
    }
    for (; d < head_dim; d += kLaneCount) {
      V a = L::mul(L::load(accumulator + d), factor);
      for (uint32_t j = 0; j < count; ++j) {
        a = L::fma(L::set1(weights[j]), LoadTail(values + j * kv_stride + d, head_dim - d), a);
      }
      L::store(accumulator + d, a);
    }
  }

  // Keys and values of a block of positions as floats, `stride` of them a position.
  struct KvBlock {
    const float *keys, *values;
    size_t stride;
  };

  static void Unpack(const AttentionArguments& a, const void* packed, uint32_t begin, uint32_t count,
                     float* out, size_t out_stride) {
    const auto* row = static_cast<const uint8_t*>(packed) + begin * a.kv_stride;
    const uint32_t whole = a.head_dim / kLaneCount * kLaneCount;
    for (uint32_t j = 0; j < count; ++j, row += a.kv_stride, out += out_stride) {
      uint32_t d = 0;
      if (a.packing == KvPacking::kBf16) {
        for (; d < whole; d += kLaneCount) L::store(out + d, L::load_bf16(row + 2 * d));
        for (; d < a.head_dim; ++d) {
          uint16_t bits;
          __builtin_memcpy(&bits, row + 2 * d, 2);
          out[d] = __builtin_bit_cast(float, uint32_t{bits} << 16);
        }
      } else {
        float scale;
        __builtin_memcpy(&scale, row, 4);
        const auto* codes = reinterpret_cast<const int8_t*>(row + 4);
        const V scales = L::set1(scale);
        for (; d < whole; d += kLaneCount) {
          L::store(out + d, L::mul(scales, L::load_int8(codes + d)));
        }
        for (; d < a.head_dim; ++d) out[d] = scale * static_cast<float>(codes[d]);
      }
    }
  }

  static KvBlock BlockAt(const AttentionArguments& a, uint32_t begin, uint32_t count) {
    if (a.packing == KvPacking::kF32) {
      const size_t stride = a.kv_stride / sizeof(float);
      return {static_cast<const float*>(a.keys) + begin * stride,
              static_cast<const float*>(a.values) + begin * stride, stride};
    }
    const size_t floats = AttentionScratchFloats(a.head_dim) / 2, stride = floats / kAttentionBlock;
    Unpack(a, a.keys, begin, count, a.unpacked, stride);
    Unpack(a, a.values, begin, count, a.unpacked + floats, stride);
    return {a.unpacked, a.unpacked + floats, stride};
  }

  static void AttendBlock(const AttentionArguments& a, const KvBlock& kv, uint32_t count,
                          float* state, const float* q) {
    alignas(64) float weights[kAttentionBlock];
    for (float& weight : weights) weight = -__builtin_inff();
    Scores(q, kv.keys, kv.stride, a.head_dim, a.scale, count, weights);
    static_assert(kAttentionBlock == 2 * kLaneCount);
    V w0 = L::load(weights), w1 = L::load(weights + kLaneCount);
    const float old_max = state[0];
    const float block_max = L::reduce_max(L::max(w0, w1));
    const float new_max = old_max > block_max ? old_max : block_max;
    w0 = Exp(L::sub(w0, L::set1(new_max)));
    w1 = Exp(L::sub(w1, L::set1(new_max)));
    L::store(weights, w0);
    L::store(weights + kLaneCount, w1);
    const float correction = Exp1(old_max - new_max);
    state[0] = new_max;
    state[1] = state[1] * correction + L::reduce_add(L::add(w0, w1));
    AccumulateValues(weights, kv.values, kv.stride, a.head_dim, count, correction,
                     state + kAttentionStateHeader);
  }

  // Online softmax (Milakov, Gimelshein 2018; FlashAttention) over blocks counted from position 0.
  static void Attend(const AttentionArguments& a) {
    const uint32_t stride = AttentionStateStride(a.head_dim);
    for (uint32_t i = 0; i < a.heads * stride; ++i) a.state[i] = 0.0f;
    for (uint32_t h = 0; h < a.heads; ++h) a.state[h * stride] = -__builtin_inff();
    for (uint32_t block = a.begin / kAttentionBlock * kAttentionBlock; block < a.end;
         block += kAttentionBlock) {
      const uint32_t begin = block > a.begin ? block : a.begin;
      const uint32_t block_end = block + kAttentionBlock;
      const uint32_t end = block_end < a.end ? block_end : a.end;
      const KvBlock kv = BlockAt(a, begin, end - begin);
      for (uint32_t h = 0; h < a.heads; ++h) {
        AttendBlock(a, kv, end - begin, a.state + h * stride, a.q + h * a.head_dim);
      }
    }
  }

  static void Merge(float* into, const float* from, uint32_t heads, uint32_t head_dim) {
    const uint32_t stride = AttentionStateStride(head_dim);
    for (uint32_t h = 0; h < heads; ++h, into += stride, from += stride) {
      const float new_max = into[0] > from[0] ? into[0] : from[0];
      const float mine = Exp1(into[0] - new_max), theirs = Exp1(from[0] - new_max);
      into[0] = new_max;
      into[1] = into[1] * mine + from[1] * theirs;
      for (uint32_t d = kAttentionStateHeader; d < stride; d += kLaneCount) {
        const V other = L::mul(L::load(from + d), L::set1(theirs));
        L::store(into + d, L::fma(L::load(into + d), L::set1(mine), other));
      }
    }
  }

  static void Finish(const float* state, uint32_t heads, uint32_t head_dim, float* out) {
    const uint32_t stride = AttentionStateStride(head_dim);
    for (uint32_t h = 0; h < heads; ++h, state += stride, out += head_dim) {
      const V sum = L::set1(state[1]);
      for (uint32_t d = 0; d < head_dim; d += kLaneCount) {
        const V v = L::div(L::load(state + kAttentionStateHeader + d), sum);
        StoreTail(out + d, v, head_dim - d);
      }
    }
  }

  // For given codes n the best scale is s = sum(x n) / sum(n^2), and the squared error is then
  // sum(x^2) - sum(x n)^2 / sum(n^2): so a candidate costs one pass and no division by element. The
  // candidates are independent until the last loop: a branch on each would be mispredicted often.
  static bool SearchGroup(const float* x, const ScaleSearch& search, int8_t* codes, float* scale) {
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
      xn[k] = L::reduce_add(L::fma(u1, n1, L::mul(u0, n0)));
      nn[k] = L::reduce_add(L::fma(n1, n1, L::mul(n0, n0)));
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

// The entries of a table that come from LaneKernels<L>, in the order of KernelTable.
#define MORAINE_LANE_KERNELS(L)                                                              \
  LaneKernels<L>::Quantise, LaneKernels<L>::RmsNorm, LaneKernels<L>::Rope, LaneKernels<L>::Add, \
      LaneKernels<L>::SiluMul, LaneKernels<L>::Attend, LaneKernels<L>::Merge,                \
      LaneKernels<L>::Finish, LaneKernels<L>::SearchGroup

}  // namespace moraine
