#include "model/blocks/dense_feed_forward.h"

namespace moraine {

void DenseFeedForward::AppendRoles(uint32_t intermediate, uint32_t hidden, RoleList* roles) {
  roles->Matrix("gate", intermediate, hidden);
  roles->Matrix("up", intermediate, hidden);
  roles->Matrix("down", hidden, intermediate);
}

DenseFeedForward::DenseFeedForward(const DenseSource& weights, const std::string& prefix)
    : gate_(weights.Matrix(prefix + "gate")),
      up_(weights.Matrix(prefix + "up")),
      down_(weights.Matrix(prefix + "down")) {}

void DenseFeedForward::Run(CpuBackend& backend, Scratch& scratch, const float* x,
                           uint32_t token_count, float* out) const {
  const size_t n = gate_.rows, hidden = gate_.cols;
  float* const gate = scratch.Take(n * token_count);
  float* const up = scratch.Take(n * token_count);
  const CpuBackend::MatMulTarget both[] = {{gate_, gate, n}, {up_, up, n}};
  backend.MatMulMany(both, x, hidden, token_count);
  backend.SiluMul(gate, up, n * token_count);
  backend.MatMul(down_, gate, n, token_count, out, hidden);
}

}  // namespace moraine
