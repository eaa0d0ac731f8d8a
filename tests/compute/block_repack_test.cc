// Repacked blocks decode to what the blocks say, and padding is what EncodeRows writes.
#include "compute/block_repack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
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
    std::byte* block = blocks.data() + i * BlockBytes(format);
    if (format == BlockFormat::kMxfp4) {
      // 6 x 2^127 is no float.
      block[0] = std::min(i < 4 ? static_cast<std::byte>(i) : block[0], std::byte{252});
    } else {
      block[1] &= std::byte{0xBF};
    }
  }
  return blocks;
}

// By the specification of the blocks.
float ValueOf(BlockFormat format, const std::byte* block, uint32_t i) {
  constexpr float kIq4Nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
  constexpr float kE2M1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  _Float16 half;
  uint16_t bits;
  std::memcpy(&half, block, 2);
  std::memcpy(&bits, block, 2);
  const float scale = static_cast<float>(half);
  if (format == BlockFormat::kQ8_0) {
    return static_cast<float>(static_cast<int8_t>(block[2 + i])) * scale;
  }
  const int byte = static_cast<int>(block[BlockBytes(format) - 16 + i % 16]);
  const int nibble = i < 16 ? byte & 15 : byte >> 4;
  switch (format) {
    case BlockFormat::kQ5_0: {
      const int fifth = static_cast<int>(block[2 + i / 8]) >> (i % 8) & 1;
      return static_cast<float>(nibble + 16 * fifth - 16) * scale;
    }
    case BlockFormat::kIq4Nl: return kIq4Nl[nibble] * scale;
    case BlockFormat::kInt4:
      return static_cast<float>(nibble - 8) * std::bit_cast<float>(uint32_t{bits} << 16);
    case BlockFormat::kMxfp4: {
      const float value = std::ldexp(kE2M1[nibble % 8], static_cast<int>(block[0]) - 127);
      return nibble < 8 || value == 0 ? value : -value;  // tiles have no negative zero
    }
    default: return static_cast<float>(nibble - 8) * scale;
  }
}

// Scales of the blocks inside a matrix become 0.
void ClearScales(const MatrixView& view, uint32_t rows, uint32_t cols) {
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t group = 0; group < cols / 32; ++group) {
      std::byte* tile = const_cast<std::byte*>(view.tile(row / 16, group / 2));
      std::memset(tile + group % 2 * 32 + row % 16 * 2, 0, 2);
    }
  }
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
    // (Blocks of zeros as EncodeRows writes them: scale 0 but for MXFP4, which has none.)
    std::vector<std::byte> zero_blocks(blocks.size());
    for (size_t at = 0; at < blocks.size(); ++at) {
      const size_t in_block = at % BlockBytes(format);
      if (in_block < BlockBytes(format) - 16) continue;
      if (format != BlockFormat::kQ8_0 && format != BlockFormat::kQ5_0) {
        zero_blocks[at] = static_cast<std::byte>(PaddingNibbles(EncodingFor(format)));
      }
    }
    for (size_t at = 0; format == BlockFormat::kQ5_0 && at < blocks.size(); ++at) {
      const size_t in_block = at % 22;
      if (in_block >= 2 && in_block < 6) zero_blocks[at] = std::byte{0xFF};  // code 16 - 16
    }
    // iq4_nl has no code for zero: only q4's zeros are q8's.
    if (format == BlockFormat::kIq4Nl && encoding == Encoding::kQ8) continue;
    ASSERT_TRUE(RepackRows(view, 0, rows, format, zero_blocks.data()).ok());
    if (format == BlockFormat::kMxfp4) ClearScales(view, rows, cols);
    EXPECT_EQ(tiles, encoded) << rows << " x " << cols;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, BlockRepackTest,
                         testing::Values(Case{BlockFormat::kQ4_0, Encoding::kQ4},
                                         Case{BlockFormat::kQ4_0, Encoding::kQ8},
                                         Case{BlockFormat::kQ5_0, Encoding::kQ8},
                                         Case{BlockFormat::kIq4Nl, Encoding::kIq4Nl},
                                         Case{BlockFormat::kIq4Nl, Encoding::kQ8},
                                         Case{BlockFormat::kInt4, Encoding::kQ4Bf16},
                                         Case{BlockFormat::kMxfp4, Encoding::kMxfp4},
                                         Case{BlockFormat::kQ8_0, Encoding::kQ8}));

// A float's scale in front of 32 codes.
std::vector<std::byte> Int8Block(float scale, int first_code) {
  std::vector<std::byte> block(36);
  std::memcpy(block.data(), &scale, 4);
  for (int i = 0; i < 32; ++i) block[4 + i] = static_cast<std::byte>(first_code + i);
  return block;
}

TEST(BlockRepack, Int8IsExactWhereF16HasTheScaleAndNextToItElsewhere) {
  std::vector<std::byte> tiles(MatrixBytes(Encoding::kQ8, 1, 32));
  const MatrixView view = MatrixView::Plain(tiles.data(), Encoding::kQ8, 1, 32);
  const auto largest_error = [&](float scale) {
    double error = 0;
    for (const int first : {-128, -16, 96}) {
      const auto block = Int8Block(scale, first);
      EXPECT_TRUE(RepackRows(view, 0, 1, BlockFormat::kInt8, block.data()).ok()) << scale;
      float row[32];
      DecodeRow(view, 0, row);
      for (int i = 0; i < 32; ++i) {
        error = std::max(error, std::fabs(double{row[i]} - double{scale} * (first + i)));
      }
    }
    return error;
  };
  // bf16's significands have 8 bits: f16's subnormals hold them down to 2^-17.
  for (const float significand : {1.0f, 1.0078125f, 1.5f, 1.9921875f, -1.9921875f}) {
    for (int exponent = -17; exponent <= 14; ++exponent) {
      EXPECT_EQ(largest_error(std::ldexp(significand, exponent)), 0) << significand << exponent;
    }
    for (int exponent = -40; exponent < -17; ++exponent) {
      EXPECT_LE(largest_error(std::ldexp(significand, exponent)), 0x1p-18) << exponent;
    }
  }
  EXPECT_GT(largest_error(std::ldexp(1.0078125f, -18)), 0);
  EXPECT_LE(largest_error(std::ldexp(1.0078125f, -18)), 0x1p-18);
  EXPECT_THAT(RepackRows(view, 0, 1, BlockFormat::kInt8, Int8Block(65536.0f, 0).data()).message(),
              HasSubstr("scale is infinite at row 0, columns from 0"));
  EXPECT_THAT(RepackRows(view, 0, 1, BlockFormat::kInt8, Int8Block(NAN, 0).data()).message(),
              HasSubstr("not a number at row 0"));
}

TEST(BlockRepack, Bf16IsWhatEncodeRowsWrites) {
  const uint64_t seed = 4;
  Random random(seed);
  for (const auto& [rows, cols] : {std::pair(16u, 64u), std::pair(1u, 1u), std::pair(37u, 97u),
                                  std::pair(64u, 416u), std::pair(35u, 130u)}) {
    std::vector<uint16_t> bits(uint64_t{rows} * cols);
    std::vector<float> floats;
    for (uint16_t& b : bits) {
      b = static_cast<uint16_t>(random.Next());
      if ((b & 0x7F80) == 0x7F80) b &= 0xBFFF;  // finite
      floats.push_back(Bf16ToFloat(b));
    }
    std::vector<std::byte> tiles(MatrixBytes(Encoding::kBf16, rows, cols), std::byte{0x5A});
    std::vector<std::byte> expected(tiles.size(), std::byte{0xA5});
    const MatrixView view = MatrixView::Plain(tiles.data(), Encoding::kBf16, rows, cols);
    const MatrixView other = MatrixView::Plain(expected.data(), Encoding::kBf16, rows, cols);
    ASSERT_TRUE(EncodeRows(other, 0, rows, floats.data()).ok());
    // In two strips where that is possible.
    const uint32_t first = rows > 32 ? 32 : rows;
    const auto* source = reinterpret_cast<const std::byte*>(bits.data());
    RepackBf16Rows(view, 0, first, source);
    if (first < rows) {
      RepackBf16Rows(view, first, rows - first, source + uint64_t{first} * cols * 2);
    }
    EXPECT_EQ(tiles, expected) << rows << " x " << cols << " seed " << seed;
  }
}

TEST(BlockRepack, KnowsWhatHoldsWhat) {
  EXPECT_FALSE(HoldsBlocks(Encoding::kQ4, BlockFormat::kQ8_0));
  EXPECT_FALSE(HoldsBlocks(Encoding::kBf16, BlockFormat::kQ4_0));
  EXPECT_FALSE(HoldsBlocks(Encoding::kBf16, BlockFormat::kQ8_0));
  EXPECT_FALSE(HoldsBlocks(Encoding::kQ8, BlockFormat::kMxfp4));
  EXPECT_FALSE(HoldsBlocks(Encoding::kQ4, BlockFormat::kInt4));
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
  std::vector<std::byte> mx(2 * 16 * 17);
  mx[11 * 17] = std::byte{255};
  const MatrixView mx_view = MatrixView::Plain(tiles.data(), Encoding::kMxfp4, 16, 64);
  EXPECT_THAT(RepackRows(mx_view, 0, 16, BlockFormat::kMxfp4, mx.data()).message(),
              HasSubstr("not a number at row 5, columns from 32"));
}

}  // namespace
}  // namespace moraine
