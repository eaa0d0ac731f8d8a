// Which tensors a model has, by role, and what they are called in published checkpoints.
//
// The store knows tensors by role ("layers.3.attention.q"), so that the forward pass does not
// depend on a checkpoint's spelling; the importer matches a checkpoint against DenseRoles and
// ExpertTensorNames and refuses to guess. A spelling is a row of the table in weights.cc.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "compute/encoding.h"
#include "model/config.h"

namespace moraine {

struct DenseRole {
  enum class Kind : uint8_t {
    kVector,       // plain float32: norms and biases
    kMatrix,       // in the dense encoding that the import was asked for
    kExactMatrix,  // always f32: the router, whose ties decide which experts run
  };
  std::string name;    // in the store
  std::string source;  // in the checkpoint
  Kind kind = Kind::kMatrix;
  uint32_t rows = 0, cols = 0;  // vectors: rows = 1
};

// How a checkpoint spells names. GGUF also keeps the experts of a layer together: one tensor of
// [expert, row, column] a matrix, where transformers has one of [row, column] an expert.
enum class TensorNaming : uint8_t { kTransformers, kGguf };

// All dense tensors of the model, in the order in which they are stored.
std::vector<DenseRole> DenseRoles(const ModelConfig& config,
                                  TensorNaming naming = TensorNaming::kTransformers);

// Checkpoint names of the tensors that hold a routed expert's matrices: gate and up are
// intermediate x hidden, down is hidden x intermediate. Stacked: they hold those of all experts, in
// order.
struct ExpertTensorNames {
  std::string gate, up, down;
  bool stacked = false;
};
ExpertTensorNames NamesOfExpert(ExpertKey key, TensorNaming naming = TensorNaming::kTransformers);

// Tensors that published checkpoints carry and the model does not need (precomputed RoPE tables).
bool IsIgnoredTensor(std::string_view checkpoint_name);

// Where the dense weights lie once loaded. Matrices are views, vectors plain floats; none is owned.
class DenseSource {
 public:
  virtual ~DenseSource() = default;
  // CHECKs that the role exists with this kind (the store was imported from the same DenseRoles).
  virtual MatrixView Matrix(const std::string& role) const = 0;
  virtual std::span<const float> Vector(const std::string& role) const = 0;
};

}  // namespace moraine
