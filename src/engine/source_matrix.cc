#include "engine/source_matrix.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "compute/aligned_array.h"
#include "compute/block_repack.h"
#include "compute/encode.h"
#include "engine/role_rows.h"

namespace moraine {
namespace {

// Floats held per worker while encoding: 8 MiB, so that memory does not depend on the model.
constexpr uint64_t kStripFloats = 2u << 20;

std::optional<BlockFormat> FormatOf(SourceType type) {
  switch (type) {
    case SourceType::kQ4_0: return BlockFormat::kQ4_0;
    case SourceType::kQ5_0: return BlockFormat::kQ5_0;
    case SourceType::kQ8_0: return BlockFormat::kQ8_0;
    case SourceType::kIq4Nl: return BlockFormat::kIq4Nl;
    case SourceType::kInt4: return BlockFormat::kInt4;
    case SourceType::kMxfp4: return BlockFormat::kMxfp4;
    case SourceType::kInt8: return BlockFormat::kInt8;
    default: return std::nullopt;
  }
}

// Whether what a checkpoint has of a type is an encoding's but for its places.
bool Carries(SourceType type, Encoding encoding) {
  if (type == SourceType::kBf16) return encoding == Encoding::kBf16;
  const std::optional<BlockFormat> format = FormatOf(type);
  return format && HoldsBlocks(encoding, *format);
}

Status Repack(const MatrixView& view, uint32_t first_row, uint32_t row_count, SourceType type,
              const std::byte* blocks) {
  if (type != SourceType::kBf16) {
    return RepackRows(view, first_row, row_count, *FormatOf(type), blocks);
  }
  RepackBf16Rows(view, first_row, row_count, blocks);
  return OkStatus();
}

// Rows [first, first + count) of a matrix of `cols` columns that is not simply stored in this order.
Status ReadScattered(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                     uint32_t count, uint32_t cols, std::vector<float>* rows) {
  rows->resize(uint64_t{count} * cols);
  const uint32_t step = matrix.row_step;
  if (!matrix.transposed) {
    std::vector<float> all((uint64_t{count - 1} * step + 1) * cols);
    RETURN_IF_ERROR(checkpoint.ReadFloats(
        *matrix.tensor, (matrix.first_row + uint64_t{first} * step) * cols, all));
    for (uint64_t r = 0; r < count; ++r) {
      std::copy_n(&all[r * step * cols], cols, rows->begin() + static_cast<ptrdiff_t>(r * cols));
    }
    return OkStatus();
  }
  const uint32_t lines = std::max(1u, static_cast<uint32_t>(kStripFloats / matrix.tensor_rows));
  std::vector<float> part;
  for (uint32_t c = 0; c < cols; c += lines) {
    const uint32_t line_count = std::min(lines, cols - c);
    part.resize(uint64_t{line_count} * matrix.tensor_rows);
    RETURN_IF_ERROR(checkpoint.ReadFloats(
        *matrix.tensor, matrix.first_element + uint64_t{c} * matrix.tensor_rows, part));
    for (uint64_t r = 0; r < count; ++r) {
      const uint64_t from = matrix.first_row + (first + r) * step;
      for (uint64_t i = 0; i < line_count; ++i) {
        (*rows)[r * cols + c + i] = part[i * matrix.tensor_rows + from];
      }
    }
  }
  return OkStatus();
}

// The same rows as blocks; not of a transposed matrix.
Result<AlignedArray<std::byte>> ReadBlockRows(const Checkpoint& checkpoint,
                                              const SourceMatrix& matrix, uint32_t first,
                                              uint32_t count, uint32_t cols) {
  const SourceTensor& tensor = *matrix.tensor;
  const uint64_t row_bytes = SourceBytes(tensor.type, cols), step = matrix.row_step;
  const uint64_t bytes = (uint64_t{count - 1} * step + 1) * row_bytes;
  AlignedArray<std::byte> blocks(bytes);
  RETURN_IF_ERROR(checkpoint.ReadBlocks(tensor, (matrix.first_row + first * step) * cols,
                                        {blocks.data(), bytes}));
  for (uint64_t r = 1; step > 1 && r < count; ++r) {
    std::memcpy(&blocks[r * row_bytes], &blocks[r * step * row_bytes], row_bytes);
  }
  return blocks;
}

}  // namespace

uint32_t StripRows(uint32_t cols) {
  const uint64_t rows = kStripFloats / std::max(1u, cols) / kTileRows * kTileRows;
  return static_cast<uint32_t>(std::clamp<uint64_t>(rows, kTileRows, 1u << 20));
}

bool IsExact(SourceType type, Encoding encoding) {
  if (encoding == Encoding::kF32) return true;
  // A scale of kInt8 may be one that no f16 has.
  return Carries(type, encoding) && type != SourceType::kInt8;
}

Encoding NaturalEncoding(SourceType type) {
  if (const std::optional<BlockFormat> format = FormatOf(type)) return EncodingFor(*format);
  return IsQuantised(type) ? Encoding::kQ8 : Encoding::kBf16;
}

Encoding Join(Encoding a, Encoding b) {
  if (a == b) return a;
  return std::min({a, b, Encoding::kQ8});
}

SourceMatrix MatrixOf(const SourceTensor& tensor, const ExpertSource& source, ExpertId expert) {
  const uint64_t before = source.stacked ? expert.value() : 0;
  SourceMatrix matrix{.tensor = &tensor, .row_step = source.row_step,
                      .transposed = source.transposed, .tensor_rows = source.tensor_rows};
  matrix.first_row = source.first_row;
  if (source.transposed) {
    matrix.first_element = before * source.shape[source.shape.size() - 2] * source.tensor_rows;
  } else {
    matrix.first_row += before * source.tensor_rows;
  }
  return matrix;
}

bool CarriesBlocks(const SourceMatrix& matrix, Encoding encoding) {
  return !matrix.transposed && Carries(matrix.tensor->type, encoding);
}

Status ReadRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                uint32_t count, uint32_t cols, std::vector<float>* rows) {
  if (matrix.transposed || matrix.row_step != 1) {
    return ReadScattered(checkpoint, matrix, first, count, cols, rows);
  }
  rows->resize(uint64_t{count} * cols);
  return checkpoint.ReadFloats(*matrix.tensor, (matrix.first_row + first) * cols, *rows);
}

Status EncodeMatrixRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                        uint32_t count, const MatrixView& view, uint32_t view_row) {
  const SourceTensor& tensor = *matrix.tensor;
  Status status;
  if (CarriesBlocks(matrix, view.encoding)) {
    ASSIGN_OR_RETURN(const AlignedArray<std::byte> blocks,
                     ReadBlockRows(checkpoint, matrix, first, count, view.cols));
    status = Repack(view, view_row, count, tensor.type, blocks.data());
  } else {
    std::vector<float> rows;
    RETURN_IF_ERROR(ReadRows(checkpoint, matrix, first, count, view.cols, &rows));
    status = EncodeRows(view, view_row, count, rows.data(), matrix.importance);
  }
  if (status.ok()) return status;
  const uint64_t from = matrix.first_row + first - view_row;
  return status.WithContext(
      fmt::format("{}: tensor '{}'{}", checkpoint.FileOf(tensor), tensor.name,
                  from == 0 ? "" : fmt::format(", counted from its row {}", from)));
}

Status EncodeWhole(const Checkpoint& checkpoint, const SourceMatrix& matrix,
                   const MatrixView& view) {
  // A transposed matrix is read as a whole for each strip.
  const uint32_t step = matrix.transposed ? view.rows : StripRows(view.cols);
  for (uint32_t row = 0; row < view.rows; row += step) {
    RETURN_IF_ERROR(EncodeMatrixRows(checkpoint, matrix, row, std::min(step, view.rows - row), view,
                                     row));
  }
  return OkStatus();
}

Status EncodeRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, const MatrixView& view) {
  Status status;
  if (HasBlocksInOrder(role, BlockOf(tensor.type).elements) &&
      Carries(tensor.type, view.encoding)) {
    const uint64_t bytes = SourceBytes(tensor.type, uint64_t{view.rows} * view.cols);
    const AlignedArray<std::byte> blocks(bytes);
    RETURN_IF_ERROR(ReadRoleBlocks(checkpoint, tensor, role, first, view.rows,
                                   {blocks.data(), bytes}));
    status = Repack(view, 0, view.rows, tensor.type, blocks.data());
  } else {
    std::vector<float> rows(uint64_t{view.rows} * view.cols);
    RETURN_IF_ERROR(ReadRoleRows(checkpoint, tensor, role, first, view.rows, rows));
    status = EncodeRows(view, 0, view.rows, rows.data());
  }
  if (status.ok()) return status;
  return status.WithContext(fmt::format("{}: '{}' of tensor '{}', counted from its row {}",
                                        checkpoint.FileOf(tensor), role.name, tensor.name, first));
}

}  // namespace moraine
