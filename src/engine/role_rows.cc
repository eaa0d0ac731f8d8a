#include "engine/role_rows.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"

namespace moraine {
namespace {

// Rows of one part, side by side in the role.
struct Run {
  uint32_t part, row, count;  // row: of the part
  uint32_t place;             // of the first among the rows that are wanted
};

template <typename Function>
Status ForRuns(const DenseRole& role, uint32_t first, uint32_t count, Function function) {
  CHECK(first + count <= role.rows);
  const uint32_t padded = role.part_rows == 0 ? role.rows : role.padded_rows;
  for (uint32_t place = 0; place < count;) {
    const uint32_t part = (first + place) / padded, row = (first + place) % padded;
    const uint32_t step = std::min(count - place, padded - row);
    RETURN_IF_ERROR(function(Run{part, row, step, place}));
    place += step;
  }
  return OkStatus();
}

// Of the rows of a run those that are not padding.
uint32_t RealRows(const DenseRole& role, const Run& run) {
  const uint32_t rows = role.part_rows == 0 ? role.rows : role.part_rows;
  return run.row < rows ? std::min(run.count, rows - run.row) : 0;
}

uint64_t FirstTensorRow(const DenseRole& role, const Run& run) {
  return uint64_t{role.order.InTensor(run.part)} * role.period + role.offset;
}

// Puts the columns of whole rows in order; blocks that hold several columns move with them.
void OrderColumns(const DenseRole& role, uint64_t row_bytes, std::span<std::byte> rows) {
  const ColumnOrder& order = role.columns;
  if (!order.IsChange()) return;
  const uint64_t first = row_bytes * order.first / role.cols;
  const uint64_t width = row_bytes * order.width / role.cols;
  CHECK(width > 0 && (row_bytes - first) % width == 0, role.name);
  std::vector<std::byte> row(row_bytes);
  for (uint64_t at = 0; at < rows.size(); at += row_bytes) {
    std::memcpy(row.data(), &rows[at], row_bytes);
    for (uint32_t part = 0; part < (row_bytes - first) / width; ++part) {
      std::memcpy(&rows[at + first + part * width],
                  &row[first + order.parts.InTensor(part) * width], width);
    }
  }
}

// rows[r][c] = tensor[first row of the part + c][run.row + r].
Status ReadTransposed(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, const Run& run, uint32_t count, float* rows) {
  const uint64_t width = role.source_shape.back();
  std::vector<float> part(uint64_t{role.cols} * width);
  RETURN_IF_ERROR(checkpoint.ReadFloats(tensor, FirstTensorRow(role, run) * width, part));
  for (uint64_t r = 0; r < count; ++r) {
    for (uint64_t c = 0; c < role.cols; ++c) {
      rows[r * role.cols + c] = part[c * width + run.row + r];
    }
  }
  return OkStatus();
}

}  // namespace

Status ReadRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                    const DenseRole& role, uint32_t first, uint32_t count,
                    std::span<float> rows) {
  CHECK(rows.size() == uint64_t{count} * role.cols);
  return ForRuns(role, first, count, [&](const Run& run) {
    float* const to = rows.data() + uint64_t{run.place} * role.cols;
    const uint32_t real = RealRows(role, run);
    std::fill(to + uint64_t{real} * role.cols, to + uint64_t{run.count} * role.cols, 0.0f);
    if (real == 0) return OkStatus();
    if (role.transposed) return ReadTransposed(checkpoint, tensor, role, run, real, to);
    const std::span<float> read(to, uint64_t{real} * role.cols);
    const bool is_vector = role.kind == DenseRole::Kind::kVector;
    const uint64_t from =
        is_vector ? role.offset : (FirstTensorRow(role, run) + run.row) * role.cols;
    RETURN_IF_ERROR(checkpoint.ReadFloats(tensor, from, read));
    OrderColumns(role, role.cols * sizeof(float), std::as_writable_bytes(read));
    return OkStatus();
  });
}

Status ReadRoleBlocks(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, uint32_t count,
                      std::span<std::byte> blocks) {
  CHECK(HasBlocksInOrder(role, BlockOf(tensor.type).elements), role.name);
  const uint64_t row_bytes = blocks.size() / count;
  return ForRuns(role, first, count, [&](const Run& run) {
    const auto read = blocks.subspan(run.place * row_bytes, run.count * row_bytes);
    RETURN_IF_ERROR(checkpoint.ReadBlocks(
        tensor, (FirstTensorRow(role, run) + run.row) * role.cols, read));
    OrderColumns(role, row_bytes, read);
    return OkStatus();
  });
}

}  // namespace moraine
