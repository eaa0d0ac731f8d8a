#include <gmock/gmock.h>

#include "store/manifest.h"

namespace moraine {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Manifest Example() {
  Manifest manifest;
  manifest.store_uuid = "u";
  manifest.created_by = "moraine test";
  manifest.source = {"safetensors", "/models/x", 0xFEDCBA9876543210ull};
  manifest.model_config = "{\"a\": \"\\u00e4\"}";
  manifest.layers = {{}, {.expert_count = 4, .record_bytes = 8192, .gate_up_encoding = "q4",
                          .down_encoding = "q8", .hidden = 64, .intermediate = 32}};
  manifest.dense = {{.name = "embed", .encoding = "bf16", .rows = 3, .cols = 5, .offset = 4096,
                     .bytes = 30, .checksum = UINT64_MAX}};
  manifest.dense_pack_bytes = 8192;
  manifest.notes = {"a note"};
  manifest.files["tokenizer.json"] = "{}";
  return manifest;
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Manifest, SurvivesJson) {
  const auto parsed = Manifest::FromJson(Example().ToJson());
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(parsed->ToJson(), Example().ToJson());
  EXPECT_EQ(parsed->source.fingerprint, 0xFEDCBA9876543210ull);
  EXPECT_EQ(parsed->dense[0].checksum, UINT64_MAX);
  EXPECT_EQ(parsed->model_config, Example().model_config);
}

TEST(Manifest, CountsOnlyLayersWithExperts) {
  Manifest manifest = Example();
  manifest.layers[0].record_bytes = 1 << 20;
  EXPECT_EQ(manifest.expert_count(), 4u);
  EXPECT_EQ(manifest.expert_bytes(), 4u * 8192);
  EXPECT_EQ(manifest.max_record_bytes(), 8192u);
}

TEST(Manifest, NamesBothVersionsOfAnotherFormat) {
  const auto parsed = Manifest::FromJson(
      Replaced(Example().ToJson(), "\"format_version\":2", "\"format_version\":7"));
  EXPECT_EQ(parsed.status().code(), StatusCode::kUnsupported);
  EXPECT_THAT(parsed.status().message(), AllOf(HasSubstr("format 7"), HasSubstr("format 2")));
}

TEST(Manifest, NamesTheFieldThatIsMissingOrOfAnotherType) {
  const std::string json = Example().ToJson();
  const std::pair<std::string, std::string> changes[] = {
      {"\"rows\":3", "\"rows\":\"3\""},     {"\"cols\":5", "\"cols\":4294967296"},
      {"\"store_uuid\"", "\"store_uid\""},  {"\"record_bytes\":8192", "\"record_bytes\":-1"},
      {"\"checksum\":\"f", "\"checksum\":\"g"}, {"\"notes\":[", "\"notes\":[1,"},
      {"\"files\":{", "\"files\":{\"x\":1,"}, {"\"layers\":[{", "\"layers\":[3,{"}};
  const std::string fields[] = {"dense[0].rows", "dense[0].cols",     "store_uuid",
                                "layers[1].record_bytes", "dense[0].checksum", "notes",
                                "files.x",       "layers[0]."};
  for (size_t i = 0; i < std::size(changes); ++i) {
    const auto parsed = Manifest::FromJson(Replaced(json, changes[i].first, changes[i].second));
    EXPECT_EQ(parsed.status().code(), StatusCode::kCorruption);
    EXPECT_THAT(parsed.status().message(), HasSubstr(fields[i]));
  }
}

TEST(Manifest, RefusesTextThatIsNotJson) {
  for (const char* text : {"", "{", "[]", "null"}) {
    EXPECT_EQ(Manifest::FromJson(text).status().code(), StatusCode::kCorruption) << text;
  }
}

}  // namespace
}  // namespace moraine
