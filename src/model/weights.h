// Which tensors a model has, by role.
//
// The store knows tensors by role ("layers.3.attention.q"), so that the forward pass does not
// depend on a checkpoint's spelling. Each block lists its own roles (RoleList); what they are called
// in published checkpoints is TensorNaming's. The importer matches a checkpoint against DenseRoles
// and TensorNaming::SourcesOf and refuses to guess.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "compute/encoding.h"
#include "model/config.h"
#include "model/tensor_naming.h"

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

// Collects roles; a block's names follow the prefix that is set.
class RoleList {
 public:
  explicit RoleList(const TensorNaming& naming) : naming_(naming) {}

  void set_prefix(std::string prefix) { prefix_ = std::move(prefix); }
  void Vector(const char* role, uint32_t size) { Add(role, DenseRole::Kind::kVector, 1, size); }
  void Matrix(const char* role, uint32_t rows, uint32_t cols) {
    Add(role, DenseRole::Kind::kMatrix, rows, cols);
  }
  void ExactMatrix(const char* role, uint32_t rows, uint32_t cols) {
    Add(role, DenseRole::Kind::kExactMatrix, rows, cols);
  }
  std::vector<DenseRole> Take() { return std::move(roles_); }

 private:
  void Add(const char* role, DenseRole::Kind kind, uint32_t rows, uint32_t cols);

  const TensorNaming& naming_;
  std::string prefix_;
  std::vector<DenseRole> roles_;
};

// All dense tensors of the model, in the order in which they are stored.
std::vector<DenseRole> DenseRoles(const ModelConfig& config, const TensorNaming& naming);
std::vector<DenseRole> DenseRoles(const ModelConfig& config);

// Where the dense weights lie once loaded. Matrices are views, vectors plain floats; none is owned.
class DenseSource {
 public:
  virtual ~DenseSource() = default;
  // CHECKs that the role exists with this kind (the store was imported from the same DenseRoles).
  virtual MatrixView Matrix(const std::string& role) const = 0;
  virtual std::span<const float> Vector(const std::string& role) const = 0;
};

}  // namespace moraine
