// Repacked blocks decode to what the blocks say, and padding is what EncodeRows writes.
#include "compute/block_repack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <vector>

#include "compute/encode.h"
#include "compute_test_support.h"

namespace moraine {
namespace {

using testing::HasSubstr;

std::vector<std::byte> RandomBlocks(Random& random, BlockFormat format, uint64_t count) {
  std::vector<std::byte> blocks(count * BlockBytes(format));
  for (std::byte& byte : blocks) byte = static_cast<std::byte>(random.Next());
  // Scales of all kinds, negative, subnormal and zero too, but finite.
  for (uint64_t i = 0; i < count; ++i) {
    std::byte& high = blocks[i * BlockBytes(format) + 1];
    high &= std::byte{0xBF};
  }
  return blocks;
}

// By the specification of the blocks.
float ValueOf(BlockFormat format, const std::byte* block, uint32_t i) {
  _Float16 scale;
  std::memcpy(&scale, block, 2);
  if (format == BlockFormat::kQ8_0) {
    return static_cast<float>(static_cast<int8_t>(block[2 + i])) * static_cast<float>(scale);
  }
  const int byte = static_cast<int>(block[2 + i % 16]);
  const int nibble = i < 16 ? byte & 15 : byte >> 4;
  return static_cast<float>(nibble - 8) * static_cast<float>(scale);
}

struct Case {
  BlockFormat format;
  Encoding encoding;
};

class BlockRepackTest : public testing::TestWithParam<Case> {};

TEST_P(BlockRepackTest, DecodesToTheBlocksAndPadsLikeEncodeRows) {
  const auto [format, encoding] = GetParam();
  const uint64_t seed = 1;
  Random random(seed);
  for (const auto& [rows, cols] : {std::pair(16u, 64u), std::pair(1u, 32u), std::pair(37u, 96u),
                                  std::pair(64u, 416u)}) {
    const uint32_t groups = cols / 32;
    const std::vector<std::byte> blocks = RandomBlocks(random, format, uint64_t{rows} * groups);
    std::vector<std::byte> tiles(MatrixBytes(encoding, rows, cols), std::byte{0x5A});
    const MatrixView view = MatrixView::Plain(tiles.data(), encoding, rows, cols);
    // In two strips where that is possible.
    const uint32_t first = rows > 32 ? 32 : rows;
    ASSERT_TRUE(RepackRows(view, 0, first, format, blocks.data()).ok());
    if (first < rows) {
      const std::byte* rest = blocks.data() + uint64_t{first} * groups * BlockBytes(format);
      ASSERT_TRUE(RepackRows(view, first, rows - first, format, rest).ok());
    }
    std::vector<float> values(uint64_t{rows} * cols);
    for (uint32_t row = 0; row < rows; ++row) {
      DecodeRow(view, row, &values[uint64_t{row} * cols]);
      for (uint32_t col = 0; col < cols; ++col) {
        const std::byte* block =
            blocks.data() + (uint64_t{row} * groups + col / 32) * BlockBytes(format);
        ASSERT_EQ(std::bit_cast<uint32_t>(values[uint64_t{row} * cols + col]),
                  std::bit_cast<uint32_t>(ValueOf(format, block, col % 32)))
            << "seed " << seed << " row " << row << " column " << col;
      }
    }
    // Where no block went, both write the same bytes: encode zeros, then put the blocks in again.
    std::vector<std::byte> encoded(tiles.size());
    const MatrixView other = MatrixView::Plain(encoded.data(), encoding, rows, cols);
    const std::vector<float> zeros(values.size());
    ASSERT_TRUE(EncodeRows(other, 0, rows, zeros.data()).ok());
    std::vector<std::byte> zero_blocks(blocks.size());
    for (size_t at = 0; format == BlockFormat::kQ4_0 && at < blocks.size(); ++at) {
      if (at % BlockBytes(format) >= 2) zero_blocks[at] = std::byte{0x88};
    }
    ASSERT_TRUE(RepackRows(view, 0, rows, format, zero_blocks.data()).ok());
    EXPECT_EQ(tiles, encoded) << rows << " x " << cols;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, BlockRepackTest,
                         testing::Values(Case{BlockFormat::kQ4_0, Encoding::kQ4},
                                         Case{BlockFormat::kQ4_0, Encoding::kQ8},
                                         Case{BlockFormat::kQ8_0, Encoding::kQ8}));

TEST(BlockRepack, KnowsWhatHoldsWhat) {
  EXPECT_FALSE(HoldsBlocks(Encoding::kQ4, BlockFormat::kQ8_0));
  EXPECT_FALSE(HoldsBlocks(Encoding::kBf16, BlockFormat::kQ4_0));
  EXPECT_FALSE(HoldsBlocks(Encoding::kBf16, BlockFormat::kQ8_0));
}

TEST(BlockRepack, RefusesAScaleThatIsNoNumberByRowAndColumn) {
  std::vector<std::byte> blocks(2 * 16 * 18), tiles(MatrixBytes(Encoding::kQ4, 16, 64));
  const MatrixView view = MatrixView::Plain(tiles.data(), Encoding::kQ4, 16, 64);
  const auto refused = [&](uint16_t scale) {
    std::memcpy(blocks.data() + (5 * 2 + 1) * 18, &scale, 2);
    return RepackRows(view, 0, 16, BlockFormat::kQ4_0, blocks.data());
  };
  EXPECT_TRUE(refused(0x7BFF).ok());
  EXPECT_THAT(refused(0xFC00).message(), HasSubstr("infinite at row 5, columns from 32"));
  EXPECT_THAT(refused(0x7C01).message(), HasSubstr("not a number at row 5, columns from 32"));
}

}  // namespace
}  // namespace moraine
