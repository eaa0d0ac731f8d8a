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
#include <string_view>
#include <vector>

#include "compute/cpu_backend.h"
#include "compute/encoding.h"
#include "model/config.h"
#include "model/tensor_naming.h"

namespace moraine {

// Parts in groups. A role has them group by group, its tensor the first of every group, then the
// second of every group: so llama.cpp's converter turns Qwen3.5's value heads, whose groups share a key
// head. One part a group, or one group, is no change.
struct PartOrder {
  uint32_t groups = 1, group_parts = 1;

  bool IsChange() const { return groups > 1 && group_parts > 1; }
  // Where the tensor has the role's part.
  uint32_t InTensor(uint32_t part) const {
    return part % group_parts * groups + part / group_parts;
  }
};

// The same of columns, or of a vector's values: those from `first` on are parts of `width`.
struct ColumnOrder {
  PartOrder parts = {};
  uint32_t first = 0, width = 0;

  bool IsChange() const { return parts.IsChange(); }
};

// Where a role's rows are, if its tensor is not simply that matrix. A role has parts (one, or one a
// head), and so has the tensor, `period` rows each; part p of the role is the rows of part p of the
// tensor from `offset` on.
struct RoleSource {
  std::string_view tensor = {};      // what has its name, in the table of names; empty: the role
  std::vector<uint64_t> shape = {};  // of the tensor; empty: that of the role
  uint32_t period = 0, offset = 0;
  // A part's columns are the tensor's rows, and its rows the columns of the tensor.
  bool transposed = false;
  PartOrder order = {};  // part p of the role is part order.InTensor(p) of the tensor

  RoleSource At(uint32_t new_offset) const {
    RoleSource other = *this;
    other.offset = new_offset;
    return other;
  }
};

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
  std::vector<uint64_t> source_shape;
  // Rows of a part, of which padded_rows are stored: what is missing is zeros. 0: the role is the
  // tensor.
  uint32_t part_rows = 0, padded_rows = 0;
  uint32_t period = 0, offset = 0;  // RoleSource; a vector's offset counts elements
  bool transposed = false;
  PartOrder order = {};
  ColumnOrder columns = {};
  float add = 0;  // to each value of a vector
  bool log_of_negative = false;  // of a vector whose source has -exp of the values
};

// Collects roles; a block's names follow the prefix that is set.
class RoleList {
 public:
  explicit RoleList(const TensorNaming& naming) : naming_(naming) {}

  void set_prefix(std::string prefix) { prefix_ = std::move(prefix); }
  // shape: of the tensor; empty: [size].
  void Vector(const char* role, uint32_t size, std::vector<uint64_t> shape = {},
              const ColumnOrder& order = {}) {
    Add(role, DenseRole::Kind::kVector, 1, size, {.shape = std::move(shape)}).columns = order;
  }
  // Elements of a longer vector, from source.offset on; or, of RoleSource{}, a whole one.
  void VectorPart(const char* role, uint32_t size, const RoleSource& source) {
    Add(role, DenseRole::Kind::kVector, 1, size, source);
  }
  // The weight of an RmsNorm; what the family's checkpoints leave out of it is added.
  void Norm(const char* role, uint32_t size);
  // The logarithms of decays, which some checkpoints have exponentiated and negated.
  void DecayLog(const char* role, uint32_t size, const ColumnOrder& order = {});
  // Whether the checkpoint's spelling knows a tensor.
  bool HasName(const char* tensor) const { return !naming_.NameOf(prefix_ + tensor).empty(); }
  bool tiles_value_heads() const { return naming_.tiles_value_heads(); }
  void Matrix(const char* role, uint32_t rows, uint32_t cols, const ColumnOrder& order = {}) {
    Add(role, DenseRole::Kind::kMatrix, rows, cols, {}).columns = order;
  }
  void ExactMatrix(const char* role, uint32_t rows, uint32_t cols) {
    Add(role, DenseRole::Kind::kExactMatrix, rows, cols, {});
  }
  // A matrix of rows that are not alone, or not in this order, in their tensor: in parts of part_rows.
  void Rows(const char* role, uint32_t rows, uint32_t cols, uint32_t part_rows,
            const RoleSource& source);
  void ExactRows(const char* role, uint32_t rows, uint32_t cols, uint32_t part_rows,
                 const RoleSource& source);
  // `count` matrices of rows x cols, each padded to whole panels: a matrix for StackOf.
  void Stack(const char* role, uint32_t count, uint32_t rows, uint32_t cols,
             const RoleSource& source);
  std::vector<DenseRole> Take() { return std::move(roles_); }

 private:
  DenseRole& Add(const char* role, DenseRole::Kind kind, uint32_t rows, uint32_t cols,
                 const RoleSource& source);

  const TensorNaming& naming_;
  std::string prefix_;
  std::vector<DenseRole> roles_;
};

// The matrices of RoleList::Stack.
MatrixStack StackOf(const MatrixView& matrix, uint32_t count, uint32_t rows);

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
