#include "model/blocks/router.h"

#include "model/blocks/bias.h"

namespace moraine {

void Router::AppendRoles(const ModelConfig& config, RoleList* roles) {
  roles->ExactMatrix("router", config.expert_count, config.hidden);
  if (config.router.bias) roles->Vector("router_bias", config.expert_count);
  if (config.router.correction_bias) roles->Vector("correction_bias", config.expert_count);
}

Router::Router(const ModelConfig& config, const DenseSource& weights, const std::string& prefix)
    : matrix_(weights.Matrix(prefix + "router")),
      bias_(config.router.bias ? weights.Vector(prefix + "router_bias")
                               : std::span<const float>()),
      chooser_(config.router, config.expert_count, config.top_k,
               config.router.correction_bias ? weights.Vector(prefix + "correction_bias")
                                             : std::span<const float>()) {}

void Router::Logits(CpuBackend& backend, const float* x, uint32_t token_count,
                    float* logits) const {
  backend.MatMul(matrix_, x, matrix_.cols, token_count, logits, matrix_.rows);
  AddBias(logits, matrix_.rows, bias_, token_count);
}

}  // namespace moraine
