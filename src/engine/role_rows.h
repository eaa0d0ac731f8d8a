// Rows of a dense role, wherever its tensor has them (model/weights.h, RoleSource).
#pragma once

#include <cstddef>
#include <span>

#include "model/weights.h"
#include "store/checkpoint.h"

namespace moraine {

// Rows [first, first + count) as floats: count x role.cols. Padding between parts is zeros.
Status ReadRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                    const DenseRole& role, uint32_t first, uint32_t count, std::span<float> rows);

// The same as the tensor's own blocks. The role must not be transposed or padded.
Status ReadRoleBlocks(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, uint32_t count,
                      std::span<std::byte> blocks);

// Whether the tensor is the role, row by row.
inline bool IsWholeTensor(const DenseRole& role) { return role.part_rows == 0; }
inline bool HasBlocksInOrder(const DenseRole& role) {
  return !role.transposed && role.part_rows == role.padded_rows;
}

}  // namespace moraine
