// GGUF headers and files: what is accepted means what the specification says, everything else is
// refused by name, and nothing is allocated for what a file cannot hold.
#include "store/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "store_test_support.h"

namespace moraine {
namespace {

using testing::AllOf;
using testing::HasSubstr;

enum Type : uint32_t {
  kU16 = 2, kU32 = 4, kF32 = 6, kBool = 7, kString = 8, kArray = 9, kU64 = 10
};
enum Ggml : uint32_t { kGgmlF32 = 0, kGgmlQ4_0 = 2, kGgmlQ8_0 = 8, kGgmlIq2Xxs = 16 };

template <typename T>
std::string Bytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}
std::string Text(const std::string& text) { return Bytes<uint64_t>(text.size()) + text; }
std::string Key(const std::string& name, uint32_t type, const std::string& value) {
  return Text(name) + Bytes(type) + value;
}
std::string Info(const std::string& name, const std::vector<uint64_t>& dimensions, uint32_t type,
                 uint64_t offset) {
  std::string info = Text(name) + Bytes(static_cast<uint32_t>(dimensions.size()));
  for (const uint64_t dimension : dimensions) info += Bytes(dimension);
  return info + Bytes(type) + Bytes(offset);
}

// A file of which a test changes one part.
struct TestFile {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> keys, infos;
  std::optional<uint64_t> key_count, tensor_count;  // default: what there is
  uint64_t alignment = 32;
  std::string data;

  std::string Contents() const {
    std::string file = magic + Bytes(version) + Bytes(tensor_count.value_or(infos.size())) +
                       Bytes(key_count.value_or(keys.size()));
    for (const std::string& key : keys) file += key;
    for (const std::string& info : infos) file += info;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
  }
  Status Error() const {
    const std::string contents = Contents();
    const auto header = ParseGgufHeader(std::as_bytes(std::span(contents)), contents.size(), "f");
    CHECK(!header.ok() || header->has_value(), "all bytes were given");
    return header.status();
  }
};

// Scale 0.5 and codes that differ in every place.
std::string Q4Block() {
  std::string block = Bytes<uint16_t>(0x3800);
  for (int i = 0; i < 16; ++i) block += static_cast<char>(i | (15 - i) << 4);
  return block;
}
std::string Q8Block() {
  std::string block = Bytes<uint16_t>(0xC000);  // -2
  for (int i = 0; i < 32; ++i) block += static_cast<char>(i * 8 - 128);
  return block;
}

TestFile MakeFile() {
  TestFile file;
  file.keys = {Key("general.architecture", kString, Text("say \"hi\"\n")),
               Key("a.count", kU32, Bytes<uint32_t>(7)), Key("a.rate", kF32, Bytes(0.1f)),
               Key("a.flag", kBool, Bytes<uint8_t>(1)),
               Key("a.words", kArray,
                   Bytes<uint32_t>(kString) + Bytes<uint64_t>(2) + Text("x") + Text("")),
               Key("a.large", kU64, Bytes<uint64_t>(UINT64_MAX))};
  file.infos = {Info("vector", {3}, kGgmlF32, 0), Info("q4", {32, 2}, kGgmlQ4_0, 32),
                Info("q8", {32, 1, 2}, kGgmlQ8_0, 96)};
  file.data = Bytes(std::array<float, 3>{1, -2, 0.5f});
  file.data.resize(32);
  file.data += Q4Block() + Q4Block();
  file.data.resize(96);
  file.data += Q8Block() + Q8Block();
  return file;
}

TEST(GgufCheckpoint, ReadsMetadataShapesFloatsAndBlocks) {
  for (const uint32_t version : {2u, 3u}) {
    TempDirectory directory;
    TestFile file = MakeFile();
    file.version = version;
    WriteText(directory / "a.gguf", file.Contents());
    const auto opened = OpenCheckpoint(directory / "a.gguf");
    ASSERT_TRUE(opened.ok()) << opened.status().ToString();
    const Checkpoint& checkpoint = **opened;
    EXPECT_EQ(checkpoint.identity().format, "gguf");
    EXPECT_EQ(checkpoint.identity().description, "a.gguf");
    EXPECT_EQ(checkpoint.ReadFile("config.json"), std::nullopt);
    const auto metadata = nlohmann::json::parse(*checkpoint.ReadFile(kGgufMetadataName));
    EXPECT_EQ(metadata["general.architecture"], "say \"hi\"\n");
    EXPECT_EQ(metadata["a.count"], 7);
    EXPECT_EQ(metadata["a.rate"].get<float>(), 0.1f);
    EXPECT_EQ(metadata["a.flag"], true);
    EXPECT_EQ(metadata["a.words"], nlohmann::json({"x", ""}));
    EXPECT_EQ(metadata["a.large"], UINT64_MAX);

    const SourceTensor* q8 = checkpoint.Find("q8");
    ASSERT_NE(q8, nullptr);
    EXPECT_EQ(q8->ShapeText(), "[2, 1, 32]");  // outermost first
    std::vector<float> floats(32);
    ASSERT_TRUE(checkpoint.ReadFloats(*q8, 32, floats).ok());
    for (int i = 0; i < 32; ++i) EXPECT_EQ(floats[i], static_cast<float>((i * 8 - 128) * -2));
    const SourceTensor* q4 = checkpoint.Find("q4");
    ASSERT_TRUE(checkpoint.ReadFloats(*q4, 0, floats).ok());
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(floats[i], static_cast<float>(i - 8) * 0.5f);
      EXPECT_EQ(floats[16 + i], static_cast<float>(7 - i) * 0.5f);
    }
    std::string block(18, '\0');
    ASSERT_TRUE(checkpoint.ReadBlocks(*q4, 32, std::as_writable_bytes(std::span(block))).ok());
    EXPECT_EQ(block, Q4Block());
  }
}

TEST(GgufHeader, EveryTruncationIsRefusedAndAShortBeginningAsksForMore) {
  const std::string contents = MakeFile().Contents();
  const auto bytes = std::as_bytes(std::span(contents));
  const auto whole = ParseGgufHeader(bytes, bytes.size(), "f");
  ASSERT_TRUE(whole.ok());
  const uint64_t header_bytes = (*whole)->header_bytes;
  for (size_t size = 0; size < contents.size(); ++size) {
    const auto cut = ParseGgufHeader(bytes.first(size), size, "f");
    EXPECT_EQ(cut.status().code(), StatusCode::kCorruption) << size;
    const auto more = ParseGgufHeader(bytes.first(size), bytes.size(), "f");
    ASSERT_TRUE(more.ok()) << size << more.status().ToString();
    EXPECT_EQ(more->has_value(), size >= header_bytes) << size;
  }
}

// Any one byte of the header set to something else: an error or another sound header, never a
// tensor outside the file.
TEST(GgufHeader, ChangedBytesNeverLeadOutOfTheFile) {
  const std::string sound = MakeFile().Contents();
  for (size_t at = 0; at < sound.size() - 68; ++at) {
    for (const int value : {0x00, 0x01, 0x7F, 0x80, 0xFF}) {
      std::string contents = sound;
      contents[at] = static_cast<char>(value);
      const auto header = ParseGgufHeader(std::as_bytes(std::span(contents)), contents.size(), "f");
      if (!header.ok()) continue;
      for (const SourceTensor& tensor : (*header)->tensors) {
        EXPECT_LE(tensor.offset, contents.size());
        EXPECT_LE(tensor.bytes, contents.size() - tensor.offset);
        EXPECT_EQ(SourceBytes(tensor.type, tensor.element_count()), tensor.bytes);
      }
    }
  }
}

TEST(GgufHeader, AbsurdCountsAreRefusedBeforeAnythingIsAllocated) {
  for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 40, UINT64_MAX}) {
    TestFile file = MakeFile();
    file.tensor_count = count;
    EXPECT_THAT(file.Error().message(), AllOf(HasSubstr("tensor count is"), HasSubstr("at most")));
    file = MakeFile();
    file.key_count = count;
    EXPECT_THAT(file.Error().message(), AllOf(HasSubstr("key count is"), HasSubstr("at most")));
    file = MakeFile();
    file.keys = {Key("a", kArray, Bytes<uint32_t>(kString) + Bytes(count))};
    EXPECT_THAT(file.Error().message(), HasSubstr("metadata key 'a': array length is"));
    file.keys = {Key("a", kString, Bytes(count))};
    EXPECT_EQ(file.Error().code(), StatusCode::kCorruption);
    file = MakeFile();
    file.infos[0] = Info("vector", {count, count}, kGgmlF32, 0);
    EXPECT_THAT(file.Error().message(), HasSubstr("tensor 'vector'"));
  }
  TestFile nested = MakeFile();
  std::string value = Bytes<uint32_t>(kU32) + Bytes<uint64_t>(0);
  for (int i = 0; i < 1000; ++i) value = Bytes<uint32_t>(kArray) + Bytes<uint64_t>(1) + value;
  nested.keys = {Key("a", kArray, value)};
  EXPECT_THAT(nested.Error().message(), HasSubstr("nested deeper than 4"));
}

TEST(GgufHeader, ErrorsNameFieldFoundAndExpected) {
  const auto expect = [](const TestFile& file, StatusCode code, const char* message) {
    const Status status = file.Error();
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), AllOf(HasSubstr("f: "), HasSubstr(message)));
  };
  const auto with_key = [](std::string key) {
    TestFile file = MakeFile();
    file.keys.push_back(std::move(key));
    return file;
  };
  const auto with_info = [](std::string info) {
    TestFile file = MakeFile();
    file.infos[0] = std::move(info);
    return file;
  };
  TestFile file = MakeFile();
  file.magic = "PK\3\4";
  expect(file, StatusCode::kCorruption, "begins with 'PK..', expected 'GGUF'");
  file = MakeFile();
  file.version = 1;
  expect(file, StatusCode::kUnsupported, "version is 1, read are 2 and 3");
  file.version = 3u << 24;
  expect(file, StatusCode::kUnsupported, "big-endian");
  expect(with_key(Key("a.count", kU32, Bytes<uint32_t>(8))), StatusCode::kCorruption,
         "metadata key 'a.count' is there twice");
  expect(with_key(Key("b", 13, "")), StatusCode::kCorruption,
         "metadata key 'b': type is 13, expected 0 to 12");
  expect(with_key(Key("b", kBool, "\2")), StatusCode::kCorruption, "'b' is 2, expected a bool");
  expect(with_key(Key("b", kString, Text("\xFF"))), StatusCode::kCorruption, "is not UTF-8");
  expect(with_key(Key("general.alignment", kU32, Bytes<uint32_t>(12))), StatusCode::kCorruption,
         "'general.alignment' is 12, expected a multiple of 8");
  expect(with_key(Key("general.alignment", kString, Text("32"))), StatusCode::kCorruption,
         "'general.alignment' is no unsigned integer, expected an integer from 8");
  expect(with_info(Info("q4", {3}, kGgmlF32, 0)), StatusCode::kCorruption,
         "tensor 'q4' is there twice");
  expect(with_info(Info("v", {}, kGgmlF32, 0)), StatusCode::kCorruption,
         "dimension count is 0, expected 1 to 4");
  expect(with_info(Info("v", {3, 0}, kGgmlF32, 0)), StatusCode::kCorruption, "dimension 1 is 0");
  expect(with_info(Info("v", {48}, kGgmlQ4_0, 0)), StatusCode::kCorruption,
         "tensor 'v' is Q4_0 [48]: rows of a multiple of 32 expected");
  expect(with_info(Info("v", {3}, kGgmlF32, 4)), StatusCode::kCorruption,
         "tensor 'v': offset is 4, expected a multiple of the alignment, 32");
  expect(with_info(Info("v", {3}, kGgmlF32, 1024)), StatusCode::kCorruption, "but the file has");
  expect(with_info(Info("v", {3}, kGgmlF32, UINT64_MAX - 31)), StatusCode::kCorruption,
         "but the file has");
  expect(with_info(Info("v", {3}, kGgmlF32, 32)), StatusCode::kCorruption, "overlap");
  expect(with_info(Info(std::string(65, 'v'), {3}, kGgmlF32, 0)), StatusCode::kCorruption,
         "string length is 65, expected at most 64");
  expect(with_info(Info("v", {256}, kGgmlIq2Xxs, 0)), StatusCode::kUnsupported,
         "IQ2_XXS (1 tensors, such as 'v'); read are F32, F16, BF16, Q4_0, Q4_1,");
  expect(with_info(Info("v", {256}, 99, 0)), StatusCode::kUnsupported, "type 99");
}

TEST(GgufHeader, AnotherAlignmentMovesTheData) {
  TestFile file = MakeFile();
  file.alignment = 8;
  file.keys.push_back(Key("general.alignment", kU32, Bytes<uint32_t>(8)));
  const std::string contents = file.Contents();
  const auto header = ParseGgufHeader(std::as_bytes(std::span(contents)), contents.size(), "f");
  ASSERT_TRUE(header.ok()) << header.status().ToString();
  const SourceTensor& vector = (*header)->tensors[0];
  EXPECT_EQ(contents.substr(vector.offset, 4), Bytes(1.0f));
}

class SplitGguf : public testing::Test {
 protected:
  void WritePart(uint16_t index, uint16_t count, uint32_t tensor_count = 2) {
    TestFile file;
    file.keys = {Key("split.no", kU16, Bytes(index)), Key("split.count", kU16, Bytes(count)),
                 Key("split.tensors.count", kU32, Bytes(tensor_count)),
                 Key("part", kU32, Bytes<uint32_t>(index))};
    file.infos = {Info("t" + std::to_string(index), {1}, kGgmlF32, 0)};
    file.data = Bytes(static_cast<float>(index));
    WriteText(Path(index), file.Contents());
  }
  std::string Path(int index) const {
    return directory_ / ("m-0000" + std::to_string(index + 1) + "-of-00002.gguf");
  }
  Status Error() const { return OpenGguf(Path(0)).status(); }
  TempDirectory directory_;
};

TEST_F(SplitGguf, IsOneCheckpointWithTheMetadataOfItsFirstPart) {
  WritePart(0, 2);
  WritePart(1, 2);
  const auto checkpoint = OpenGguf(Path(0));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  EXPECT_EQ(nlohmann::json::parse(*(*checkpoint)->ReadFile(kGgufMetadataName))["part"], 0);
  float value = 0;
  ASSERT_TRUE((*checkpoint)->ReadFloats(*(*checkpoint)->Find("t1"), 0, {&value, 1}).ok());
  EXPECT_EQ(value, 1);
  EXPECT_EQ((*checkpoint)->FileOf(*(*checkpoint)->Find("t1")), Path(1));
  EXPECT_THAT(OpenGguf(Path(1)).status().message(), HasSubstr("part 2 of 2: give the first part"));
}

TEST_F(SplitGguf, NamesWhatDoesNotFitTogether) {
  WritePart(0, 2);
  EXPECT_THAT(Error().message(), AllOf(HasSubstr("00002-of-00002"), HasSubstr("no such file")));
  WritePart(1, 3);
  EXPECT_THAT(Error().message(), HasSubstr("part 2 of 3, expected part 2 of 2"));
  WritePart(0, 2, 3);
  WritePart(1, 2, 3);
  EXPECT_THAT(Error().message(), HasSubstr("'split.tensors.count' is 3, but the 2 parts have 2"));
  std::filesystem::rename(Path(0), directory_ / "m.gguf");
  EXPECT_THAT(OpenGguf(directory_ / "m.gguf").status().message(),
              HasSubstr("expected to end in '-00001-of-00002.gguf'"));
}

TEST(GgufCheckpoint, AFileThatShrinksAfterOpeningIsACorruption) {
  TempDirectory directory;
  WriteText(directory / "a.gguf", MakeFile().Contents());
  const auto checkpoint = OpenGguf(directory / "a.gguf");
  ASSERT_TRUE(checkpoint.ok());
  const SourceTensor* q8 = (*checkpoint)->Find("q8");
  std::filesystem::resize_file(directory / "a.gguf", q8->offset + 10);
  std::vector<std::byte> blocks(q8->bytes);
  const Status status = (*checkpoint)->ReadBlocks(*q8, 0, blocks);
  EXPECT_EQ(status.code(), StatusCode::kCorruption);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("'q8'"), HasSubstr("found 10")));
}

}  // namespace
}  // namespace moraine
