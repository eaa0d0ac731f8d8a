// SharedExpert: an expert that every token of a MoE layer runs through, beside the routed ones. Its
// weights are resident. Where it is gated, its output is weighed by the sigmoid of one more projection
// (Qwen2-MoE, Qwen3-Next); else it counts as it is (DeepSeek, GLM).
#pragma once

#include <string>

#include "compute/cpu_backend.h"
#include "model/blocks/dense_feed_forward.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

class SharedExpert {
 public:
  // Nothing if the model has none.
  static void AppendRoles(const ModelConfig& config, RoleList* roles);
  static size_t ScratchFloats(const ModelConfig& config, uint32_t max_tokens);

  SharedExpert(const ModelConfig& config, const DenseSource& weights,
               const std::string& role_prefix);

  // out[t] += the expert's output for x[t]; both token_count x hidden.
  void AddTo(CpuBackend& backend, Scratch& scratch, const float* x, uint32_t token_count,
             float* out) const;

 private:
  uint32_t hidden_;
  DenseFeedForward expert_;
  MatrixView gate_;  // 1 x hidden; no data if it is not gated
};

}  // namespace moraine
