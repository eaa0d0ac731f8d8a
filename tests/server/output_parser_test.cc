// Every format, at every cut: what a model writes must come out the same however it arrives.
#include "server/output_parser.h"

#include <gtest/gtest.h>

namespace moraine {
namespace {

using Kind = OutputDelta::Kind;

struct FormatCase {
  const char* format;
  const char* what;
  std::string output;
  // "R:reasoning|C:content|T:name id|A:arguments", joined by |
  std::string expected;
  bool begins_in_reasoning = false;
  bool with_tools = true;
};

const OutputFormat& FormatNamed(std::string_view name) {
  for (const OutputFormat& format : OutputFormats()) {
    if (format.name == name) return format;
  }
  ADD_FAILURE() << "no format " << name;
  return OutputFormats().back();
}

std::vector<ToolDefinition> Tools() {
  return {{"get_weather",
           nlohmann::ordered_json::parse(
               R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer"},)"
               R"("zip":{"type":["string"]},"unit":{"enum":["C","F"]}}})")},
          {"now", nlohmann::ordered_json::parse(R"({"type":"object"})")}};
}

OutputParserOptions OptionsOf(const FormatCase& c) {
  OutputParserOptions options;
  options.format = &FormatNamed(c.format);
  options.split_reasoning = true;
  options.begins_in_reasoning = c.begins_in_reasoning;
  if (c.with_tools) options.tools = Tools();
  options.make_call_id = [next = 0]() mutable { return "id" + std::to_string(next++); };
  return options;
}

std::string Spell(const std::vector<OutputDelta>& deltas) {
  std::string text;
  Kind last = Kind::kToolCall;
  for (const OutputDelta& delta : deltas) {
    if (delta.kind != last || delta.kind == Kind::kToolCall) {
      if (!text.empty()) text += '|';
      text += delta.kind == Kind::kContent     ? "C:"
              : delta.kind == Kind::kReasoning ? "R:"
              : delta.kind == Kind::kToolCall  ? "T:" + delta.name + " " + delta.id
                                               : "A:";
    }
    last = delta.kind;
    text += delta.text;
  }
  return text;
}

std::string Parse(const FormatCase& c, const std::vector<std::string_view>& pieces) {
  const auto parser = MakeOutputParser(OptionsOf(c));
  std::vector<OutputDelta> deltas;
  for (const std::string_view piece : pieces) parser->Push(piece, &deltas);
  parser->Finish(&deltas);
  for (const OutputDelta& delta : deltas) {
    EXPECT_TRUE(delta.kind == Kind::kToolCall || !delta.text.empty()) << "a delta of nothing";
  }
  return Spell(deltas);
}

std::vector<FormatCase> Cases() {
  const std::string d = "<｜tool▁calls▁begin｜>", e = "<｜tool▁calls▁end｜>";
  return {
      {"hermes", "text only", "Hello, world \n", "C:Hello, world \n"},
      {"hermes", "reasoning, text", "<think>\nLet me see.\n</think>\n\nParis.", "R:Let me see.|C:Paris."},
      {"hermes", "the template began the reasoning", "Let me see.\n</think>\n\nParis.",
       "R:Let me see.|C:Paris.", true},
      {"hermes", "reasoning that does not end", "<think>a < b </thin", "R:a < b </thin"},
      {"hermes", "empty reasoning", "<think>\n\n</think>\n\nHi", "C:Hi"},
      {"hermes", "a mark in mid-text is text", "I <think> so</think>", "C:I <think> so</think>"},
      {"hermes", "a call",
       "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>",
       "T:get_weather id0|A:{\"city\": \"Paris\"}"},
      {"hermes", "reasoning, text and two calls",
       "<think>I call.</think>\nOne moment.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n"
       "</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"days\": [1, {}]}}\n"
       "</tool_call>\n",
       "R:I call.|C:One moment.|T:now id0|A:{}|T:get_weather id1|A:{\"days\": [1, {}]}"},
      {"hermes", "the end's mark within a string",
       R"(<tool_call>{"name":"now","arguments":{"a":"</tool_call>} \" \\"}}</tool_call>)",
       R"(T:now id0|A:{"a":"</tool_call>} \" \\"})"},
      {"hermes", "arguments before the name",
       R"(<tool_call>{"arguments": {"a": 1} , "name": "now"}</tool_call>)", R"(T:now id0|A:{"a": 1})"},
      {"hermes", "arguments as a string, and other members",
       R"(<tool_call>{"id": 7, "name": "now", "parameters": "{\"a\":1}"}</tool_call>)",
       R"(T:now id0|A:{"a":1})"},
      {"hermes", "no arguments", R"(<tool_call>{"name": "now"}</tool_call> rest)",
       "T:now id0|A:{}|C:rest"},
      {"hermes", "not a call", "Write <tool_call> and JSON", "C:Write <tool_call> and JSON"},
      {"hermes", "a call cut off", "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"b",
       "T:now id0|A:{\"a\": \"b"},
      {"hermes", "cut off before the name", "<tool_call>{\"na", "C:<tool_call>{\"na"},
      {"hermes", "no tools: calls are text", "<tool_call>{\"name\":\"now\"}</tool_call>",
       "C:<tool_call>{\"name\":\"now\"}</tool_call>", false, false},
      {"qwen3-coder", "parameters by type",
       "Looking.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n42\n</parameter>\n"
       "<parameter=days>\n3\n</parameter>\n<parameter=zip>\n007\n</parameter>\n"
       "<parameter=note>\n{\"a\": [1,2]}\n</parameter>\n<parameter=other>\nfree text\n\n</parameter>\n"
       "</function>\n</tool_call>",
       "C:Looking.|T:get_weather id0|A:{\"city\": \"42\", \"days\": 3, \"zip\": \"007\", "
       "\"note\": {\"a\": [1,2]}, \"other\": \"free text\\n\"}"},
      {"qwen3-coder", "no parameters, twice",
       "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call><function=now></function>"
       "</tool_call>",
       "T:now id0|A:{}|T:now id1|A:{}"},
      {"qwen3-coder", "without the outer mark",
       "<function=now>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call> done",
       "T:now id0|A:{\"a\": 1}|C:done"},
      {"glm-4.5", "reasoning and a call",
       "\n<think>Weather.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n"
       "<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
       "R:Weather.|T:get_weather id0|A:{\"city\": \"Paris\", \"days\": 2}"},
      {"glm-4.5", "no arguments, two calls", "<tool_call>now</tool_call>\n<tool_call>now\n</tool_call>",
       "T:now id0|A:{}|T:now id1|A:{}"},
      {"glm-4.5", "no line break after the name",
       "<tool_call>get_weather<arg_key>unit</arg_key><arg_value>C</arg_value></tool_call>",
       "T:get_weather id0|A:{\"unit\": \"C\"}"},
      {"minimax", "two calls in one section",
       "ok\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">a \"b\" <c>"
       "</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
       "C:ok|T:get_weather id0|A:{\"city\": \"a \\\"b\\\" <c>\"}|T:now id1|A:{}"},
      {"deepseek-v3.1", "two calls",
       "Hm." + d + "<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rom\"}"
       "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>" + e,
       "C:Hm.|T:get_weather id0|A:{\"city\": \"Rom\"}|T:now id1|A:{}"},
      {"deepseek-v3", "fenced arguments",
       d + "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"```\"}\n```"
       "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```"
       "<｜tool▁call▁end｜>" + e,
       "T:get_weather id0|A:{\"city\": \"```\"}|T:now id1|A:{}"},
      {"kimi", "ids are the model's",
       "Sure. <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
       "<|tool_call_argument_begin|>{\"city\": \"Oslo\"}<|tool_call_end|><|tool_call_begin|>"
       "functions.now:1<|tool_call_argument_begin|> {} <|tool_call_end|><|tool_calls_section_end|>",
       "C:Sure.|T:get_weather functions.get_weather:0|A:{\"city\": \"Oslo\"}|T:now functions.now:1|A:{}"},
      {"kimi", "empty and odd arguments",
       "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>"
       "<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>odd"
       "<|tool_call_end|><|tool_calls_section_end|>after",
       "T:now functions.now:0|A:{}|T:now functions.now:1|A:odd|C:after"},
      {"harmony", "analysis and final",
       "<|channel|>analysis<|message|>Think < hard.<|end|><|start|>assistant<|channel|>final<|message|>"
       "Paris.<|return|>",
       "R:Think < hard.|C:Paris."},
      {"harmony", "a call, recipient after the channel",
       "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary "
       "to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Rom\"}<|call|>",
       "R:Call.|T:get_weather id0|A:{\"city\":\"Rom\"}"},
      {"harmony", "recipient after the role, and a preamble",
       "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant to=functions.now"
       "<|channel|>commentary json<|message|>{}",
       "C:I look it up.|T:now id0|A:{}"},
      {"harmony", "recipient at once", " to=functions.now<|channel|>commentary<|message|>{}<|call|>",
       "T:now id0|A:{}"},
      {"harmony", "no header", "Plain text", "C:Plain text"},
      {"harmony", "shorter than a header", "No", "C:No"},
      {"plain", "reasoning without tools", " <think>a</think> b", "R:a|C:b"},
      {"plain", "blanks are kept", " \n a \n", "C: \n a \n"},
  };
}

TEST(OutputParserTest, AllFormatsAtEveryCut) {
  for (const FormatCase& c : Cases()) {
    SCOPED_TRACE(std::string(c.format) + ": " + c.what);
    const std::string_view text = c.output;
    const std::string& expected = c.expected;
    ASSERT_EQ(Parse(c, {text}), expected);
    for (size_t i = 1; i < text.size(); ++i) {
      ASSERT_EQ(Parse(c, {text.substr(0, i), text.substr(i)}), expected) << "cut at " << i;
    }
    std::vector<std::string_view> bytes;
    for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
    ASSERT_EQ(Parse(c, bytes), expected) << "byte by byte";
    if (text.size() > 160) continue;  // all pairs of cuts, where that is cheap
    for (size_t i = 1; i < text.size(); ++i) {
      for (size_t j = i + 1; j < text.size(); ++j) {
        ASSERT_EQ(Parse(c, {text.substr(0, i), text.substr(i, j - i), text.substr(j)}), expected)
            << "cuts at " << i << " and " << j;
      }
    }
  }
}

// A stream must show arguments while they are written, not when they are complete.
TEST(OutputParserTest, TextAndArgumentsAreNotHeldBack) {
  FormatCase c{"hermes", "", "", ""};
  const auto parser = MakeOutputParser(OptionsOf(c));
  const auto push = [&](std::string_view text) {
    std::vector<OutputDelta> deltas;
    parser->Push(text, &deltas);
    return Spell(deltas);
  };
  EXPECT_EQ(push("<think>"), "");
  EXPECT_TRUE(parser->in_reasoning());
  EXPECT_EQ(push("one "), "R:one");
  EXPECT_EQ(push("two</th"), "R: two");
  EXPECT_EQ(push("ink>\n\n"), "");
  EXPECT_FALSE(parser->in_reasoning());
  EXPECT_EQ(push("text <tool"), "C:text");
  EXPECT_EQ(push("box"), "C: <toolbox");
  EXPECT_EQ(push("<tool_call>{\"name\": \"now\","), "T:now id0");
  EXPECT_EQ(push(" \"arguments\": {\"a\": \"b"), "A:{\"a\": \"b");
  EXPECT_EQ(push("c"), "A:c");
}

TEST(OutputFormatTest, IsChosenByTheTemplate) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ '<tool_call>' }} within <tool_call></tool_call>", "hermes"},
      {"<tool_call> <function=example_function_name>", "qwen3-coder"},
      {"<tool_call>{function-name}\n<arg_key>", "glm-4.5"},
      {"<minimax:tool_call>", "minimax"},
      {"<｜tool▁calls▁begin｜> ... ```json", "deepseek-v3"},
      {"<｜tool▁calls▁begin｜>", "deepseek-v3.1"},
      {"<|tool_calls_section_begin|>", "kimi"},
      {"<|start|>system<|message|> <|channel|>final", "harmony"},
      {"<|im_start|>", "plain"},
      {"", "plain"},
  };
  for (const auto& [source, name] : cases) EXPECT_EQ(FormatOfTemplate(source).name, name) << source;
  EXPECT_TRUE(TemplateHasReasoning("... '</think>' ..."));
  EXPECT_TRUE(TemplateHasReasoning("<|channel|><|message|>"));
  EXPECT_FALSE(TemplateHasReasoning("<|im_start|>"));
}

}  // namespace
}  // namespace moraine
