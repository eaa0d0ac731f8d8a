#include "compute/block_repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/check.h"
#include "compute/encode.h"

namespace moraine {
namespace {

// The words of a group begin here and are kTileRows words apart.
std::byte* GroupWords(std::byte* tile, uint32_t r, uint32_t half, uint32_t half_bytes) {
  return tile + 64 + half * half_bytes + r * 4;
}

// 16 bytes of nibbles, 4 words.
void StoreNibbles(const std::byte* nibbles, uint32_t r, uint32_t half, std::byte* tile) {
  std::byte* words = GroupWords(tile, r, half, 256);
  for (uint32_t j = 0; j < 4; ++j) std::memcpy(words + j * kTileRows * 4, nibbles + j * 4, 4);
}
// 32 codes of 8 bits.
void StoreCodes(const std::byte* codes, uint32_t r, uint32_t half, std::byte* tile) {
  std::byte* words = GroupWords(tile, r, half, 512);
  for (uint32_t j = 0; j < 8; ++j) std::memcpy(words + j * kTileRows * 4, codes + j * 4, 4);
}

// A scale of kInt8 as the nearest f16 that is not smaller: it is the same if f16 has it.
uint16_t NextHalf(float scale) {
  const uint16_t bits = FloatToF16(scale);
  return std::fabs(F16ToFloat(bits)) < std::fabs(scale) ? static_cast<uint16_t>(bits + 1) : bits;
}

void ExpandInt8(const std::byte* block, std::byte* codes) {
  float scale;
  std::memcpy(&scale, block, sizeof(scale));
  const float rounded = F16ToFloat(NextHalf(scale));
  std::memcpy(codes, block + 4, kGroupCols);
  if (rounded == scale) return;
  for (uint32_t i = 0; i < kGroupCols; ++i) {
    const float code = std::rint(static_cast<float>(static_cast<int8_t>(codes[i])) * (scale / rounded));
    codes[i] = static_cast<std::byte>(static_cast<int>(code));
  }
}

// The codes of a block whose scale is f16, as int8.
void ExpandCodes(BlockFormat format, const std::byte* block, std::byte* codes) {
  if (format == BlockFormat::kQ8_0) {
    std::memcpy(codes, block + 2, kGroupCols);
    return;
  }
  if (format == BlockFormat::kInt8) return ExpandInt8(block, codes);
  const std::byte* nibbles = block + BlockBytes(format) - 16;
  uint32_t fifths = 0;
  if (format == BlockFormat::kQ5_0) std::memcpy(&fifths, block + 2, 4);
  const int8_t* table = CodesOf(EncodingFor(format));
  for (uint32_t i = 0; i < kGroupCols; ++i) {
    const uint32_t nibble = static_cast<uint32_t>(nibbles[i % 16]) >> (i / 16 * 4) & 0xF;
    const int code = format == BlockFormat::kQ5_0
                         ? static_cast<int>(nibble | (fifths >> i & 1) << 4) - 16
                         : table[nibble];
    codes[i] = static_cast<std::byte>(code);
  }
}

// A block's scale as its encoding has it.
uint16_t ScaleBits(BlockFormat format, const std::byte* block) {
  uint16_t bits;
  if (format == BlockFormat::kInt8) {
    float scale;
    std::memcpy(&scale, block, sizeof(scale));
    return NextHalf(scale);
  }
  if (format != BlockFormat::kMxfp4) {
    std::memcpy(&bits, block, 2);
    return bits;
  }
  // Half of 2^(e - 127), as codes are doubled: a subnormal of bf16 for e 0 and 1.
  const uint32_t e = static_cast<uint32_t>(*block);
  if (e == 255) return 0x7FC0;
  return static_cast<uint16_t>(e < 2 ? 0x20u << e : (e - 1) << 7);
}
bool IsFinite(Encoding encoding, uint16_t scale) {
  const uint16_t exponent = HasBf16Scales(encoding) ? 0x7F80 : 0x7C00;
  return (scale & exponent) != exponent;
}

Status BadScale(Encoding encoding, uint16_t scale, uint32_t row, uint32_t col) {
  const uint16_t mantissa = HasBf16Scales(encoding) ? 0x7F : 0x3FF;
  return InvalidArgument(std::string("scale is ") +
                         ((scale & mantissa) == 0 ? "infinite" : "not a number") + " at row " +
                         std::to_string(row) + ", columns from " + std::to_string(col));
}

constexpr uint32_t kPairs = kTileCols / 2;  // words of a tile's row

}  // namespace

Status RepackRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  BlockFormat format, const std::byte* blocks) {
  CHECK(HoldsBlocks(view.encoding, format), "the encoding does not hold such blocks");
  CHECK(view.cols % kGroupCols == 0, "columns are whole blocks");
  CHECK(first_row % kTileRows == 0, "RepackRows starts at a panel");
  CHECK(first_row + row_count <= view.rows, "rows past the end of the matrix");
  CHECK(row_count % kTileRows == 0 || first_row + row_count == view.rows,
        "only the last panel may be incomplete");
  const Encoding encoding = view.encoding;
  const bool wide = encoding == Encoding::kQ8;
  const uint32_t groups = view.cols / kGroupCols, block_bytes = BlockBytes(format);
  std::byte padding[kGroupCols];
  std::memset(padding, wide ? 0 : PaddingNibbles(encoding), sizeof(padding));
  for (uint32_t begin = 0; begin < row_count; begin += kTileRows) {
    for (uint32_t group = 0; group < TileCount(view.cols) * 2; ++group) {
      std::byte* tile =
          const_cast<std::byte*>(view.tile((first_row + begin) / kTileRows, group / 2));
      for (uint32_t r = 0; r < kTileRows; ++r) {
        const bool inside = begin + r < row_count && group < groups;
        const std::byte* block = blocks + (uint64_t{begin + r} * groups + group) * block_bytes;
        const uint16_t scale = inside ? ScaleBits(format, block) : 0;
        if (!IsFinite(encoding, scale)) {
          return BadScale(encoding, scale, first_row + begin + r, group * kGroupCols);
        }
        std::memcpy(tile + group % 2 * 32 + r * 2, &scale, 2);
        if (wide) {
          std::byte codes[kGroupCols];
          if (inside) ExpandCodes(format, block, codes);
          StoreCodes(inside ? codes : padding, r, group % 2, tile);
        } else {
          StoreNibbles(inside ? block + block_bytes - 16 : padding, r, group % 2, tile);
        }
      }
    }
  }
  return OkStatus();
}

void RepackBf16Rows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                    const std::byte* rows) {
  CHECK(view.encoding == Encoding::kBf16, "bf16 becomes bf16");
  CHECK(first_row % kTileRows == 0, "RepackBf16Rows starts at a panel");
  CHECK(first_row + row_count <= view.rows, "rows past the end of the matrix");
  CHECK(row_count % kTileRows == 0 || first_row + row_count == view.rows,
        "only the last panel may be incomplete");
  const uint64_t row_bytes = uint64_t{view.cols} * 2;
  for (uint32_t begin = 0; begin < row_count; begin += kTileRows) {
    for (uint32_t t = 0; t < TileCount(view.cols); ++t) {
      std::byte* const tile =
          const_cast<std::byte*>(view.tile((first_row + begin) / kTileRows, t));
      const uint64_t first = uint64_t{t} * kPairs * 4;
      const uint64_t bytes = std::min<uint64_t>(kPairs * 4, row_bytes - first);
      for (uint32_t r = 0; r < kTileRows; ++r) {
        uint32_t words[kPairs] = {};
        if (begin + r < row_count) {
          std::memcpy(words, rows + (begin + r) * row_bytes + first, bytes);
        }
        for (uint32_t j = 0; j < kPairs; ++j) {
          std::memcpy(tile + (j * kTileRows + r) * 4, &words[j], 4);
        }
      }
    }
  }
}

}  // namespace moraine
