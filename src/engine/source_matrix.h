// Matrices as a checkpoint has them, read and encoded: an expert's part of a stacked tensor, every
// second row of one, columns instead of rows, a dense role.
//
// Blocks of formats that an encoding holds are carried over to the bit; everything else goes through
// floats and EncodeRows, a strip of rows at a time, so that memory does not depend on the model.
//
// Threads: pure functions; a checkpoint may be read by several threads. Errors name file, tensor and
// row.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "compute/encoding.h"
#include "model/tensor_naming.h"
#include "model/weights.h"
#include "store/checkpoint.h"

namespace moraine {

// Rows of a matrix of `cols` columns that are encoded at a time: a multiple of 16, 8 MiB of floats.
uint32_t StripRows(uint32_t cols);

// Whether an encoding holds what a checkpoint has of a type, to the bit.
bool IsExact(SourceType type, Encoding encoding);
// The encoding for a type when the user asks for none: what carries it exactly, q8 for what is
// quantised in a way that nothing carries (K-quants, FP8), bf16 for floats.
Encoding NaturalEncoding(SourceType type);
// One encoding for matrices that would have two: the finer. Different ones of 4 bits meet in q8.
Encoding Join(Encoding a, Encoding b);

// A matrix of a checkpoint: rows first_row, first_row + row_step, .. of a tensor, or such columns of
// a part of it that has tensor_rows of them.
struct SourceMatrix {
  const SourceTensor* tensor;
  uint64_t first_row = 0;
  uint32_t row_step = 1;
  bool transposed = false;
  uint64_t first_element = 0;  // of the part; transposed only
  uint32_t tensor_rows = 0;    // transposed only
  std::span<const float> importance = {};  // as EncodeRows takes it; of no meaning to blocks
};

SourceMatrix MatrixOf(const SourceTensor& tensor, const ExpertSource& source, ExpertId expert);

// Whether the matrix's own blocks become the encoding's, and nothing is searched.
bool CarriesBlocks(const SourceMatrix& matrix, Encoding encoding);

// Rows [first, first + count) of a matrix of `cols` columns; resizes `rows`.
Status ReadRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                uint32_t count, uint32_t cols, std::vector<float>* rows);

// Encodes rows [first, first + count) of a matrix into rows of `view` from view_row on.
Status EncodeMatrixRows(const Checkpoint& checkpoint, const SourceMatrix& matrix, uint32_t first,
                        uint32_t count, const MatrixView& view, uint32_t view_row);

// All of a matrix that has the view's shape.
Status EncodeWhole(const Checkpoint& checkpoint, const SourceMatrix& matrix,
                   const MatrixView& view);

// Encodes the view's rows from `first` on of a role that is not simply its tensor.
Status EncodeRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, const MatrixView& view);

}  // namespace moraine
