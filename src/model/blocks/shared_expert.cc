#include "model/blocks/shared_expert.h"

#include <cmath>

namespace moraine {

void SharedExpert::AppendRoles(const ModelConfig& config, RoleList* roles) {
  if (config.shared_expert.intermediate == 0) return;
  DenseFeedForward::AppendRoles(config.shared_expert.intermediate, config.hidden, roles);
  if (config.shared_expert.gated) roles->ExactMatrix("router", 1, config.hidden);
}

size_t SharedExpert::ScratchFloats(const ModelConfig& config, uint32_t max_tokens) {
  if (config.shared_expert.intermediate == 0) return 0;
  return DenseFeedForward::ScratchFloats(config.shared_expert.intermediate, max_tokens) +
         Scratch::Padded(size_t{max_tokens} * config.hidden) + Scratch::Padded(max_tokens);
}

SharedExpert::SharedExpert(const ModelConfig& config, const DenseSource& weights,
                           const std::string& prefix)
    : hidden_(config.hidden), expert_(weights, prefix) {
  if (config.shared_expert.gated) gate_ = weights.Matrix(prefix + "router");
}

void SharedExpert::AddTo(CpuBackend& backend, Scratch& scratch, const float* x,
                         uint32_t token_count, float* out) const {
  float* const y = scratch.Take(size_t{token_count} * hidden_);
  expert_.Run(backend, scratch, x, token_count, y);
  if (gate_.data != nullptr) {
    float* const logits = scratch.Take(token_count);
    backend.MatMul(gate_, x, hidden_, token_count, logits, 1);
    for (uint32_t t = 0; t < token_count; ++t) {
      const float weight = 1.0f / (1.0f + std::exp(-logits[t]));
      for (uint32_t i = 0; i < hidden_; ++i) y[size_t{t} * hidden_ + i] *= weight;
    }
  }
  backend.Add(out, hidden_, y, hidden_, token_count, hidden_);
}

}  // namespace moraine
