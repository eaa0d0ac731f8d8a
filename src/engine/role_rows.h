// Rows of a dense role, wherever its tensor has them (model/weights.h, RoleSource).
#pragma once

#include <cstddef>
#include <span>

#include "model/weights.h"
#include "store/checkpoint.h"

namespace moraine {

// Rows [first, first + count) as floats: count x role.cols. Padding between parts is zeros. A vector is
// one row.
Status ReadRoleRows(const Checkpoint& checkpoint, const SourceTensor& tensor,
                    const DenseRole& role, uint32_t first, uint32_t count, std::span<float> rows);

// The same as the tensor's own blocks, which HasBlocksInOrder.
Status ReadRoleBlocks(const Checkpoint& checkpoint, const SourceTensor& tensor,
                      const DenseRole& role, uint32_t first, uint32_t count,
                      std::span<std::byte> blocks);

// Whether the tensor is the role, row by row.
inline bool IsWholeTensor(const DenseRole& role) {
  return role.part_rows == 0 && !role.columns.IsChange();
}
// Whether the role's rows are whole blocks of the tensor: nothing is turned or padded, and no block is
// cut by columns that lie in another order.
inline bool HasBlocksInOrder(const DenseRole& role, uint32_t block_elements) {
  return !role.transposed && role.part_rows == role.padded_rows &&
         (!role.columns.IsChange() ||
          (role.columns.first % block_elements == 0 && role.columns.width % block_elements == 0));
}

}  // namespace moraine
