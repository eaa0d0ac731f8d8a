// Blocks of published formats -> tiles: codes and scales are carried bit for bit.
//
// All of them group 32 columns of a row behind one scale, as the quantised encodings do, so that
// nothing is computed: a block's words move to their places in a tile. Codes that stand for integers
// of 8 bits under an f16 scale fit q8 as well. kInt8's scale is a float, which q8 holds if f16 does. One
// that f16 has not (of bf16's, those below 2^-17) is rounded up to the next that it has, and the codes
// are chosen anew for it: weights under a scale below 2^-17 move by at most half of it, 4e-6.
//
// Rows of bf16 are carried likewise, without a detour through floats: 4 bytes at a time, which is what
// keeps an import at the drive's speed (docs/formats.md).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "compute/encoding.h"

namespace moraine {

// The bytes of a block: store/source_type.h.
enum class BlockFormat : uint8_t { kQ4_0, kQ5_0, kQ8_0, kIq4Nl, kInt4, kMxfp4, kInt8 };
constexpr uint32_t BlockBytes(BlockFormat format) {
  switch (format) {
    case BlockFormat::kQ5_0: return 22;
    case BlockFormat::kQ8_0: return 34;
    case BlockFormat::kMxfp4: return 17;
    case BlockFormat::kInt8: return 36;
    default: return 18;
  }
}

// The encoding that was made for such blocks.
constexpr Encoding EncodingFor(BlockFormat format) {
  switch (format) {
    case BlockFormat::kQ4_0: return Encoding::kQ4;
    case BlockFormat::kIq4Nl: return Encoding::kIq4Nl;
    case BlockFormat::kInt4: return Encoding::kQ4Bf16;
    case BlockFormat::kMxfp4: return Encoding::kMxfp4;
    default: return Encoding::kQ8;
  }
}

// Whether the encoding can hold such blocks without a change of any value.
constexpr bool HoldsBlocks(Encoding encoding, BlockFormat format) {
  return encoding == EncodingFor(format) ||
         (encoding == Encoding::kQ8 && !HasBf16Scales(EncodingFor(format)));
}

// Writes `row_count` rows that start at row first_row (a multiple of 16; only the matrix's last
// panel may be incomplete) into the panels of `view`, whose columns are a multiple of 32 and whose
// encoding holds the format. blocks: row_count x (cols / 32) blocks, row by row. Padding is as
// EncodeRows writes it. kInvalidArgument naming row and column of a scale that is infinite (for f16, a
// float of more than 65504 is) or no number.
Status RepackRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  BlockFormat format, const std::byte* blocks);

// The same of row_count x cols bf16 numbers, row by row, into a view of bf16; any number of columns.
void RepackBf16Rows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                    const std::byte* rows);

}  // namespace moraine
