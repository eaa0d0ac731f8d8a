// Kernels of gated linear attention, written once over 16 lanes and compiled for each ISA as
// lane_kernels.h says.
//
// The gated delta rule (Yang, Kautz, Hatamizadeh 2024) keeps for each value head a matrix S of
// key_dim x value_dim and does for each token, with decay and beta of that token,
//
//   S <- decay S;   delta = beta (v - S^T k);   S <- S + k delta^T;   out = S^T q
//
// A column of S meets k, q and the two gates but no other column. So a lane is a column, a panel is
// 16 of them, and a task is one or two panels of one head (8 KiB each at key_dim 128: they stay in
// L1) for all tokens of the chunk in their order: 4 key_dim operations a column and token, no
// horizontal sum, and nothing that depends on how tokens were cut into chunks, on the threads or on
// how many panels go together. The chunked form of the rule (matrix products over 64 tokens) orders
// its sums by where chunks begin, so prefill would not equal decode; and beside the projections,
// the scan is cheap: at Qwen3-Next's shape they have 16 times the operations.
//
// Sums over key_dim are two chains, of even and of odd rows, because one would wait for its own
// latency.
#pragma once

#include "compute/cpu/kernel_table.h"
#include "compute/cpu/lane_kernels.h"

namespace moraine {

template <typename L>
struct RecurrentKernels {
  using V = typename L::V;
  static constexpr uint32_t kPanels = 2;  // of one pass: 4 chains, which AVX2's registers hold

  static V Sigmoid(V x) {
    const V one = L::set1(1.0f);
    return L::div(one, L::add(one, LaneKernels<L>::Exp(L::sub(L::set1(0.0f), x))));
  }

  static void SigmoidMul(const float* gate, size_t count, float* x) {
    for (size_t i = 0; i < count; i += kLaneCount) {
      const size_t left = count - i;
      const V weight = Sigmoid(LaneKernels<L>::LoadTail(gate + i, left));
      LaneKernels<L>::StoreTail(x + i, L::mul(LaneKernels<L>::LoadTail(x + i, left), weight), left);
    }
  }

  static void ConvSilu(const float* const* rows, const float* weights, size_t weight_stride,
                       uint32_t taps, uint32_t channels, float* out) {
    const V one = L::set1(1.0f);
    for (uint32_t c = 0; c < channels; c += kLaneCount) {
      const size_t left = channels - c;
      V sum = L::set1(0.0f);
      for (uint32_t i = 0; i < taps; ++i) {
        sum = L::fma(LaneKernels<L>::LoadTail(weights + i * weight_stride + c, left),
                     LaneKernels<L>::LoadTail(rows[i] + c, left), sum);
      }
      const V silu = L::div(sum, L::add(one, LaneKernels<L>::Exp(L::sub(L::set1(0.0f), sum))));
      LaneKernels<L>::StoreTail(out + c, silu, left);
    }
  }

  // a[i] * S[i] summed over the rows i, for P panels. state is not changed.
  template <uint32_t P>
  static inline __attribute__((always_inline)) void Recall(const float* a, const float* state,
                                                           size_t panel, uint32_t key_dim,
                                                           V (&sums)[P]) {
    V odd[P];
#pragma GCC unroll 2
    for (uint32_t p = 0; p < P; ++p) sums[p] = odd[p] = L::set1(0.0f);
    uint32_t i = 0;
    for (; i + 1 < key_dim; i += 2) {
      const V first = L::set1(a[i]), second = L::set1(a[i + 1]);
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const float* rows = state + p * panel + size_t{i} * kLaneCount;
        sums[p] = L::fma(first, L::load(rows), sums[p]);
        odd[p] = L::fma(second, L::load(rows + kLaneCount), odd[p]);
      }
    }
    if (i < key_dim) {
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const V row = L::load(state + p * panel + size_t{i} * kLaneCount);
        sums[p] = L::fma(L::set1(a[i]), row, sums[p]);
      }
    }
#pragma GCC unroll 2
    for (uint32_t p = 0; p < P; ++p) sums[p] = L::add(sums[p], odd[p]);
  }

  // Row i of the new state.
  static inline __attribute__((always_inline)) V Learn(const float* in, float k, V delta, V decay) {
    return L::fma(L::set1(k), delta, L::mul(L::load(in), decay));
  }

  // out = decay * in + k delta^T, and what q recalls of it.
  template <uint32_t P>
  static inline __attribute__((always_inline)) void Update(const float* k, const float* q,
                                                           const V (&delta)[P], V decay,
                                                           const float* in, float* out,
                                                           size_t panel, uint32_t key_dim,
                                                           V (&sums)[P]) {
    V odd[P];
#pragma GCC unroll 2
    for (uint32_t p = 0; p < P; ++p) sums[p] = odd[p] = L::set1(0.0f);
    uint32_t i = 0;
    for (; i + 1 < key_dim; i += 2) {
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const size_t at = p * panel + size_t{i} * kLaneCount;
        const V first = Learn(in + at, k[i], delta[p], decay);
        const V second = Learn(in + at + kLaneCount, k[i + 1], delta[p], decay);
        L::store(out + at, first);
        L::store(out + at + kLaneCount, second);
        sums[p] = L::fma(L::set1(q[i]), first, sums[p]);
        odd[p] = L::fma(L::set1(q[i + 1]), second, odd[p]);
      }
    }
    if (i < key_dim) {
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const size_t at = p * panel + size_t{i} * kLaneCount;
        const V row = Learn(in + at, k[i], delta[p], decay);
        L::store(out + at, row);
        sums[p] = L::fma(L::set1(q[i]), row, sums[p]);
      }
    }
#pragma GCC unroll 2
    for (uint32_t p = 0; p < P; ++p) sums[p] = L::add(sums[p], odd[p]);
  }

  // P panels, of which the last may have fewer than 16 columns, from `column` on.
  template <uint32_t P>
  static void ScanPanels(const DeltaRuleArguments& a, uint32_t column) {
    const size_t panel = size_t{a.key_dim} * kLaneCount;
    const float* in = a.state_in + column / kLaneCount * panel;
    float* const out_state = a.state_out + column / kLaneCount * panel;
    for (uint32_t t = 0; t < a.token_count; ++t) {
      const float* k = a.k + t * a.qk_stride;
      const float* v = a.v + t * a.v_stride + column;
      const V decay = L::set1(a.decay[t * a.gate_stride]);
      const V beta = L::set1(a.beta[t * a.gate_stride]);
      V delta[P], recalled[P];
      Recall<P>(k, in, panel, a.key_dim, recalled);
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const size_t begin = p * kLaneCount;
        const V wanted = LaneKernels<L>::LoadTail(v + begin, a.columns - column - begin);
        delta[p] = L::mul(L::sub(wanted, L::mul(recalled[p], decay)), beta);
      }
      Update<P>(k, a.q + t * a.qk_stride, delta, decay, in, out_state, panel, a.key_dim, recalled);
      in = out_state;
      float* out = a.out + t * a.out_stride + column;
#pragma GCC unroll 2
      for (uint32_t p = 0; p < P; ++p) {
        const size_t begin = p * kLaneCount;
        LaneKernels<L>::StoreTail(out + begin, recalled[p], a.columns - column - begin);
      }
    }
  }

  static void DeltaRule(const DeltaRuleArguments& a) {
    uint32_t column = 0;
    for (; column + (kPanels - 1) * kLaneCount < a.columns; column += kPanels * kLaneCount) {
      ScanPanels<kPanels>(a, column);
    }
    if (column < a.columns) ScanPanels<1>(a, column);
  }
};

}  // namespace moraine
