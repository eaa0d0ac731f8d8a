// A Qwen3-MoE decoder written from the formulas, in double, one token pair at a time: slow, without
// cache, chunks, tiles or threads, and sharing nothing with src/ but the config struct.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"

namespace moraine {

// Row-major matrices and vectors by the role names of DenseRoles; experts as "L.E.gate" (up, down).
using TensorMap = std::map<std::string, std::vector<float>>;
using Vector = std::vector<double>;

// y[r] = sum over c of w[r][c] x[c]
Vector Multiply(const std::vector<float>& w, const Vector& x);

// down(silu(gate x) * (up x))
Vector SwiGlu(const std::vector<float>& gate, const std::vector<float>& up,
              const std::vector<float>& down, const Vector& x);

// Logits of every position.
std::vector<Vector> ReferenceLogits(const ModelConfig& config, const TensorMap& tensors,
                                    std::span<const int32_t> tokens);

}  // namespace moraine
