#include <gmock/gmock.h>

#include <bit>
#include <cmath>

#include "store_test_support.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Status ParseError(const std::string& header, uint64_t data_bytes) {
  return ParseSafetensorsHeader(header, data_bytes, "f.safetensors").status();
}

TEST(SafetensorsHeader, ReadsTypesShapesAndOffsets) {
  const auto tensors = ParseSafetensorsHeader(
      "{\"__metadata__\":{\"format\":\"pt\"}," + TensorEntry("a", "BF16", "[2,3]", 0, 12) + "," +
          TensorEntry("b", "F32", "[]", 12, 16) + "," + TensorEntry("c", "F16", "[0]", 16, 16) + "}",
      16, "f.safetensors");
  ASSERT_TRUE(tensors.ok()) << tensors.status().ToString();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].ShapeText(), "[2, 3]");
  EXPECT_EQ((*tensors)[0].type, SourceType::kBf16);
  EXPECT_EQ((*tensors)[1].element_count(), 1u);
  EXPECT_EQ((*tensors)[1].offset, 12u);
  EXPECT_EQ((*tensors)[2].bytes, 0u);
}

TEST(SafetensorsHeader, NamesTensorFoundAndExpectedDtype) {
  const Status status = ParseError("{" + TensorEntry("x.weight", "I16", "[1]", 0, 2) + "}", 8);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("f.safetensors"), HasSubstr("x.weight"),
                                      HasSubstr("I16"), HasSubstr("F32, F16, BF16, F8_E4M3")));
}

TEST(SafetensorsHeader, RefusesOffsetsOutsideTheFile) {
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F32", "[2]", 8, 16) + "}", 12).message(),
              AllOf(HasSubstr("'a'"), HasSubstr("[8, 16]"), HasSubstr("12 data bytes")));
  EXPECT_EQ(ParseError("{" + TensorEntry("a", "F32", "[2]", 16, 8) + "}", 16).code(),
            StatusCode::kCorruption);
}

TEST(SafetensorsHeader, RefusesOverlappingTensors) {
  const Status status = ParseError("{" + TensorEntry("a", "F32", "[2]", 0, 8) + "," +
                                       TensorEntry("b", "F32", "[1]", 4, 8) + "}",
                                   16);
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("'a' and 'b' overlap")));
}

TEST(SafetensorsHeader, RefusesShapesThatDoNotFitTheirBytesOrOverflow) {
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F32", "[3]", 0, 8) + "}", 8).message(),
              AllOf(HasSubstr("[3] of F32"), HasSubstr("8 bytes")));
  const std::string huge = "[4294967296,4294967296,4294967296]";
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F32", huge, 0, 8) + "}", 8).message(),
              HasSubstr("overflows"));
  // 2^63 elements of two bytes are 2^64 bytes, which is 0.
  const std::string wraps = "[9223372036854775808]";
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F16", wraps, 0, 0) + "}", 8).message(),
              HasSubstr("does not fit"));
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) + "}", 4)
                  .message(),
              HasSubstr("dimensions"));
}

TEST(SafetensorsHeader, RefusesDuplicateNames) {
  EXPECT_THAT(ParseError("{" + TensorEntry("a", "F32", "[1]", 0, 4) + "," +
                             TensorEntry("a", "F32", "[1]", 4, 8) + "}",
                         8)
                  .message(),
              HasSubstr("'a' is there twice"));
}

TEST(SafetensorsHeader, RefusesWhatIsNotAHeader) {
  for (const char* header :
       {"", "[]", "{", "{\"a\":1}", "{\"a\":{}}", "{\"a\":{\"dtype\":\"F32\"}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}"}) {
    EXPECT_EQ(ParseError(header, 8).code(), StatusCode::kCorruption) << header;
  }
}

TEST(SafetensorsHeader, ReportsAnAbsurdHeaderLengthWithoutAllocatingIt) {
  TempDirectory directory;
  const uint64_t absurd = 1ull << 62;
  WriteText(directory / "model.safetensors",
            std::string(reinterpret_cast<const char*>(&absurd), 8) + "{}");
  const auto checkpoint = OpenSafetensors(directory.path());
  EXPECT_EQ(checkpoint.status().code(), StatusCode::kCorruption);
  EXPECT_THAT(checkpoint.status().message(),
              AllOf(HasSubstr("model.safetensors"), HasSubstr(std::to_string(absurd))));
  WriteText(directory / "model.safetensors", "abc");
  EXPECT_THAT(OpenSafetensors(directory.path()).status().message(), HasSubstr("too short"));
}

TEST(SafetensorsCheckpoint, ConvertsEveryHalfAndBrainFloatExactly) {
  TempDirectory directory;
  std::string data;
  for (int copy = 0; copy < 2; ++copy) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      data += static_cast<char>(bits & 0xFF);
      data += static_cast<char>(bits >> 8);
    }
  }
  WriteText(directory / "model.safetensors",
            SafetensorsBytes("{" + TensorEntry("half", "F16", "[65536]", 0, 131072) + "," +
                                 TensorEntry("brain", "BF16", "[256,256]", 131072, 262144) + "}",
                             data));
  const auto checkpoint = MustOpen(directory.path());
  std::vector<float> half(65536), brain(65536);
  ASSERT_TRUE(checkpoint->ReadFloats(*checkpoint->Find("half"), 0, half).ok());
  ASSERT_TRUE(checkpoint->ReadFloats(*checkpoint->Find("brain"), 0, brain).ok());
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    EXPECT_EQ(std::bit_cast<uint32_t>(brain[bits]), bits << 16);
    // IEEE 754 binary16: sign, 5 bits of exponent, 10 of mantissa.
    const int exponent = bits >> 10 & 31;
    const double mantissa = bits & 1023;
    const double sign = bits >> 15 ? -1 : 1;
    if (exponent == 31) {
      EXPECT_EQ(std::isinf(half[bits]), mantissa == 0);
      EXPECT_EQ(std::isnan(half[bits]), mantissa != 0);
      continue;
    }
    const double expected = exponent == 0 ? std::ldexp(mantissa, -24)
                                          : std::ldexp(1024 + mantissa, exponent - 25);
    EXPECT_EQ(half[bits], static_cast<float>(sign * expected)) << bits;
    EXPECT_EQ(std::signbit(half[bits]), sign < 0);
  }
  std::vector<float> part(10);
  ASSERT_TRUE(checkpoint->ReadFloats(*checkpoint->Find("brain"), 300, part).ok());
  EXPECT_EQ(part, std::vector<float>(brain.begin() + 300, brain.begin() + 310));
}

class ShardedCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override { WriteShardedCheckpoint(directory_.path(), {}); }
  Status OpenError() { return OpenSafetensors(directory_.path()).status(); }
  std::string index_path() const { return directory_ / "model.safetensors.index.json"; }
  TempDirectory directory_;
};

TEST_F(ShardedCheckpoint, FindsTensorsInAllShards) {
  const auto checkpoint = MustOpen(directory_.path());
  EXPECT_EQ(checkpoint->tensors().size(), 3u * 8 + 2);
  const SourceTensor* tensor = checkpoint->Find("layers.2.experts.7");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(checkpoint->FileOf(*tensor), directory_ / "model-2.safetensors");
  EXPECT_EQ(checkpoint->Find("layers.3.experts.0"), nullptr);
  EXPECT_EQ(checkpoint->ReadFile("nothing.json"), std::nullopt);
  EXPECT_TRUE(checkpoint->ReadFile("model.safetensors.index.json").has_value());
}

TEST_F(ShardedCheckpoint, NamesAMissingShard) {
  std::filesystem::remove(directory_ / "model-1.safetensors");
  EXPECT_EQ(OpenError().code(), StatusCode::kNotFound);
  EXPECT_THAT(OpenError().message(), AllOf(HasSubstr("model-1.safetensors"), HasSubstr("shard")));
}

TEST_F(ShardedCheckpoint, NamesATensorThatTheIndexPromisesInVain) {
  WriteText(index_path(), "{\"weight_map\":{\"embed\":\"model-0.safetensors\","
                          "\"norm\":\"model-3.safetensors\"}}");
  EXPECT_EQ(OpenError().code(), StatusCode::kCorruption);
  EXPECT_THAT(OpenError().message(),
              AllOf(HasSubstr("model-0.safetensors"), HasSubstr("'embed'")));
}

TEST_F(ShardedCheckpoint, RefusesATensorThatIsInTwoShards) {
  std::filesystem::copy(directory_ / "model-1.safetensors", directory_ / "model-9.safetensors");
  WriteText(index_path(),
            "{\"weight_map\":{\"layers.1.experts.0\":\"model-1.safetensors\","
            "\"layers.1.experts.1\":\"model-9.safetensors\"}}");
  EXPECT_THAT(OpenError().message(), AllOf(HasSubstr("layers.1.experts.0"), HasSubstr("also in")));
}

TEST_F(ShardedCheckpoint, RefusesAnIndexThatLeavesTheDirectory) {
  WriteText(index_path(), "{\"weight_map\":{\"embed\":\"../model-3.safetensors\"}}");
  EXPECT_THAT(OpenError().message(), HasSubstr("without a directory"));
  WriteText(index_path(), "{\"weight_map\":{}}");
  EXPECT_THAT(OpenError().message(), HasSubstr("weight_map"));
  WriteText(index_path(), "{\"weight_map\":{\"a\":\"b\",\"a\":\"c\"}}");
  EXPECT_THAT(OpenError().message(), HasSubstr("twice"));
}

TEST_F(ShardedCheckpoint, SaysWhatItLookedForInAnEmptyDirectory) {
  TempDirectory empty;
  EXPECT_EQ(OpenSafetensors(empty.path()).status().code(), StatusCode::kNotFound);
  EXPECT_THAT(OpenSafetensors(empty.path()).status().message(), HasSubstr("model.safetensors"));
  EXPECT_THAT(OpenSafetensors(empty / "nowhere").status().message(), HasSubstr("no such"));
}

TEST_F(ShardedCheckpoint, IsDescribedByItsDirectorysName) {
  std::filesystem::create_directory_symlink(directory_.path(), directory_ / "Model-3B");
  for (const char* spelling : {"Model-3B", "Model-3B/", "./Model-3B//"}) {
    EXPECT_EQ(MustOpen(directory_ / spelling)->identity().description, "Model-3B") << spelling;
  }
}

TEST_F(ShardedCheckpoint, FingerprintChangesWithContentsTimesAndNames) {
  const uint64_t before = MustOpen(directory_.path())->identity().fingerprint;
  EXPECT_EQ(MustOpen(directory_.path())->identity().fingerprint, before);
  const std::string shard = directory_ / "model-0.safetensors";
  std::filesystem::last_write_time(
      shard, std::filesystem::last_write_time(shard) + std::chrono::seconds(1));
  EXPECT_NE(MustOpen(directory_.path())->identity().fingerprint, before);
}

TEST_F(ShardedCheckpoint, AFileThatShrinksAfterOpeningIsACorruption) {
  const auto checkpoint = MustOpen(directory_.path());
  const SourceTensor* tensor = checkpoint->Find("layers.0.experts.7");
  ASSERT_NE(tensor, nullptr);
  std::filesystem::resize_file(directory_ / "model-0.safetensors", tensor->offset + 100);
  std::vector<float> floats(tensor->element_count());
  const Status status = checkpoint->ReadFloats(*tensor, 0, floats);
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("layers.0.experts.7"), HasSubstr("model-0.safetensors"),
                    HasSubstr("expected 12000"), HasSubstr("found 100")));
}

TEST(SafetensorsCheckpoint, OpensTheBundledModel) {
  const auto checkpoint = OpenSafetensors(MORAINE_SOURCE_DIR "/models/demo");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  EXPECT_NE((*checkpoint)->Find("model.embed_tokens.weight"), nullptr);
}

}  // namespace
}  // namespace moraine
