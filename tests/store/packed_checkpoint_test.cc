// Weights in several tensors are seen whole: each packing is written here from its description, by
// code that shares nothing with the reader, and read back value by value.
#include "store/packed_checkpoint.h"

#include <gmock/gmock.h>

#include "packed_test_support.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(PackedCheckpointTest, Fp8UnderAGridOfScales) {
  constexpr uint64_t kRows = 150, kCols = 200;
  std::vector<uint8_t> codes = Codes(kRows * kCols, 256);
  for (uint8_t& code : codes) code = (code & 127) == 127 ? 0 : code;
  std::vector<float> grid(2 * 2), small_grid(5 * 4), by_row(kRows), one = {0.375f};
  std::vector<uint16_t> grid_bf16;
  for (auto* scales : {&grid, &small_grid, &by_row}) {
    for (float& scale : *scales) scale = static_cast<float>(random_.Uniform() * 0.01);
  }
  for (float& scale : grid) scale = Scale();
  for (const float scale : grid) grid_bf16.push_back(Bf16(scale));
  RawCheckpoint raw;
  raw.Add("a.weight", "F8_E4M3", {kRows, kCols}, codes);
  raw.Add("a.weight_scale_inv", "BF16", {2, 2}, grid_bf16);
  raw.Add("b.weight", "F8_E4M3", {kRows, kCols}, codes);
  raw.Add("b.weight_scale", "F32", {kRows, 1}, by_row);
  raw.Add("c.weight", "F8_E4M3", {kRows, kCols}, codes);
  raw.Add("c.weight_scale_inv", "F32", {}, one);
  raw.Add("c.input_scale", "F32", {1}, one);
  const auto checkpoint = MustOpen(raw, R"({"quant_method":"fp8"})");
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  ExpectWeight(*checkpoint, "a.weight", SourceType::kFp8, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) {
                 return E4M3(codes[r * kCols + c]) * grid[r / 128 * 2 + c / 128];
               });
  ExpectWeight(*checkpoint, "b.weight", SourceType::kFp8, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) { return E4M3(codes[r * kCols + c]) * by_row[r]; });
  ExpectWeight(*checkpoint, "c.weight", SourceType::kFp8, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) { return E4M3(codes[r * kCols + c]) * 0.375f; });
  // Blocks of another size are the config's.
  RawCheckpoint other;
  other.Add("a.weight", "F8_E4M3", {kRows, kCols}, codes);
  other.Add("a.weight_scale_inv", "F32", {5, 4}, small_grid);
  const auto second = MustOpen(other, R"({"quant_method":"fp8","weight_block_size":[32,64]})");
  ExpectWeight(*second, "a.weight", SourceType::kFp8, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) {
                 return E4M3(codes[r * kCols + c]) * small_grid[r / 32 * 4 + c / 64];
               });
}

TEST_F(PackedCheckpointTest, AStackOfFp8MatricesHasAGridForEach) {
  const std::vector<uint8_t> codes = Codes(3 * 40 * 64, 127);
  std::vector<float> grid(3 * 2 * 2);
  for (float& scale : grid) scale = Scale();
  RawCheckpoint raw;
  raw.Add("experts.up", "F8_E4M3", {3, 40, 64}, codes);
  raw.Add("experts.up_scale_inv", "F32", {3, 2, 2}, grid);
  const auto checkpoint = MustOpen(raw, R"({"weight_block_size":[32,32]})");
  const std::vector<float> values = Rows(*checkpoint, "experts.up", 30, 60);
  for (uint64_t r = 0; r < 60; ++r) {
    const uint64_t row = 30 + r;
    for (uint64_t c = 0; c < 64; ++c) {
      ASSERT_EQ(values[r * 64 + c], E4M3(codes[row * 64 + c]) *
                                        grid[(row / 40 * 2 + row % 40 / 32) * 2 + c / 32]);
    }
  }
}

TEST_F(PackedCheckpointTest, Mxfp4WithElementsInPairs) {
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  constexpr uint64_t kExperts = 3, kRows = 8, kCols = 96;
  const std::vector<uint8_t> codes = Codes(kExperts * kRows * kCols, 16);
  std::vector<uint8_t> pairs, scales = Codes(codes.size() / 32, 250);
  for (size_t i = 0; i < codes.size(); i += 2) {
    pairs.push_back(static_cast<uint8_t>(codes[i] | codes[i + 1] << 4));
  }
  RawCheckpoint raw;
  raw.Add("x.down_proj_blocks", "U8", {kExperts, kRows, kCols / 32, 16}, pairs);
  raw.Add("x.down_proj_scales", "U8", {kExperts, kRows, kCols / 32}, scales);
  raw.Add("x.down_proj_bias", "BF16", {kExperts, kRows}, std::vector<uint16_t>(24, 0x3F80));
  const auto checkpoint = MustOpen(raw);
  EXPECT_EQ(checkpoint->Find("x.down_proj_blocks")->ShapeText(), "[3, 8, 96]");
  EXPECT_EQ(checkpoint->Find("x.down_proj_blocks")->type, SourceType::kMxfp4);
  EXPECT_EQ(Rows(*checkpoint, "x.down_proj_bias", 1, 1)[0], 1.0f);
  for (const auto& values : {Rows(*checkpoint, "x.down_proj_blocks", 5, 12),
                             BlockRows(*checkpoint, "x.down_proj_blocks", 5, 12)}) {
    for (uint64_t i = 0; i < values.size(); ++i) {
      const uint64_t at = 5 * kCols + i;
      ASSERT_EQ(values[i], kValues[codes[at]] * std::ldexp(1.0f, scales[at / 32] - 127)) << i;
    }
  }
}

// A GPTQ or AWQ weight of random codes.
struct GroupedWeight {
  uint64_t rows = 24, cols = 128, group = 64;
  uint32_t bits = 4;
  bool bf16_scales = false;
  std::vector<uint8_t> codes;  // rows x cols
  std::vector<uint8_t> zeros;  // groups x rows, as they are meant
  std::vector<float> scales;   // groups x rows
  std::vector<int32_t> group_of;

  float Value(uint64_t r, uint64_t c) const {
    const uint64_t g = static_cast<uint64_t>(group_of[c]);
    return static_cast<float>(codes[r * cols + c] - zeros[g * rows + r]) * scales[g * rows + r];
  }
  void AddZerosAndScales(RawCheckpoint& raw, uint8_t bias, const std::vector<uint64_t>& order) {
    const uint64_t groups = cols / group;
    std::vector<uint8_t> stored;
    for (uint64_t g = 0; g < groups; ++g) {
      for (uint64_t r = 0; r < rows; ++r) {
        const uint64_t in_word = order.size();
        stored.push_back(static_cast<uint8_t>(
            zeros[g * rows + r / in_word * in_word + order[r % in_word]] - bias));
      }
    }
    std::vector<uint16_t> halves;
    for (const float scale : scales) halves.push_back(bf16_scales ? Bf16(scale) : Half(scale));
    raw.Add("a.qzeros", "I32", {groups, rows * bits / 32}, WordsOfRows(stored, bits));
    raw.Add("a.scales", bf16_scales ? "BF16" : "F16", {groups, rows}, halves);
  }
  void AddGptq(RawCheckpoint& raw, uint8_t bias) {
    const uint64_t in_word = 32 / bits;
    std::vector<int32_t> words(cols / in_word * rows);
    for (uint64_t c = 0; c < cols; ++c) {
      for (uint64_t r = 0; r < rows; ++r) {
        int32_t& word = words[c / in_word * rows + r];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                    uint32_t{codes[r * cols + c]} << (bits * (c % in_word)));
      }
    }
    raw.Add("a.qweight", "I32", {cols / in_word, rows}, words);
    raw.Add("a.g_idx", "I32", {cols}, group_of);
    std::vector<uint64_t> order(in_word);
    for (uint64_t i = 0; i < in_word; ++i) order[i] = i;
    AddZerosAndScales(raw, bias, order);
  }
  void AddAwq(RawCheckpoint& raw) {
    const std::vector<uint64_t> order = bits == 8 ? std::vector<uint64_t>{0, 2, 1, 3}
                                                  : std::vector<uint64_t>{0, 2, 4, 6, 1, 3, 5, 7};
    const uint64_t in_word = order.size();
    std::vector<uint8_t> stored;
    for (uint64_t c = 0; c < cols; ++c) {
      for (uint64_t r = 0; r < rows; ++r) {
        stored.push_back(codes[(r / in_word * in_word + order[r % in_word]) * cols + c]);
      }
    }
    raw.Add("a.qweight", "I32", {cols, rows / in_word}, WordsOfRows(stored, bits));
    AddZerosAndScales(raw, 0, order);
  }
};

class GroupedCheckpointTest : public PackedCheckpointTest {
 protected:
  GroupedCheckpointTest() {
    const uint64_t groups = weight_.cols / weight_.group;
    weight_.codes = Codes(weight_.rows * weight_.cols, 16);
    weight_.zeros = Codes(groups * weight_.rows, 15);
    for (uint8_t& zero : weight_.zeros) ++zero;  // 1 to 15: v1 stores them less 1
    for (uint64_t i = 0; i < groups * weight_.rows; ++i) weight_.scales.push_back(Scale());
    for (uint64_t c = 0; c < weight_.cols; ++c) {
      weight_.group_of.push_back(static_cast<int32_t>(c / weight_.group));
    }
  }
  void Expect(RawCheckpoint& raw, const std::string& config, SourceType type, bool blocks = true) {
    const auto checkpoint = MustOpen(raw, config);
    EXPECT_EQ(checkpoint->tensors().size(), 1u);
    ExpectWeight(*checkpoint, "a.weight", type, weight_.rows, weight_.cols, blocks,
                 [&](uint64_t r, uint64_t c) { return weight_.Value(r, c); });
  }
  GroupedWeight weight_;
  RawCheckpoint raw_;
};

TEST_F(GroupedCheckpointTest, Gptq) {
  weight_.AddGptq(raw_, 1);
  Expect(raw_, R"({"quant_method":"gptq","bits":4,"group_size":64,"sym":false})",
         SourceType::kQ8_0);
}

TEST_F(GroupedCheckpointTest, GptqOfTheSecondFormatStoresZeroPointsAsTheyAre) {
  weight_.AddGptq(raw_, 0);
  Expect(raw_, R"({"quant_method":"gptq","bits":4,"group_size":64,"checkpoint_format":"gptq_v2"})",
         SourceType::kQ8_0);
}

TEST_F(GroupedCheckpointTest, SymmetricGptqIsQ4_0) {
  const std::string config = R"({"quant_method":"gptq","bits":4,"group_size":64,"sym":true})";
  for (uint8_t& zero : weight_.zeros) zero = 8;
  weight_.AddGptq(raw_, 1);
  Expect(raw_, config, SourceType::kQ4_0);
  RawCheckpoint lying;
  weight_.zeros[weight_.rows + 5] = 7;
  weight_.AddGptq(lying, 1);
  const auto checkpoint = MustOpen(lying, config);
  std::vector<std::byte> blocks(SourceBytes(SourceType::kQ4_0, weight_.codes.size()));
  const Status status = checkpoint->ReadBlocks(*checkpoint->Find("a.weight"), 0, blocks);
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(), HasSubstr("zero point is 7 at row 5, expected 8"));
}

TEST_F(GroupedCheckpointTest, GptqWithColumnsInAnotherOrderHasFloatsOnly) {
  for (size_t c = 0; c < weight_.group_of.size(); ++c) {
    weight_.group_of[c] = static_cast<int32_t>(c * 7 % 2);
  }
  weight_.AddGptq(raw_, 1);
  Expect(raw_, R"({"quant_method":"gptq","bits":4,"group_size":64,"desc_act":true})",
         SourceType::kInt4Unordered, false);
  const auto checkpoint = MustOpen(raw_, R"({"quant_method":"gptq","group_size":64})");
  std::vector<std::byte> blocks(SourceBytes(SourceType::kQ8_0, weight_.codes.size()));
  const Status status = checkpoint->ReadBlocks(*checkpoint->Find("a.weight"), 0, blocks);
  EXPECT_THAT(status.message(), HasSubstr("g_idx puts columns into another order"));
}

TEST_F(GroupedCheckpointTest, GptqOfEightBits) {
  weight_.bits = 8;
  weight_.codes = Codes(weight_.codes.size(), 256);
  for (uint8_t& zero : weight_.zeros) zero = 128;
  const std::string symmetric =
      R"({"quant_method":"gptq","bits":8,"group_size":64,"sym":true,"desc_act":true})";
  RawCheckpoint bf16, asymmetric, reordered;
  weight_.AddGptq(raw_, 1);
  Expect(raw_, R"({"quant_method":"gptq","bits":8,"group_size":64,"sym":true})", SourceType::kQ8_0);
  weight_.bf16_scales = true;
  weight_.AddGptq(bf16, 1);
  Expect(bf16, R"({"quant_method":"gptq","bits":8,"group_size":64,"sym":true})", SourceType::kInt8);
  weight_.zeros = Codes(weight_.zeros.size(), 255);
  for (uint8_t& zero : weight_.zeros) ++zero;
  weight_.AddGptq(asymmetric, 1);
  Expect(asymmetric, R"({"quant_method":"gptq","bits":8,"group_size":64})",
         SourceType::kInt8Asymmetric, false);
  EXPECT_EQ(MustOpen(raw_, symmetric)->Find("a.weight")->type, SourceType::kInt8Unordered);
  for (size_t c = 0; c < weight_.group_of.size(); ++c) {
    weight_.group_of[c] = static_cast<int32_t>(c * 7 % 2);
  }
  weight_.AddGptq(reordered, 1);
  Expect(reordered, R"({"quant_method":"gptq","bits":8,"group_size":64,"desc_act":true})",
         SourceType::kInt8Unordered, false);
}

TEST_F(GroupedCheckpointTest, ScalesOfBf16) {
  weight_.bf16_scales = true;
  weight_.AddGptq(raw_, 1);
  Expect(raw_, R"({"quant_method":"gptq","bits":4,"group_size":64})", SourceType::kInt8);
  for (uint8_t& zero : weight_.zeros) zero = 8;
  RawCheckpoint symmetric;
  weight_.AddGptq(symmetric, 1);
  Expect(symmetric, R"({"quant_method":"gptq","bits":4,"group_size":64,"sym":true})",
         SourceType::kInt4);
}

TEST_F(GroupedCheckpointTest, Awq) {
  weight_.AddAwq(raw_);
  Expect(raw_, R"({"quant_method":"awq","bits":4,"group_size":64,"version":"gemm"})",
         SourceType::kQ8_0);
}

TEST_F(GroupedCheckpointTest, AwqOfEightBits) {
  weight_.bits = 8;
  weight_.codes = Codes(weight_.rows * weight_.cols, 256);
  weight_.zeros = Codes(weight_.zeros.size(), 256);
  weight_.AddAwq(raw_);
  Expect(raw_, R"({"quant_method":"awq","bits":8,"group_size":64,"version":"gemm"})",
         SourceType::kInt8Asymmetric, false);
}

TEST_F(GroupedCheckpointTest, WhatTheConfigAsksForAndIsNotReadIsRefused) {
  weight_.AddGptq(raw_, 1);
  const auto refused = [&](const char* config) {
    const Status status = raw_.Open(config).status();
    EXPECT_EQ(status.code(), StatusCode::kUnsupported) << status.ToString();
    return status.message();
  };
  EXPECT_THAT(refused("{}"), HasSubstr("quant_method '' in config.json, expected 'gptq' or 'awq'"));
  EXPECT_THAT(refused(R"({"quant_method":"gptq","bits":3})"),
              HasSubstr("has 3 bits in format '', expected 4 or 8 in 'gptq' or 'gptq_v2'"));
  EXPECT_THAT(refused(R"({"quant_method":"awq","bits":3})"),
              HasSubstr("has 3 bits in format '', expected 4 or 8 in 'gemm'"));
  EXPECT_THAT(refused(R"({"quant_method":"awq","version":"gemv"})"), HasSubstr("'gemv'"));
  EXPECT_THAT(refused(R"({"quant_method":"gptq","group_size":48})"),
              HasSubstr("has 128 columns in groups of 48"));
}

TEST_F(PackedCheckpointTest, WhatIsMissingMisshapenOrLeftOverIsListed) {
  RawCheckpoint raw;
  raw.Add("a.weight", "F8_E4M3", {2, 64}, Codes(128, 16));
  raw.Add("b.weight", "F8_E4M3", {2, 64}, Codes(128, 16));
  raw.Add("b.weight_scale_inv", "F32", {1, 2}, std::vector<float>(2));
  raw.Add("c.weight_packed", "I32", {2, 8}, std::vector<int32_t>(16));
  raw.Add("d.weight_scale_inv", "F32", {1, 1}, std::vector<float>(1));
  raw.Add("ids", "I64", {1}, std::vector<int64_t>(1));
  const Status status = raw.Open().status();
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("(5):"), HasSubstr("'a.weight_scale_inv' is missing"),
                    HasSubstr("'b.weight_scale_inv' is F32 [1, 2], expected numbers [1, 1]"),
                    HasSubstr("'c.weight_scale' is missing"),
                    HasSubstr("'d.weight_scale_inv' (F32 [1, 1]) belongs to no weight"),
                    HasSubstr("'ids' (I64 [1]) belongs to no weight")));
}

}  // namespace
}  // namespace moraine
