// Lists without repetition against a validator that looks at every pair.
#include "model/constraint/unique_items.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "constraint_test_support.h"

namespace moraine {
namespace {

using Json = nlohmann::json;

bool Allows(const Json& schema, const Json& values, const std::string& text) {
  const Json list = Json::parse(text, nullptr, false);
  if (!list.is_array()) return false;
  if (list.size() < schema.value("minItems", size_t{0})) return false;
  if (list.size() > schema.value("maxItems", size_t{1000})) return false;
  for (size_t i = 0; i < list.size(); ++i) {
    if (std::find(values.begin(), values.end(), list[i]) == values.end()) return false;
    for (size_t j = 0; j < i; ++j) {
      if (list[i] == list[j]) return false;
    }
  }
  return true;
}

TEST(UniqueItemsTest, AgreesWithPairs) {
  int accepted = 0, refused = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    Json values = Json::array();
    for (size_t i = 0; i < 1 + random() % 7; ++i) {
      const Json candidates[] = {i, fmt::format("v{}", i), Json::array({i}), Json{{"k", i}}, nullptr};
      values.push_back(candidates[random() % std::size(candidates)]);
    }
    Json schema = {{"type", "array"}, {"uniqueItems", true}, {"items", {{"enum", values}}}};
    Json distinct = Json::array();
    for (const Json& value : values) {
      if (std::find(distinct.begin(), distinct.end(), value) == distinct.end()) distinct.push_back(value);
    }
    if (random() % 2 == 0) schema["minItems"] = random() % (distinct.size() + 1);
    if (random() % 2 == 0) schema["maxItems"] = schema.value("minItems", size_t{0}) + random() % 3;
    const auto grammar = GrammarOfSchema(schema.dump());
    for (int i = 0; i < 40; ++i) {
      Json list = Json::array();
      const size_t count = random() % (values.size() + 2);
      for (size_t k = 0; k < count; ++k) list.push_back(values[random() % values.size()]);
      const bool allowed = Allows(schema, values, list.dump());
      ASSERT_EQ(Matches(grammar, list.dump()), allowed) << list << " " << schema;
      ++(allowed ? accepted : refused);
      const std::string walked = RandomText(grammar, &random);
      ASSERT_TRUE(Allows(schema, values, walked)) << walked << " " << schema;
    }
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

struct Example {
  const char* schema;
  std::vector<const char*> accepted, refused;
};

TEST(UniqueItemsTest, Schemas) {
  const Example examples[] = {
      {R"({"type":"array","items":{"type":"boolean"},"uniqueItems":true})",
       {"[]", "[true]", "[false, true]"}, {"[true,true]", "[true,false,true]", "[1]"}},
      {R"({"items":{"type":["boolean","null"]},"uniqueItems":true,"minItems":3})",
       {"[null,true,false]"}, {"[true,false]", "[null,null,true]"}},
      // Equal as JSON, however they are spelled.
      {R"({"items":{"enum":[1,1.0,"a",{"x":1,"y":2},{"y":2,"x":1}]},"uniqueItems":true})",
       {"[1,\"a\"]", "[1.0]", "[{\"y\":2,\"x\":1},1]"},
       {"[1,1.0]", "[{\"x\":1,\"y\":2},{\"y\":2,\"x\":1}]"}},
      {R"({"$defs":{"c":{"enum":["r","g"]}},"type":"array","uniqueItems":true,)"
       R"("items":{"anyOf":[{"$ref":"#/$defs/c"},{"const":"b"}]}})",
       {"[\"b\",\"g\",\"r\"]"}, {"[\"b\",\"b\"]", "[\"x\"]"}},
      // Nothing to compare.
      {R"({"type":"array","items":{"type":"string"},"uniqueItems":true,"maxItems":1})",
       {"[]", "[\"a\"]"}, {"[\"a\",\"b\"]"}},
      {R"({"type":"array","items":{"type":"integer"},"uniqueItems":false})", {"[1,1]"}, {"[\"a\"]"}},
      {R"({"type":"string","uniqueItems":true})", {"\"a\""}, {"[]"}},
  };
  for (const Example& example : examples) {
    const auto grammar = GrammarOfSchema(example.schema);
    for (const char* text : example.accepted) EXPECT_TRUE(Matches(grammar, text)) << example.schema << " " << text;
    for (const char* text : example.refused) EXPECT_FALSE(Matches(grammar, text)) << example.schema << " " << text;
  }
}

TEST(UniqueItemsTest, TooManyAreRefusedByName) {
  const auto schema = [](uint32_t values, uint32_t max) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (uint32_t i = 0; i < values; ++i) list.push_back(fmt::format("value {}", i));
    return nlohmann::ordered_json{
        {"type", "array"}, {"items", {{"enum", list}}}, {"uniqueItems", true}, {"maxItems", max}};
  };
  EXPECT_TRUE(JsonGrammar().Schema(schema(12, 12), "s").ok());
  EXPECT_TRUE(JsonGrammar().Schema(schema(60, 2), "s").ok());
  for (const auto& [values, max] : {std::pair(20u, 20u), std::pair(65u, 2u)}) {
    const auto refused = JsonGrammar().Schema(schema(values, max), "s");
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), StatusCode::kUnsupported);
    EXPECT_EQ(refused.status().message(),
              fmt::format("s.uniqueItems: {} values in lists of up to {} need too large a grammar", values, max));
  }
}

}  // namespace
}  // namespace moraine
