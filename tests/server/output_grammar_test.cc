// What a constrained model may write, in every format: texts as the families write them are allowed, and
// what the grammar makes of random choices is read back by the parser as calls with valid arguments.
#include "server/output_grammar.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "model/constraint/token_constraint.h"
#include "server/output_parser.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

const OutputFormat& FormatNamed(std::string_view name) {
  for (const OutputFormat& format : OutputFormats()) {
    if (format.name == name) return format;
  }
  ADD_FAILURE() << "no format " << name;
  return OutputFormats().back();
}

// A token a byte, and special tokens for harmony and Kimi.
struct Vocabulary {
  std::vector<std::string> texts;  // as they are in the output
  std::shared_ptr<const TokenTrie> trie;
  int32_t end = 0;
};
const Vocabulary& TestVocabulary() {
  static const Vocabulary kVocabulary = [] {
    Vocabulary v;
    std::vector<std::pair<std::string, int32_t>> tokens;
    for (int byte = 0; byte < 255; ++byte) {
      tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
      v.texts.emplace_back(1, static_cast<char>(byte));
    }
    for (const char* special : {"<|channel|>", "<|message|>", "<|constrain|>", "<|start|>", "<|end|>",
                                "<|tool_call_begin|>", "<|tool_calls_section_end|>"}) {
      tokens.emplace_back(kSpecialTokenByte + std::string(special), static_cast<int32_t>(v.texts.size()));
      v.texts.emplace_back(special);
    }
    v.end = static_cast<int32_t>(v.texts.size());
    v.trie = std::make_shared<const TokenTrie>(std::move(tokens), static_cast<uint32_t>(v.end + 1));
    return v;
  }();
  return kVocabulary;
}

ApiRequest RequestWithTools() {
  ApiRequest request;
  request.tools = {
      {"get_weather",
       Json::parse(R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer",)"
                   R"("minimum":1,"maximum":9},"unit":{"enum":["C","F"]}},"required":["city","days"]})"),
       false},
      {"now", Json::parse(R"({"type":"object"})"), false}};
  request.tool_choice.kind = ToolChoice::Kind::kRequired;
  return request;
}

TokenConstraint ConstraintOf(const ApiRequest& request, const OutputGrammarOptions& options) {
  std::shared_ptr<const Grammar> grammar;
  const auto error = MakeOutputGrammar(request, options, &grammar);
  EXPECT_FALSE(error) << error->message;
  EXPECT_NE(grammar, nullptr);
  return TokenConstraint(grammar, TestVocabulary().trie, {TestVocabulary().end});
}

// Special tokens written as such.
std::string WithSpecials(std::string text) {
  for (size_t i = 255; i < TestVocabulary().texts.size(); ++i) {
    const std::string& special = TestVocabulary().texts[i];
    for (size_t at = 0; (at = text.find(special, at)) != std::string::npos; at += special.size() + 1) {
      text.insert(at, 1, kSpecialTokenByte);
    }
  }
  return text;
}

bool Allows(const ApiRequest& request, const OutputGrammarOptions& options, const std::string& text) {
  TokenConstraint constraint = ConstraintOf(request, options);
  return constraint.AcceptBytes(WithSpecials(text)) && constraint.can_end();
}

TEST(OutputGrammarTest, CallsAsTheFamiliesWriteThem) {
  const std::tuple<const char*, bool, std::string> cases[] = {
      {"hermes", true, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", "
                       "\"days\": 3}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n"
                       "</tool_call>"},
      {"hermes", true, "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n"
                       "</tool_call>"},
      {"hermes", false, "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>"},
      {"hermes", false, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>"},
      {"hermes", false, "The weather is nice."},
      {"qwen3-coder", true, "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew <York>\n"
                            "</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=unit>\nC\n"
                            "</parameter>\n</function>\n</tool_call>"},
      {"qwen3-coder", false, "<tool_call>\n<function=get_weather>\n<parameter=city>\nA\n</parameter>\n"
                             "<parameter=days>\n12\n</parameter>\n</function>\n</tool_call>"},
      {"glm-4.5", true, "<think>x</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
                        "<arg_value>Rom</arg_value>\n<arg_key>days</arg_key>\n<arg_value>1</arg_value>\n"
                        "</tool_call>"},
      {"minimax", true, "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Rom"
                        "</parameter>\n<parameter name=\"days\">1</parameter>\n</invoke>\n"
                        "<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>"},
      {"deepseek-v3.1", true, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}"
                              "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
      {"deepseek-v3", true, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n"
                            "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
      {"kimi", true, "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0"
                     "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>"},
      {"harmony", true, "<|channel|>analysis<|message|>Call it.<|end|><|start|>assistant<|channel|>"
                        "commentary to=functions.now <|constrain|>json<|message|>{}"},
      {"harmony", true, "<|channel|>commentary to=functions.now json<|message|>{}"},
      {"harmony", false, "<|channel|>final<|message|>It is noon."},
  };
  for (const auto& [format, allowed, text] : cases) {
    EXPECT_EQ(Allows(RequestWithTools(), {.format = &FormatNamed(format), .may_reason = true}, text),
              allowed)
        << format << ": " << text;
  }
}

TEST(OutputGrammarTest, ANamedToolIsTheOnlyOne) {
  ApiRequest request = RequestWithTools();
  request.tool_choice = {ToolChoice::Kind::kNamed, "now"};
  const OutputGrammarOptions options{.format = &FormatNamed("hermes")};
  const std::string call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
  EXPECT_TRUE(Allows(request, options, call));
  EXPECT_FALSE(Allows(request, options, call + "\n" + call));
  request.tool_choice.kind = ToolChoice::Kind::kRequired;
  EXPECT_TRUE(Allows(request, options, call + "\n" + call));
  request.parallel_tool_calls = false;
  EXPECT_FALSE(Allows(request, options, call + "\n" + call));
}

TEST(OutputGrammarTest, ReasoningStaysFree) {
  ApiRequest request;
  request.response_format = ResponseFormat::kJsonObject;
  OutputGrammarOptions options{.format = &FormatNamed("hermes"), .may_reason = true};
  EXPECT_TRUE(Allows(request, options, "{\"a\": 1}"));
  EXPECT_TRUE(Allows(request, options, "<think>{x</think>\n\n{\"a\": 1}"));
  EXPECT_FALSE(Allows(request, options, "x</think>{}"));
  options.begins_in_reasoning = true;
  EXPECT_TRUE(Allows(request, options, "x</think>{}"));
  EXPECT_FALSE(Allows(request, options, "{}"));
  options = {.format = &FormatNamed("plain")};
  EXPECT_TRUE(Allows(request, options, "{}"));
  EXPECT_FALSE(Allows(request, options, "<think></think>{}"));
  options = {.format = &FormatNamed("harmony"), .may_reason = true};
  EXPECT_TRUE(Allows(request, options,
                     "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final "
                     "<|constrain|>json<|message|>{}"));
}

TEST(OutputGrammarTest, AFormOrACallIfThereAreTools) {
  ApiRequest request = RequestWithTools();
  request.tool_choice = {};
  request.response_format = ResponseFormat::kJsonSchema;
  request.response_schema = Json::parse(R"({"type":"array"})");
  const OutputGrammarOptions options{.format = &FormatNamed("hermes")};
  EXPECT_TRUE(Allows(request, options, "[]"));
  EXPECT_TRUE(Allows(request, options, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"));
  EXPECT_FALSE(Allows(request, options, "{}"));
}

TEST(OutputGrammarTest, FreeOutputHasNoGrammar) {
  ApiRequest request = RequestWithTools();
  request.tool_choice = {};
  std::shared_ptr<const Grammar> grammar;
  EXPECT_FALSE(MakeOutputGrammar(request, {.format = &FormatNamed("hermes")}, &grammar));
  EXPECT_EQ(grammar, nullptr);
}

TEST(OutputGrammarTest, SchemasThatAreNotSupported) {
  ApiRequest request;
  request.response_format = ResponseFormat::kJsonSchema;
  request.response_schema = Json::parse(R"({"properties":{"a":{"not":{}}}})");
  std::shared_ptr<const Grammar> grammar;
  const OutputGrammarOptions options{.format = &FormatNamed("hermes")};
  auto error = MakeOutputGrammar(request, options, &grammar);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "response_format");
  EXPECT_EQ(error->code, "unsupported");
  EXPECT_EQ(error->message, "response_format.json_schema.schema.properties.a.not: this keyword "
                            "is not supported");
  // A tool's schema only has to be followed if the tool is strict.
  request = RequestWithTools();
  request.tools[1].parameters = Json::parse(R"({"type":"object","minProperties":1})");
  EXPECT_TRUE(Allows(request, options, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"x\": 1}}\n</tool_call>"));
  request.tools[1].strict = true;
  error = MakeOutputGrammar(request, options, &grammar);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "tools");
}

std::string RandomOutput(const OutputFormat& format, TokenConstraint& constraint,
                         std::mt19937& random) {
  const Vocabulary& vocabulary = TestVocabulary();
  std::string text;
  while (!constraint.must_end() && text.size() < 4000) {
    // Free text only ends with its mark, which random bytes do not find.
    if (!format.value_end.empty() && random() % 8 == 0 && constraint.AcceptBytes(format.value_end)) {
      text += format.value_end;
      continue;
    }
    const auto allowed = constraint.AllowedTokens();
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token <= vocabulary.end; ++token) {
      if (allowed[static_cast<size_t>(token / 64)] >> (token % 64) & 1) tokens.push_back(token);
    }
    if (tokens.empty()) break;
    int32_t token = tokens[random() % tokens.size()];
    // Strings and objects should end: what closes them is picked more often than not.
    for (const int32_t closing : {vocabulary.end, int32_t{'"'}, int32_t{'}'}}) {
      const bool can = std::find(tokens.begin(), tokens.end(), closing) != tokens.end();
      if (can && random() % 3 > 0) {
        token = closing;
        break;
      }
    }
    if (token == vocabulary.end) return text;
    EXPECT_TRUE(constraint.Accept(token));
    text += vocabulary.texts[static_cast<size_t>(token)];
  }
  EXPECT_TRUE(constraint.must_end()) << text;
  return text;
}

TEST(OutputGrammarTest, WhatIsWrittenIsReadBack) {
  for (const OutputFormat& format : OutputFormats()) {
    if (!format.has_tools()) continue;
    for (uint32_t seed = 0; seed < 12; ++seed) {
      SCOPED_TRACE(std::string(format.name) + ", seed " + std::to_string(seed));
      std::mt19937 random(seed);
      ApiRequest request = RequestWithTools();
      request.tool_choice = {ToolChoice::Kind::kNamed, "get_weather"};
      TokenConstraint constraint = ConstraintOf(request, {.format = &format});
      const std::string text = RandomOutput(format, constraint, random);
      OutputParserOptions options;
      options.format = &format;
      options.tools = request.tools;
      options.make_call_id = [] { return "id"; };
      std::vector<OutputDelta> deltas;
      const auto parser = MakeOutputParser(std::move(options));
      parser->Push(text, &deltas);
      parser->Finish(&deltas);
      ASSERT_FALSE(deltas.empty()) << text;
      EXPECT_EQ(deltas[0].kind, OutputDelta::Kind::kToolCall) << text;
      EXPECT_EQ(deltas[0].name, "get_weather") << text;
      std::string arguments;
      for (const OutputDelta& delta : deltas) {
        ASSERT_NE(delta.kind, OutputDelta::Kind::kContent) << text;
        arguments += delta.text;
      }
      const Json json = Json::parse(arguments, nullptr, false);
      ASSERT_TRUE(json.is_object()) << text << "\n" << arguments;
      EXPECT_TRUE(json["city"].is_string()) << text;
      ASSERT_TRUE(json["days"].is_number_integer()) << text;
      EXPECT_GE(json["days"].get<int>(), 1);
      EXPECT_LE(json["days"].get<int>(), 9);
    }
  }
}

}  // namespace
}  // namespace moraine
