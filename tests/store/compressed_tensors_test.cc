// What llm-compressor publishes: integers of 4 and 8 bits with and without zero points, groups and order,
// and floats of 4 bits, each written here from its description and read back value by value.
#include <gmock/gmock.h>

#include <algorithm>

#include "packed_test_support.h"
#include "store/packed_checkpoint.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST_F(PackedCheckpointTest, SymmetricInt4IsCarriedAsItIs) {
  constexpr uint64_t kRows = 24, kCols = 256;
  const std::vector<uint8_t> codes = Codes(kRows * kCols, 16);
  for (const uint64_t group : {32, 128}) {
    const uint64_t groups = kCols / group;
    std::vector<float> scales(kRows * groups);
    for (float& scale : scales) scale = Scale();
    scales[0] = std::ldexp(1.0f, -130);  // a subnormal: no f16 has it
    scales[1] = std::ldexp(1.5f, 100);
    std::vector<uint16_t> bits;
    for (const float scale : scales) bits.push_back(Bf16(scale));
    RawCheckpoint raw;
    raw.Add("a.weight_packed", "I32", {kRows, kCols / 8}, WordsOfRows(codes));
    raw.Add("a.weight_scale", "BF16", {kRows, groups}, bits);
    raw.Add("a.weight_shape", "I64", {2}, std::vector<int64_t>{kRows, kCols});
    const auto checkpoint = MustOpen(raw);
    ExpectWeight(*checkpoint, "a.weight", SourceType::kInt4, kRows, kCols, true,
                 [&](uint64_t r, uint64_t c) {
                   return static_cast<float>(codes[r * kCols + c] - 8) *
                          scales[r * groups + c / group];
                 });
  }
}

// A weight of compressed-tensors: signed codes and zero points, scales a row and group.
struct SignedWeight {
  uint64_t rows = 0, cols = 0, group = 0;
  std::vector<int> codes = {}, zeros = {};
  std::vector<float> scales = {};
  std::vector<int32_t> group_of = {};

  uint64_t groups() const { return cols / group; }
  float Value(uint64_t r, uint64_t c) const {
    const uint64_t at = r * groups() + static_cast<uint64_t>(group_of[c]);
    return static_cast<float>(codes[r * cols + c] - zeros[at]) * scales[at];
  }
  // [rows, cols] or, of zero points, packed along the rows, the last word padded.
  static std::vector<int32_t> Packed(const std::vector<int>& values, uint64_t rows, uint64_t cols,
                                     uint32_t bits, bool along_rows) {
    const uint64_t in_word = 32 / bits, half = uint64_t{1} << (bits - 1);
    const uint64_t lines = along_rows ? (rows + in_word - 1) / in_word : rows;
    const uint64_t across = along_rows ? cols : cols / in_word;
    std::vector<int32_t> words(lines * across);
    for (uint64_t r = 0; r < rows; ++r) {
      for (uint64_t c = 0; c < cols; ++c) {
        const uint64_t code = static_cast<uint64_t>(values[r * cols + c]) + half;
        int32_t& word =
            along_rows ? words[r / in_word * cols + c] : words[r * across + c / in_word];
        const uint64_t place = along_rows ? r % in_word : c % in_word;
        word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                    static_cast<uint32_t>(code << (place * bits)));
      }
    }
    return words;
  }
  static std::vector<int8_t> Bytes(const std::vector<int>& values) {
    return {values.begin(), values.end()};
  }
  void AddScales(RawCheckpoint& raw, const std::string& name, const std::string& dtype,
                 const std::vector<uint64_t>& shape) const {
    std::vector<uint16_t> bits;
    for (const float scale : scales) bits.push_back(dtype == "F16" ? Half(scale) : Bf16(scale));
    if (dtype == "F32") {
      raw.Add(name, "F32", shape, scales);
    } else {
      raw.Add(name, dtype.c_str(), shape, bits);
    }
  }
};

class CompressedTensorsTest : public PackedCheckpointTest {
 protected:
  SignedWeight Weight(uint32_t bits, uint64_t group, bool zero_points) {
    SignedWeight weight = {.rows = 21, .cols = 256, .group = group};
    const int half = 1 << (bits - 1);
    const auto draw = [&] { return static_cast<int>(random_.Next() % (2u << (bits - 1))) - half; };
    for (uint64_t i = 0; i < weight.rows * weight.cols; ++i) weight.codes.push_back(draw());
    for (uint64_t i = 0; i < weight.rows * weight.groups(); ++i) {
      weight.zeros.push_back(zero_points ? draw() : 0);
      weight.scales.push_back(Scale());
    }
    for (uint64_t c = 0; c < weight.cols; ++c) {
      weight.group_of.push_back(static_cast<int32_t>(c / group));
    }
    return weight;
  }
  void Expect(RawCheckpoint& raw, const SignedWeight& weight, SourceType type, bool blocks = true) {
    const auto checkpoint = MustOpen(raw, R"({"quant_method":"compressed-tensors"})");
    EXPECT_EQ(checkpoint->tensors().size(), 1u);
    ExpectWeight(*checkpoint, "a.weight", type, weight.rows, weight.cols, blocks,
                 [&](uint64_t r, uint64_t c) { return weight.Value(r, c); });
  }
  static void AddPacked(RawCheckpoint& raw, const SignedWeight& weight, uint32_t bits) {
    raw.Add("a.weight_packed", "I32", {weight.rows, weight.cols * bits / 32},
            SignedWeight::Packed(weight.codes, weight.rows, weight.cols, bits, false));
    raw.Add("a.weight_shape", "I64", {2},
            std::vector<int64_t>{static_cast<int64_t>(weight.rows),
                                 static_cast<int64_t>(weight.cols)});
  }
};

TEST_F(CompressedTensorsTest, PackedIntegersWithZeroPoints) {
  for (const uint32_t bits : {4u, 8u}) {
    for (const uint64_t group : {32u, 128u, 256u}) {
      for (const char* scales : {"BF16", "F16", "F32"}) {
        const SignedWeight weight = Weight(bits, group, true);
        RawCheckpoint raw;
        AddPacked(raw, weight, bits);
        weight.AddScales(raw, "a.weight_scale", scales, {weight.rows, weight.groups()});
        raw.Add("a.weight_zero_point", "I32", {(weight.rows * bits + 31) / 32, weight.groups()},
                SignedWeight::Packed(weight.zeros, weight.rows, weight.groups(), bits, true));
        // Nine bits have no blocks.
        Expect(raw, weight, bits == 4 ? SourceType::kInt8 : SourceType::kInt8Asymmetric, bits == 4);
      }
    }
  }
}

TEST_F(CompressedTensorsTest, EightBitsPackedOrInBytes) {
  for (const uint64_t group : {32u, 256u}) {
    const SignedWeight weight = Weight(8, group, false);
    const std::vector<uint64_t> shape = {weight.rows, weight.groups()};
    RawCheckpoint packed, bytes, column;
    AddPacked(packed, weight, 8);
    weight.AddScales(packed, "a.weight_scale", "BF16", shape);
    Expect(packed, weight, SourceType::kInt8);
    bytes.Add("a.weight", "I8", {weight.rows, weight.cols}, SignedWeight::Bytes(weight.codes));
    weight.AddScales(bytes, "a.weight_scale", "F32", shape);
    bytes.Add("a.input_zero_point", "I8", {1}, std::vector<int8_t>(1));
    Expect(bytes, weight, SourceType::kInt8);
    if (group != 256) continue;
    column.Add("a.weight", "I8", {weight.rows, weight.cols}, SignedWeight::Bytes(weight.codes));
    weight.AddScales(column, "a.weight_scale", "F16", {weight.rows});
    Expect(column, weight, SourceType::kInt8);
  }
}

TEST_F(CompressedTensorsTest, ZeroPointsInBytesAndOneScale) {
  SignedWeight weight = Weight(8, 64, true);
  RawCheckpoint raw, one;
  raw.Add("a.weight", "I8", {weight.rows, weight.cols}, SignedWeight::Bytes(weight.codes));
  weight.AddScales(raw, "a.weight_scale", "BF16", {weight.rows, weight.groups()});
  raw.Add("a.weight_zero_point", "I8", {weight.rows, weight.groups()},
          SignedWeight::Bytes(weight.zeros));
  Expect(raw, weight, SourceType::kInt8Asymmetric, false);
  weight = Weight(4, 256, false);
  std::ranges::fill(weight.scales, weight.scales[0]);
  AddPacked(one, weight, 4);
  one.Add("a.weight_scale", "BF16", {1}, std::vector<uint16_t>{Bf16(weight.scales[0])});
  Expect(one, weight, SourceType::kInt8);
}

TEST_F(CompressedTensorsTest, ColumnsInAnotherOrderOfGroups) {
  for (const uint32_t bits : {4u, 8u}) {
    for (const bool there_is_one : {true, false}) {
      SignedWeight weight = Weight(bits, 128, false);
      std::vector<int32_t> index(weight.cols, -1);
      if (there_is_one) {
        for (uint64_t c = 0; c < weight.cols; ++c) {
          index[c] = weight.group_of[c] = static_cast<int32_t>(c * 5 % 2);
        }
      }
      RawCheckpoint raw;
      AddPacked(raw, weight, bits);
      weight.AddScales(raw, "a.weight_scale", "BF16", {weight.rows, weight.groups()});
      raw.Add("a.weight_g_idx", "I32", {weight.cols}, index);
      Expect(raw, weight, bits == 4 ? SourceType::kInt4Unordered : SourceType::kInt8Unordered,
             false);
    }
  }
}

TEST_F(CompressedTensorsTest, FourBitFloats) {
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  constexpr uint64_t kRows = 9, kCols = 96;
  const std::vector<uint8_t> codes = Codes(kRows * kCols, 16), mx_scales = Codes(kRows * 3, 250);
  std::vector<uint8_t> pairs, scales = Codes(kRows * kCols / 16, 127);
  for (size_t i = 0; i < codes.size(); i += 2) {
    pairs.push_back(static_cast<uint8_t>(codes[i] | codes[i + 1] << 4));
  }
  RawCheckpoint raw;
  raw.Add("m.weight_packed", "U8", {kRows, kCols / 2}, pairs);
  raw.Add("m.weight_scale", "U8", {kRows, kCols / 32}, mx_scales);
  raw.Add("n.weight_packed", "U8", {kRows, kCols / 2}, pairs);
  raw.Add("n.weight_scale", "F8_E4M3", {kRows, kCols / 16}, scales);
  raw.Add("n.weight_global_scale", "F32", {1}, std::vector<float>{96.0f});
  raw.Add("n.input_global_scale", "F32", {1}, std::vector<float>{3.0f});
  raw.Add("o.weight", "U8", {kRows, kCols / 2}, pairs);
  raw.Add("o.weight_scale", "F8_E4M3", {kRows, kCols / 16}, scales);
  raw.Add("o.weight_scale_2", "F32", {}, std::vector<float>{0.0123f});
  const auto checkpoint = MustOpen(raw);
  EXPECT_EQ(checkpoint->tensors().size(), 3u);
  const auto value = [&](uint64_t r, uint64_t c) { return kValues[codes[r * kCols + c]]; };
  ExpectWeight(*checkpoint, "m.weight", SourceType::kMxfp4, kRows, kCols, true,
               [&](uint64_t r, uint64_t c) {
                 return value(r, c) * std::ldexp(1.0f, mx_scales[(r * kCols + c) / 32] - 127);
               });
  ExpectWeight(*checkpoint, "n.weight", SourceType::kNvfp4, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) {
                 return value(r, c) * E4M3(scales[(r * kCols + c) / 16]) / 96.0f;
               });
  ExpectWeight(*checkpoint, "o.weight", SourceType::kNvfp4, kRows, kCols, false,
               [&](uint64_t r, uint64_t c) {
                 return value(r, c) * E4M3(scales[(r * kCols + c) / 16]) * 0.0123f;
               });
}

TEST_F(CompressedTensorsTest, OtherBitsShapesAndDoublesAreRefused) {
  // What is in words of 32 bits, and what is said of it.
  const auto refused = [](const auto& add) {
    RawCheckpoint raw;
    raw.Add("a.weight_packed", "I32", {8, 8}, std::vector<int32_t>(64));
    add(raw);
    return raw.Open().status();
  };
  const auto scales = [](RawCheckpoint& raw, uint64_t rows, uint64_t groups) {
    raw.Add("a.weight_scale", "BF16", {rows, groups}, std::vector<uint16_t>(rows * groups));
  };
  const Status bits = refused([&](RawCheckpoint& raw) {
    scales(raw, 8, 2);
    raw.Add("a.weight_shape", "I64", {2}, std::vector<int64_t>{8, 128});
  });
  EXPECT_EQ(bits.code(), StatusCode::kUnsupported);
  EXPECT_THAT(bits.message(), HasSubstr("'a.weight_shape' says [8, 128], expected [8, 64] of 4 bits "
                                        "a weight or [8, 32] of 8 in the packed words"));
  EXPECT_THAT(refused([&](RawCheckpoint& raw) { scales(raw, 8, 4); }).message(),
              HasSubstr("'a.weight_scale' is [8, 4], expected [8, groups] with groups of a multiple "
                        "of 32 of the 64 columns"));
  EXPECT_THAT(refused([&](RawCheckpoint& raw) { scales(raw, 6, 2); }).message(),
              HasSubstr("'a.weight_scale' is BF16 [6, 2], expected BF16, F16 or F32 [8, 2]"));
  EXPECT_THAT(refused([&](RawCheckpoint& raw) {
                scales(raw, 8, 2);
                raw.Add("a.weight_zero_point", "I32", {2, 2}, std::vector<int32_t>(4));
                raw.Add("a.weight_g_idx", "I32", {63}, std::vector<int32_t>(63));
              }).message(),
              AllOf(HasSubstr("'a.weight_zero_point' is I32 [2, 2], expected I32 or I8 [1, 2]"),
                    HasSubstr("'a.weight_g_idx' is I32 [63], expected I32 [64]")));
  RawCheckpoint nvfp4;
  nvfp4.Add("a.weight_packed", "U8", {4, 16}, std::vector<uint8_t>(64));
  nvfp4.Add("a.weight_scale", "F8_E4M3", {4, 2}, std::vector<uint8_t>(8));
  EXPECT_THAT(nvfp4.Open().status().message(), HasSubstr("'a.weight_scale_2' is missing"));
  RawCheckpoint twice;
  twice.Add("a.weight_packed", "I32", {2, 8}, std::vector<int32_t>(16));
  twice.Add("a.weight_scale", "BF16", {2, 2}, std::vector<uint16_t>(4));
  twice.Add("a.weight", "BF16", {2, 64}, std::vector<uint16_t>(128));
  EXPECT_THAT(twice.Open().status().message(), HasSubstr("both packed and plain"));
}

}  // namespace
}  // namespace moraine
