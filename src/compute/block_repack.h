// Blocks of ggml's Q4_0 and Q8_0 -> tiles: codes and scales are carried bit for bit.
//
// Both formats group 32 columns of a row behind one f16 scale, as q4 and q8 do, so that nothing is
// computed: a block's words move to their places in a tile. A Q4_0 block fits q8 as well, code - 8
// for code, under the same scale.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "compute/encoding.h"

namespace moraine {

// The bytes of a block: store/checkpoint.h, SourceType.
enum class BlockFormat : uint8_t { kQ4_0, kQ8_0 };
constexpr uint32_t BlockBytes(BlockFormat format) { return format == BlockFormat::kQ4_0 ? 18 : 34; }

// Whether the encoding can hold such blocks without a change of any value.
constexpr bool HoldsBlocks(Encoding encoding, BlockFormat format) {
  return encoding == Encoding::kQ8 ||
         (encoding == Encoding::kQ4 && format == BlockFormat::kQ4_0);
}

// Writes `row_count` rows that start at row first_row (a multiple of 16; only the matrix's last
// panel may be incomplete) into the panels of `view`, whose columns are a multiple of 32 and whose
// encoding holds the format. blocks: row_count x (cols / 32) blocks, row by row. Padding is as
// EncodeRows writes it. kInvalidArgument naming row and column of a scale that is infinite or no
// number.
Status RepackRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  BlockFormat format, const std::byte* blocks);

}  // namespace moraine
