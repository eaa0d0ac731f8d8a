#include "model/weights.h"

#include <fmt/format.h>

#include "base/check.h"
#include "model/blocks/dense_feed_forward.h"
#include "model/blocks/mixer.h"
#include "model/blocks/router.h"
#include "model/blocks/shared_expert.h"

namespace moraine {

DenseRole& RoleList::Add(const char* name, DenseRole::Kind kind, uint32_t rows, uint32_t cols,
                         const RoleSource& source) {
  DenseRole role;
  role.name = prefix_ + name;
  role.source = naming_.NameOf(source.tensor.empty() ? role.name
                                                     : prefix_ + std::string(source.tensor));
  CHECK(!role.source.empty(), "no table of names has the role " + role.name);
  role.kind = kind;
  role.rows = rows;
  role.cols = cols;
  role.source_shape = source.shape;
  if (source.shape.empty()) {
    role.source_shape = {rows, cols};
    if (kind == DenseRole::Kind::kVector) role.source_shape = {cols};
  }
  role.period = source.period;
  role.offset = source.offset;
  role.transposed = source.transposed;
  role.order = source.order;
  roles_.push_back(std::move(role));
  return roles_.back();
}

void RoleList::Norm(const char* role, uint32_t size) {
  Add(role, DenseRole::Kind::kVector, 1, size, {}).add = naming_.norm_offset();
}

void RoleList::DecayLog(const char* role, uint32_t size, const ColumnOrder& order) {
  Vector(role, size, {}, order);
  roles_.back().log_of_negative = naming_.negates_decays();
}

void RoleList::Rows(const char* role, uint32_t rows, uint32_t cols, uint32_t part_rows,
                    const RoleSource& source) {
  DenseRole& added = Add(role, DenseRole::Kind::kMatrix, rows, cols, source);
  added.part_rows = added.padded_rows = part_rows;
}

void RoleList::ExactRows(const char* role, uint32_t rows, uint32_t cols, uint32_t part_rows,
                         const RoleSource& source) {
  Rows(role, rows, cols, part_rows, source);
  roles_.back().kind = DenseRole::Kind::kExactMatrix;
}

void RoleList::Stack(const char* role, uint32_t count, uint32_t rows, uint32_t cols,
                     const RoleSource& source) {
  const uint32_t padded = PanelCount(rows) * kTileRows;
  // A checkpoint that has a name for the role has the matrices as they are.
  const bool alone = HasName(role);
  const RoleSource own = {.shape = {count, rows, cols}, .period = rows};
  DenseRole& added =
      Add(role, DenseRole::Kind::kMatrix, count * padded, cols, alone ? own : source);
  added.part_rows = rows;
  added.padded_rows = padded;
}

MatrixStack StackOf(const MatrixView& matrix, uint32_t count, uint32_t rows) {
  CHECK(matrix.rows == count * PanelCount(rows) * kTileRows, "no such stack");
  MatrixStack stack{matrix, count, PanelCount(rows) * matrix.panel_stride};
  stack.first.rows = rows;
  return stack;
}

std::vector<DenseRole> DenseRoles(const ModelConfig& config, const TensorNaming& naming) {
  RoleList roles(naming);
  roles.Matrix("embedding", config.vocab_size, config.hidden);
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const std::string prefix = fmt::format("layers.{}.", i);
    roles.set_prefix(prefix + "attention.");
    roles.Norm("norm", config.hidden);
    AppendMixerRoles(layer.mixer, config.hidden, &roles);
    roles.set_prefix(prefix + "mlp.");
    roles.Norm("norm", config.hidden);
    if (layer.feed_forward == FeedForwardKind::kDense) {
      DenseFeedForward::AppendRoles(layer.intermediate, config.hidden, &roles);
      continue;
    }
    Router::AppendRoles(config, &roles);
    roles.set_prefix(prefix + "mlp.shared.");
    SharedExpert::AppendRoles(config, &roles);
  }
  roles.set_prefix("");
  roles.Norm("norm", config.hidden);
  if (!config.tied_embeddings) roles.Matrix("output", config.vocab_size, config.hidden);
  return roles.Take();
}

std::vector<DenseRole> DenseRoles(const ModelConfig& config) {
  return DenseRoles(config, TensorNaming(config));
}

}  // namespace moraine
