// Router: the matrix (and bias) that says how much each expert suits a token, and the choice by it.
#pragma once

#include <span>
#include <string>

#include "compute/cpu_backend.h"
#include "model/blocks/expert_choice.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {

class Router {
 public:
  static void AppendRoles(const ModelConfig& config, RoleList* roles);

  Router(const ModelConfig& config, const DenseSource& weights, const std::string& role_prefix);

  // token_count x expert_count, from token_count x hidden normalised values.
  void Logits(CpuBackend& backend, const float* x, uint32_t token_count, float* logits) const;
  ExpertChooser& chooser() { return chooser_; }

 private:
  MatrixView matrix_;
  std::span<const float> bias_;
  ExpertChooser chooser_;
};

}  // namespace moraine
