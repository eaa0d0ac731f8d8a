#include "compute/block_repack.h"

#include <cstring>
#include <string>

#include "base/check.h"

namespace moraine {
namespace {

// What padding looks like: scale 0, and codes that stand for 0.
constexpr std::byte kZeroQ4Block[18] = {
    {}, {}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88},
    std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88},
    std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88}, std::byte{0x88},
    std::byte{0x88}};
constexpr std::byte kZeroQ8Block[34] = {};

// The words of a group begin here and are kTileRows words apart.
std::byte* GroupWords(std::byte* tile, uint32_t r, uint32_t half, uint32_t half_bytes) {
  return tile + 64 + half * half_bytes + r * 4;
}

void StoreQ4(const std::byte* block, uint32_t r, uint32_t half, std::byte* tile) {
  std::byte* words = GroupWords(tile, r, half, 256);
  for (uint32_t j = 0; j < 4; ++j) std::memcpy(words + j * kTileRows * 4, block + 2 + j * 4, 4);
}

void StoreQ8(const std::byte* block, uint32_t r, uint32_t half, std::byte* tile) {
  std::byte* words = GroupWords(tile, r, half, 512);
  for (uint32_t j = 0; j < 8; ++j) std::memcpy(words + j * kTileRows * 4, block + 2 + j * 4, 4);
}

void StoreQ4AsQ8(const std::byte* block, uint32_t r, uint32_t half, std::byte* tile) {
  std::byte wide[34];
  for (uint32_t i = 0; i < 16; ++i) {
    const int pair = static_cast<int>(block[2 + i]);
    wide[2 + i] = static_cast<std::byte>((pair & 0xF) - 8);
    wide[18 + i] = static_cast<std::byte>((pair >> 4) - 8);
  }
  StoreQ8(wide, r, half, tile);
}

using StoreFunction = void (*)(const std::byte*, uint32_t, uint32_t, std::byte*);

Status BadScale(uint16_t scale, uint32_t row, uint32_t col) {
  return InvalidArgument(std::string("scale is ") +
                         ((scale & 0x3FF) == 0 ? "infinite" : "not a number") + " at row " +
                         std::to_string(row) + ", columns from " + std::to_string(col));
}

}  // namespace

Status RepackRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  BlockFormat format, const std::byte* blocks) {
  CHECK(HoldsBlocks(view.encoding, format), "the encoding does not hold such blocks");
  CHECK(view.cols % kGroupCols == 0, "columns are whole blocks");
  CHECK(first_row % kTileRows == 0, "RepackRows starts at a panel");
  CHECK(first_row + row_count <= view.rows, "rows past the end of the matrix");
  CHECK(row_count % kTileRows == 0 || first_row + row_count == view.rows,
        "only the last panel may be incomplete");
  const bool narrow = format == BlockFormat::kQ4_0;
  const StoreFunction store =
      view.encoding == Encoding::kQ4 ? StoreQ4 : (narrow ? StoreQ4AsQ8 : StoreQ8);
  const std::byte* zero = narrow ? kZeroQ4Block : kZeroQ8Block;
  const uint32_t groups = view.cols / kGroupCols;
  for (uint32_t begin = 0; begin < row_count; begin += kTileRows) {
    for (uint32_t group = 0; group < TileCount(view.cols) * 2; ++group) {
      std::byte* tile =
          const_cast<std::byte*>(view.tile((first_row + begin) / kTileRows, group / 2));
      for (uint32_t r = 0; r < kTileRows; ++r) {
        const bool inside = begin + r < row_count && group < groups;
        const std::byte* block =
            inside ? blocks + (uint64_t{begin + r} * groups + group) * BlockBytes(format) : zero;
        uint16_t scale;
        std::memcpy(&scale, block, 2);
        if ((scale & 0x7C00) == 0x7C00) {
          return BadScale(scale, first_row + begin + r, group * kGroupCols);
        }
        std::memcpy(tile + group % 2 * 32 + r * 2, &scale, 2);
        store(block, r, group % 2, tile);
      }
    }
  }
  return OkStatus();
}

}  // namespace moraine
