// CpuBackend: what a model's forward pass asks of the CPU, in plain pointers and sizes.
//
// Every function is *batch-invariant*: the value it computes for one token and one output element is
// the same, bit for bit, whatever other tokens are in the call, however many threads there are and
// whatever is resident. Each output element is one chain of operations in a fixed order; tokens and
// rows are only ever distributed, never summed across. That is what makes prefill equal decode,
// streaming equal all-resident, and a batched request equal its single run.
//
// Quantised weights (q8, q4) are multiplied with activations quantised to int8 in groups of 32
// columns (scale = max|x| / 127, f32); bf16 and f32 weights with the float32 activations as they are,
// accumulated in float32.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "compute/encoding.h"
#include "compute/expert_kernels.h"
#include "compute/kv_format.h"
#include "compute/thread_pool.h"

namespace moraine {

// The ISA a backend was built for. kScalar is the reference for all tests.
enum class Isa : uint8_t { kScalar, kAvx2, kAvxVnni, kAvx512, kAmx };
inline constexpr Isa kAllIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512, Isa::kAmx};
const char* IsaName(Isa isa);
// The best one of this CPU; MORAINE_ISA=scalar|avx2|avx_vnni|avx512_vnni|amx overrides (an ISA the CPU
// lacks is an error naming the missing feature).
Result<Isa> ChooseIsa(std::string_view override_name = "");

struct AttentionShape {
  uint32_t query_heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;              // multiplies q.k, normally 1/sqrt(head_dim)
  uint32_t sliding_window = 0;  // 0: full causal
  // Dimensions of a value and of a head's output; 0: head_dim. Fewer than head_dim, and keys and
  // values the same memory, is MLA's compressed cache: a position is one latent followed by one
  // rotated key, both shared by all heads, and the latent is the value.
  uint32_t value_dim = 0;
  // One score a query head that takes part in every softmax and has no value; null: none (gpt-oss).
  const float* sinks = nullptr;
};

// Keys and values of one layer.
struct KvView {
  KvFormat format = KvFormat::kF32;
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  KvStrides strides;
  // Where positions [i, i + 1) * kKvBlockPositions are: block_bytes * blocks[i] behind keys and values.
  // Null: all positions are side by side.
  const uint32_t* blocks = nullptr;
  size_t block_bytes = 0;
};

// Matrices of one shape and encoding, one behind the other.
struct MatrixStack {
  MatrixView first;
  uint32_t count = 0;
  uint64_t part_bytes = 0;

  MatrixView part(uint32_t index) const {
    MatrixView view = first;
    view.data += index * part_bytes;
    return view;
  }
};

// y[t][p] = weights[p] x[t][p] for all parts p; strides in floats.
struct StackedMatMulCall {
  MatrixStack weights;
  const float* x = nullptr;
  size_t x_stride = 0, x_part_stride = 0;  // from token to token, from part to part
  uint32_t token_count = 0;
  float* y = nullptr;
  size_t y_stride = 0, y_part_stride = 0;
};

// out[t][c] = silu(sum over i < taps of weights[i][c] * x[t + 1 - taps + i][c]): the taps - 1 rows
// before x are read, too.
struct CausalConvCall {
  const float* x = nullptr;
  size_t x_stride = 0;
  uint32_t token_count = 0, channels = 0, taps = 0;  // taps: 1 to 16
  const float* weights = nullptr;  // taps x channels
  float* out = nullptr;
  size_t out_stride = 0;
};

struct GatedDeltaShape {
  uint32_t key_heads = 0, value_heads = 0;  // value head h goes with key head h / (ratio of both)
  uint32_t key_dim = 0, value_dim = 0;      // of a head

  // Of a sequence: for each value head a key_dim x value_dim matrix in panels of 16 columns.
  size_t state_floats() const {
    return size_t{value_heads} * key_dim * ((value_dim + 15) / 16 * 16);
  }
};

// For each token in turn, each value head: S <- decay S; S <- S + k (beta (v - S^T k))^T;
// out = S^T q. One chunk or many: the same bits.
struct GatedDeltaCall {
  GatedDeltaShape shape;
  const float* q = nullptr;  // key_heads x key_dim a token; normalised and scaled by the caller
  const float* k = nullptr;
  const float* v = nullptr;  // value_heads x value_dim a token
  size_t stride = 0;         // of q, k and v
  const float* decay = nullptr;  // value_heads a token
  const float* beta = nullptr;
  uint32_t token_count = 0;
  const float* state = nullptr;  // zeros before the first token of a sequence
  float* new_state = nullptr;    // may be `state`
  float* out = nullptr;          // value_heads x value_dim a token
  size_t out_stride = 0;
};

class CpuBackend final : public ExpertKernels {
 public:
  // max_tokens: the largest token_count of any call; sizes the scratch, after which no call
  // allocates. The pool must outlive the backend.
  CpuBackend(Isa isa, ThreadPool& pool, uint32_t max_tokens, uint32_t max_cols);
  ~CpuBackend() override;

  Isa isa() const;
  ThreadPool& pool();

  // y[t][r] = sum_c w[r][c] * x[t][c] for all r and t < token_count; strides in floats.
  void MatMul(const MatrixView& w, const float* x, size_t x_stride, uint32_t token_count, float* y,
              size_t y_stride);
  // Several matrices on the same input in one parallel region (q, k and v).
  struct MatMulTarget {
    MatrixView w;
    float* y = nullptr;
    size_t y_stride = 0;
  };
  void MatMulMany(std::span<const MatMulTarget> targets, const float* x, size_t x_stride,
                  uint32_t token_count);

  void MatMulStacked(const StackedMatMulCall& call);

  // Parallel over experts and row panels.
  void SetExpertInput(const float* x, size_t x_stride, uint32_t token_count, uint32_t hidden,
                      Encoding encoding) override;
  void RunExperts(std::span<const ExpertTask> tasks) override;
  void CombineExperts(const ExpertCombination& combination) override;

  // out[t] = x[t] * weight / sqrt(mean(x[t]^2) + epsilon), cols values a row, in float32 (the mean in
  // double is not needed: sums run in 16 lanes). x == out is allowed.
  void RmsNorm(const float* x, size_t x_stride, const float* weight, float epsilon, uint32_t rows,
               uint32_t cols, float* out, size_t out_stride);
  // In place over the first rotary_dim of each head, halves convention ("rotate_half"): heads x
  // head_dim floats a token, cos/sin: rotary_dim/2 values a token, for that token's position.
  void Rope(float* x, size_t x_stride, uint32_t token_count, uint32_t heads, uint32_t head_dim,
            uint32_t rotary_dim, const float* cos, const float* sin);
  // The same with pairs side by side: value 2i turns with value 2i + 1 by cos and sin i.
  void RopeInterleaved(float* x, size_t x_stride, uint32_t token_count, uint32_t heads,
                       uint32_t head_dim, uint32_t rotary_dim, const float* cos, const float* sin);
  // x[t] += y[t] (residual), cols values a row.
  void Add(float* x, size_t x_stride, const float* y, size_t y_stride, uint32_t rows,
           uint32_t cols);
  // gate <- silu(gate) * up, elementwise.
  void SiluMul(float* gate, const float* up, size_t count);
  // x <- x * sigmoid(gate), elementwise.
  void SigmoidMul(const float* gate, float* x, size_t count);

  // Linear attention.
  void CausalConv(const CausalConvCall& call);
  void GatedDelta(const GatedDeltaCall& call);

  // Causal attention with grouped queries. Token t (of token_count) is at position
  // first_position + t and sees positions 0 .. first_position + t. kv already holds the batch's
  // own. Flash-style: blocks of a fixed number of positions counted from 0, so that the result does not
  // depend on how the prompt was chunked.
  void Attention(const AttentionShape& shape, const float* q, size_t q_stride, const KvView& kv,
                 uint32_t first_position, uint32_t token_count, float* out, size_t out_stride);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moraine
