// DenseFeedForward: down(silu(gate(x)) * up(x)) with resident weights: a dense layer's, or a shared
// expert's.
#pragma once

#include <string>

#include "compute/cpu_backend.h"
#include "model/blocks/scratch.h"
#include "model/weights.h"

namespace moraine {

class DenseFeedForward {
 public:
  static void AppendRoles(uint32_t intermediate, uint32_t hidden, RoleList* roles);
  static size_t ScratchFloats(uint32_t intermediate, uint32_t max_tokens) {
    return 2 * Scratch::Padded(size_t{max_tokens} * intermediate);
  }

  DenseFeedForward(const DenseSource& weights, const std::string& role_prefix);

  // x and out: token_count x hidden.
  void Run(CpuBackend& backend, Scratch& scratch, const float* x, uint32_t token_count,
           float* out) const;

 private:
  MatrixView gate_, up_, down_;
};

}  // namespace moraine
