// ExpertKernels: what the engine asks of whoever computes routed experts. The CPU backend is one; the
// simulation has another, which computes nothing but what it needs to see that the right bytes came.
//
// Threads: owned by the engine thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "compute/encoding.h"

namespace moraine {

enum class ActivationKind : uint8_t {
  kSwiGlu,         // silu(gate) * up
  kClampedSwiGlu,  // gpt-oss: g * sigmoid(1.702 g) * (clamp(up, -limit, limit) + 1), g = min(gate, limit)
};
struct ExpertActivation {
  ActivationKind kind = ActivationKind::kSwiGlu;
  float limit = 0;
  bool operator==(const ExpertActivation&) const = default;
};

// One routed (or shared) expert's work on some tokens of a batch:
// output[i] = down(activation(gate(x[t_i]), up(x[t_i]))), t_i = token_rows[i], each with its bias if there
// is one.
struct ExpertTask {
  ExpertView weights;
  const uint32_t* token_rows = nullptr;  // rows of the input, token_count of them
  uint32_t token_count = 0;
  float* output = nullptr;               // token_count x hidden floats, row-major, overwritten
  ExpertActivation activation = {};
};

// out[t] = sum over rank j, in order, of weights[t][j] * outputs[row[t][j]].
struct ExpertCombination {
  const float* outputs = nullptr;   // rows of hidden floats
  const uint32_t* rows = nullptr;   // token_count x top_k
  const float* weights = nullptr;   // token_count x top_k
  uint32_t token_count = 0, top_k = 0, hidden = 0;
  float* out = nullptr;             // token_count x hidden, overwritten
};

class ExpertKernels {
 public:
  virtual ~ExpertKernels() = default;
  // Hands the MoE input of a batch over: x is token_count x hidden, row-major with x_stride; it is
  // quantised once if `encoding` needs it. RunExperts then refers to these rows. x must stay.
  virtual void SetExpertInput(const float* x, size_t x_stride, uint32_t token_count,
                              uint32_t hidden, Encoding encoding) = 0;
  // Runs the tasks together. Calling it several times with parts of the tasks gives the same bits as
  // calling it once.
  virtual void RunExperts(std::span<const ExpertTask> tasks) = 0;
  virtual void CombineExperts(const ExpertCombination& combination) = 0;
};

}  // namespace moraine
