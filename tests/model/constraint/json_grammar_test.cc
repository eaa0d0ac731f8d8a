#include "model/constraint/json_grammar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "constraint_test_support.h"

namespace moraine {
namespace {

struct SchemaCase {
  std::string schema;
  std::vector<std::string> accepted, refused;
};

TEST(JsonGrammarTest, Schemas) {
  const SchemaCase cases[] = {
      {"{}",
       {"1", "-0.5e+7", "\"a\"", "[]", "[ 1, [true, null] ]", "{}", R"({"a":{"b": [ ]},"c":""})",
        "{\n  \"a\": 1\n}", R"("\ud83d\ude00\u00e9\n")", "\"é😀\""},
       {"", "01", "1.", ".5", "tru", "[1,]", "{,}", R"({"a" 1})", "'a'", "\"\n\"", R"("\x")",
        R"("\ud83d")", R"("\ude00\ud83d")", "\"\xc3\"", "\"\xed\xa0\x80\"", "[1]]", " 1", "1 ", "{\n\n}"}},
      {R"({"type":"object"})", {"{}", R"({"x":[1]})"}, {"[]", "1"}},
      {R"({"type":"string"})", {"\"\"", "\"a b\""}, {"a", "1", "\"a"}},
      {R"({"type":"integer"})", {"0", "-7", "123456"}, {"1.0", "007", "1e3", "-"}},
      {R"({"type":"number"})", {"0", "-7.25", "1e3"}, {"\"1\"", "1e", "+1"}},
      {R"({"type":"boolean"})", {"true", "false"}, {"null", "True"}},
      {R"({"type":["string","null"]})", {"\"a\"", "null"}, {"1"}},
      {R"({"enum":["a b","ü",1,null,{"x":[1]}]})",
       {"\"a b\"", "\"ü\"", "1", "null", R"({"x":[1]})"}, {"\"a\"", "2", "\"a b"}},
      {R"({"const":"x"})", {"\"x\""}, {"\"y\""}},
      {R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"}},)"
       R"("required":["a","b"],"additionalProperties":false})",
       {R"({"a":1,"b":""})", R"({ "a": 1, "b": "x" })", "{\n\t\"a\": 1,\n\t\"b\": \"\"\n}"},
       {R"({"a":1})", R"({"b":"","a":1})", R"({"a":1,"b":"","c":1})", R"({"a":"1","b":""})", "{}",
        R"({"a":1,,"b":""})"}},
      {R"({"type":"object","properties":{"a":{"type":"null"},"b":{"type":"null"},"c":{"type":"null"}},)"
       R"("required":["b"]})",
       {R"({"b":null})", R"({"a":null,"b":null})", R"({"b":null,"c":null})",
        R"({"a":null,"b":null,"c":null})"},
       {"{}", R"({"a":null})", R"({"c":null})", R"({"a":null,"c":null})", R"({"b":null,})",
        R"({,"b":null})", R"({"b":null,"b":null})", R"({"b":null,"d":null})"}},
      {R"({"type":"object","properties":{"a":{"type":"null"},"b":{"type":"null"}}})",
       {"{}", "{ }", R"({"a":null})", R"({"b":null})", R"({"a":null,"b":null})"},
       {R"({"b":null,"a":null})"}},
      {R"({"type":"object","properties":{"ab":{"type":"null"},"aé":{"type":"null"}},)"
       R"("additionalProperties":{"type":"integer"}})",
       {"{}", R"({"ab":null})", R"({"x":1})", R"({"ab":null,"a":1,"abc":2,"aè":3,"":4})", R"({"a":1,"x":2})"},
       {R"({"ab":1})", R"({"x":1,"ab":1})", R"({"aé":1})", R"({"x":null})", R"({"\u0061b":1})"}},
      {R"({"type":"object","additionalProperties":false})", {"{}"}, {R"({"a":1})"}},
      {R"({"type":"object","additionalProperties":{"type":"boolean"}})", {"{}", R"({"a":true,"b":false})"},
       {R"({"a":1})"}},
      {R"({"type":"array","items":{"type":"integer"}})", {"[]", "[1]", "[1, 2,3]", "[\n  1\n]"},
       {"[\"a\"]", "[1 2]", "[,1]"}},
      {R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4})",
       {"[1,2]", "[1,2,3]", "[1,2,3,4]"}, {"[]", "[1]", "[1,2,3,4,5]"}},
      {R"({"type":"array","minItems":1})", {"[1]", "[1,[],\"\"]"}, {"[]"}},
      {R"({"type":"array","maxItems":0})", {"[]", "[ ]"}, {"[1]"}},
      {R"({"type":"array","minItems":3})", {"[1,2,3]", "[1,2,3,4,5,6]"}, {"[1,2]"}},
      {R"({"prefixItems":[{"type":"string"},{"type":"integer"}],"items":false,"minItems":1})",
       {"[\"a\"]", "[\"a\",1]"}, {"[]", "[1]", "[\"a\",1,1]"}},
      {R"({"prefixItems":[{"type":"string"}],"items":{"type":"integer"},"maxItems":3})",
       {"[]", "[\"a\"]", "[\"a\",1,2]"}, {"[\"a\",1,2,3]", "[\"a\",\"b\"]"}},
      {R"({"type":"string","minLength":2,"maxLength":3})",
       {"\"ab\"", "\"äöü\"", R"("\n\"\u00e9")", R"("\ud83d\ude00x")"}, {"\"a\"", "\"abcd\"", "\"\""}},
      {R"({"type":"string","minLength":1})", {"\"a\"", "\"abcdefgh\""}, {"\"\""}},
      {R"({"type":"string","pattern":"^[a-c]{2}$"})", {"\"ab\""}, {"\"ad\"", "\"abc\""}},
      {R"({"type":"string","format":"date"})", {"\"2024-02-29\""}, {"\"2024-13-01\"", "\"24-01-01\""}},
      {R"({"type":"string","format":"date-time"})", {"\"2024-02-29T23:59:00.5Z\"", "\"2024-01-01T00:00:00+02:00\""},
       {"\"2024-02-29\""}},
      {R"({"type":"string","format":"uuid"})", {"\"123e4567-e89b-12d3-a456-426614174000\""}, {"\"123e\""}},
      {R"({"type":"string","format":"email"})", {"\"a.b@example.org\""}, {"\"a@b\"", "\".a@b.c\""}},
      {R"({"type":"string","format":"ipv4"})", {"\"192.168.0.255\""}, {"\"256.1.1.1\"", "\"1.1.1\""}},
      {R"({"type":"string","format":"uri"})", {"\"https://example.org/a?b=c#d\""}, {"\"no uri\""}},
      {R"({"type":"integer","format":"int32"})", {"1"}, {"1.5"}},
      {R"({"type":"string","format":"email","pattern":"^(?!x)y$"})", {"\"a@b.c\""}, {"\"y\""}},
      {R"({"anyOf":[{"type":"integer"},{"type":"object","properties":{"a":{"const":1}},"required":["a"]}]})",
       {"5", R"({"a":1})"}, {"\"5\"", "{}"}},
      {R"({"allOf":[{"type":"integer"}],"description":"d"})", {"5"}, {"\"5\""}},
      {R"({"$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":)"
       R"([{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["v","next"],)"
       R"("additionalProperties":false}},"$ref":"#/$defs/node"})",
       {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"},
       {R"({"v":1})", R"({"v":1,"next":{"v":2}})", "null"}},
      {R"({"type":"object","properties":{"children":{"type":"array","items":{"$ref":"#"}}}})",
       {"{}", R"({"children":[{},{"children":[]}]})"}, {R"({"children":[1]})"}},
  };
  for (const SchemaCase& c : cases) {
    const auto grammar = GrammarOfSchema(c.schema);
    for (const std::string& text : c.accepted) EXPECT_TRUE(Matches(grammar, text)) << c.schema << " " << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(Matches(grammar, text)) << c.schema << " " << text;
  }
}

TEST(JsonGrammarTest, BoundsOfSchemas) {
  const SchemaCase cases[] = {
      {R"({"type":"integer","minimum":1,"maximum":10})", {"1", "10", "7"}, {"0", "11", "1.5", "-1"}},
      {R"({"type":"integer","exclusiveMinimum":1,"exclusiveMaximum":3})", {"2"}, {"1", "3"}},
      {R"({"type":"integer","minimum":-1.5,"maximum":1.5})", {"-1", "0", "1"}, {"-2", "2"}},
      {R"({"type":"integer","minimum":-9007199254740991,"maximum":9007199254740991})", {"5", "-5"}, {"x"}},
      {R"({"type":"number","minimum":0,"maximum":1})", {"0", "1", "0.5", "1.0", "0.0"},
       {"1.1", "-0.1", "2", "1e5", "-0"}},
      {R"({"type":"number","exclusiveMinimum":0})", {"0.1", "1", "12.5", "0.01"}, {"0", "0.0", "-1"}},
      {R"({"type":"number","exclusiveMaximum":0})", {"-0.5", "-3"}, {"0", "-0", "-0.0", "1"}},
      {R"({"type":"number","minimum":-2,"maximum":3})", {"-2", "-2.0", "-1.9", "0", "3.0", "2.9"},
       {"-2.1", "3.1", "-3"}},
      {R"({"type":"number","minimum":-7,"exclusiveMaximum":-5})", {"-7", "-5.1", "-6"}, {"-5", "-7.5", "0"}},
      {R"({"type":"number","minimum":3,"maximum":3})", {"3", "3.00"}, {"3.01", "4"}},
  };
  for (const SchemaCase& c : cases) {
    const auto grammar = GrammarOfSchema(c.schema);
    for (const std::string& text : c.accepted) EXPECT_TRUE(Matches(grammar, text)) << c.schema << " " << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(Matches(grammar, text)) << c.schema << " " << text;
  }
}

TEST(JsonGrammarTest, WhatIsRefusedIsNamed) {
  const std::tuple<const char*, StatusCode, const char*> cases[] = {
      {"3", StatusCode::kInvalidArgument, "schema: expected a schema"},
      {R"({"type":"date"})", StatusCode::kInvalidArgument, "schema.type: expected object, array"},
      {R"({"uniqueItems":true})", StatusCode::kUnsupported, "schema.uniqueItems: only beside items"},
      {R"({"items":{"type":"string"},"uniqueItems":true})", StatusCode::kUnsupported, "schema.uniqueItems"},
      {R"({"prefixItems":[{"const":1}],"items":{"const":2},"uniqueItems":true})", StatusCode::kUnsupported,
       "schema.uniqueItems"},
      {R"({"type":"array","uniqueItems":1})", StatusCode::kInvalidArgument, "schema.uniqueItems: expected true"},
      {R"({"items":{"type":"boolean"},"uniqueItems":true,"minItems":3})", StatusCode::kInvalidArgument,
       "schema.minItems: expected at most the 2 values"},
      {R"({"anyOf":[{}],"uniqueItems":true})", StatusCode::kUnsupported, "schema.anyOf: not supported beside"},
      {R"({"properties":{"a":{"not":{}}}})", StatusCode::kUnsupported, "schema.properties.a.not: this"},
      {R"({"items":{"multipleOf":0}})", StatusCode::kInvalidArgument, "schema.items.multipleOf: expected"},
      {R"({"multipleOf":"3"})", StatusCode::kInvalidArgument, "schema.multipleOf: expected a number"},
      {R"({"multipleOf":12345678901234567})", StatusCode::kUnsupported, "schema.multipleOf: more than 15"},
      {R"({"type":"integer","multipleOf":99991})", StatusCode::kUnsupported, "schema.multipleOf: needs too"},
      {R"({"type":"integer","minimum":11,"maximum":19,"multipleOf":10})", StatusCode::kInvalidArgument,
       "schema: no multiple is between"},
      {R"x({"type":"string","pattern":"(?=a)"})x", StatusCode::kUnsupported, "schema.pattern: lookaround"},
      {R"({"type":"string","format":"phone"})", StatusCode::kUnsupported, "schema.format: \"phone\""},
      {R"({"type":"string","pattern":"a","minLength":1})", StatusCode::kUnsupported, "schema.minLength"},
      {R"({"type":"integer","minimum":0.5,"maximum":0.75})", StatusCode::kInvalidArgument, "schema: no number"},
      {R"({"type":"number","minimum":"0.5"})", StatusCode::kInvalidArgument, "schema.minimum: expected a number"},
      {R"({"type":"integer","minimum":3,"maximum":2})", StatusCode::kInvalidArgument, "schema: no number"},
      {R"({"type":"array","minItems":3,"maxItems":2})", StatusCode::kInvalidArgument, "schema.maxItems"},
      {R"({"required":["a"],"type":"object"})", StatusCode::kUnsupported, "schema.required: \"a\""},
      {R"({"$ref":"http://x/y"})", StatusCode::kUnsupported, "schema.$ref: only within"},
      {R"({"$ref":"#/$defs/none"})", StatusCode::kInvalidArgument, "schema.$ref: there is no #/$defs/none"},
      {R"({"$ref":"#"})", StatusCode::kInvalidArgument, "schema.$ref: # is nothing but itself"},
      {R"({"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"})",
       StatusCode::kInvalidArgument, "is nothing but itself"},
      {R"({"anyOf":[]})", StatusCode::kInvalidArgument, "schema.anyOf: expected an array"},
      {R"({"allOf":[{},{}]})", StatusCode::kUnsupported, "schema.allOf"},
      {R"({"anyOf":[{}],"properties":{"a":{}}})", StatusCode::kUnsupported, "schema.anyOf: not supported"},
      {R"({"enum":[]})", StatusCode::kInvalidArgument, "schema.enum"},
  };
  for (const auto& [schema, code, message] : cases) {
    JsonGrammar json;
    const auto expression = json.Schema(nlohmann::ordered_json::parse(schema), "schema");
    ASSERT_FALSE(expression.ok()) << schema;
    EXPECT_EQ(expression.status().code(), code) << schema;
    EXPECT_NE(expression.status().message().find(message), std::string::npos)
        << schema << ": " << expression.status().message();
  }
}

TEST(JsonGrammarTest, HugeGrammarsAreRefused) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (int i = 0; i < 3000; ++i) list.push_back(std::string(600, 'a') + std::to_string(i));
  JsonGrammar json;
  const auto expression = json.Schema({{"enum", list}}, "schema");
  ASSERT_FALSE(expression.ok());
  EXPECT_NE(expression.status().message().find("schemas of more than 1048576 bytes"), std::string::npos);
  // Small as a schema, huge as a grammar.
  std::vector<Expression> words;
  for (int i = 0; i < 3000; ++i) words.push_back(Literal(std::string(600, 'a')));
  const auto grammar = Grammar::Build({Choice(std::move(words))}, 0);
  ASSERT_FALSE(grammar.ok());
  EXPECT_EQ(grammar.status().code(), StatusCode::kResourceExhausted);
  const auto object_of = [](int count, const nlohmann::ordered_json& last) {
    nlohmann::ordered_json properties;
    for (int i = 0; i < count; ++i) properties[std::to_string(i)] = true;
    properties["last"] = last;
    return nlohmann::ordered_json{{"properties", properties}};
  };
  EXPECT_TRUE(JsonGrammar().Schema(object_of(511, true), "schema").ok());
  const auto wide = JsonGrammar().Schema(object_of(512, true), "schema");
  ASSERT_FALSE(wide.ok());
  EXPECT_EQ(wide.status().message(), "schema.properties: more than 512, found 513");
  // What compiles is not too deep for the stack, in any form of nesting.
  JsonGrammar deepest;
  const auto two = deepest.Schema(object_of(511, object_of(200, true)), "schema");
  ASSERT_TRUE(two.ok());
  EXPECT_TRUE(std::move(deepest).Build(*two).ok());
  const auto deep = JsonGrammar().Schema(object_of(511, object_of(511, true)), "schema");
  ASSERT_FALSE(deep.ok());
  EXPECT_EQ(deep.status().message(), "schema: too many properties or items within each other");
  list = nlohmann::ordered_json::array();
  for (int i = 0; i < 1000; ++i) list.push_back(std::to_string(i));
  EXPECT_TRUE(Matches(GrammarOfSchema(nlohmann::ordered_json{{"enum", list}}.dump()), "\"0\""));
  list.push_back("1000");
  EXPECT_FALSE(JsonGrammar().Schema({{"enum", list}}, "schema").ok());
  JsonGrammar keys;
  EXPECT_FALSE(keys.Schema({{"properties", {{std::string(1000, 'k'), {{"type", "null"}}}}},
                            {"additionalProperties", true}}, "schema").ok());
}

// Whatever tokens are picked from the masks, the text is JSON that follows the schema.
TEST(JsonGrammarTest, RandomWalksAreJson) {
  const std::string schemas[] = {
      "{}",
      R"({"type":"object","properties":{"name":{"type":"string","maxLength":9},"tags":{"type":"array",)"
      R"("items":{"enum":["x","y"]},"maxItems":3},"more":{"$ref":"#"}},"required":["name"]})",
      R"({"type":"object","properties":{"n":{"type":"number","minimum":-5,"maximum":5}},)"
      R"("additionalProperties":{"type":"boolean"}})",
  };
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    TokenConstraint constraint(GrammarOfSchema(schemas[seed % 3]), ByteTrie(), {255});
    std::string text;
    while (!constraint.must_end()) {
      const auto allowed = constraint.AllowedTokens();
      std::vector<int32_t> tokens;
      for (int32_t token = 0; token < 256; ++token) {
        if (allowed[static_cast<size_t>(token / 64)] >> (token % 64) & 1) tokens.push_back(token);
      }
      ASSERT_FALSE(tokens.empty()) << text;
      // Texts should end: what closes is taken when it can be, from a certain length on.
      int32_t token = tokens[random() % tokens.size()];
      if (text.size() > 60) {
        for (const int32_t closing : std::initializer_list<int32_t>{255, '"', '}', ']', '0', 'l'}) {
          if (std::find(tokens.begin(), tokens.end(), closing) != tokens.end()) {
            token = closing;
            break;
          }
        }
      }
      if (token == 255) {
        ASSERT_TRUE(constraint.can_end());
        break;
      }
      ASSERT_TRUE(constraint.Accept(token));
      text += static_cast<char>(token);
      ASSERT_LT(text.size(), 5000u) << text;
    }
    const auto json = nlohmann::json::parse(text, nullptr, false);
    ASSERT_FALSE(json.is_discarded()) << text;
    if (seed % 3 == 1) {
      ASSERT_TRUE(json["name"].is_string()) << text;
    }
    if (seed % 3 == 2 && json.contains("n")) {
      ASSERT_LE(std::abs(json["n"].get<double>()), 5) << text;
    }
  }
}

}  // namespace
}  // namespace moraine
