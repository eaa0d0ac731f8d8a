// From messages to ids with what a store keeps of a checkpoint.
#include "engine/text_model.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "engine/synthetic_model.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;
using testing::HasSubstr;

Manifest ManifestWith(const ordered_json& tokenizer_config) {
  Manifest manifest;
  manifest.files["tokenizer.json"] = SyntheticTokenizerJson(512);
  manifest.files["tokenizer_config.json"] = tokenizer_config.dump();
  return manifest;
}

// What a request's messages become, as text.
std::string Prompt(const Manifest& manifest, const ordered_json& context) {
  const Result<TextModel> text = TextModel::Load(manifest);
  CHECK(text.ok(), text.status().ToString());
  const auto ids = text->EncodeChat(context);
  return ids.ok() ? text->tokenizer().Decode(*ids) : "error: " + ids.status().message();
}

ordered_json Templates() {
  return ordered_json::parse(R"({"chat_template": [
      {"name": "default", "template": "D{{ enable_thinking }}{{ documents }}"},
      {"name": "tool_use", "template": "T{{ tools|length }}"}]})");
}

TEST(TextModel, WithToolsTheTemplateForThemIsUsed) {
  const Manifest manifest = ManifestWith(Templates());
  EXPECT_EQ(Prompt(manifest, {{"messages", ordered_json::array()}}), "D");
  EXPECT_EQ(Prompt(manifest, {{"tools", ordered_json::array()}}), "D");
  EXPECT_EQ(Prompt(manifest, {{"tools", nullptr}, {"enable_thinking", false}}), "DFalse");
  EXPECT_EQ(Prompt(manifest, {{"tools", {1, 2}}}), "T2");
  Manifest with_file = manifest;
  with_file.files["chat_template.jinja"] = "F{{ tools|length }}";
  EXPECT_EQ(Prompt(with_file, {{"tools", {1, 2}}}), "F2");
}

TEST(TextModel, ABrokenTemplateForToolsIsReported) {
  ordered_json config = Templates();
  config["chat_template"][1]["template"] = "{% if %}";
  EXPECT_THAT(Prompt(ManifestWith(config), {}), HasSubstr("error: chat template line 1"));
}

TEST(TextModel, CallsComeInTheFormThatTheTemplateTakes) {
  const auto prompt = [](const std::string& source, const ordered_json& arguments) {
    const ordered_json call = {{"function", {{"arguments", arguments}}}};
    const ordered_json message = {{"role", "assistant"}, {"tool_calls", ordered_json::array({call})}};
    return Prompt(ManifestWith({{"chat_template", "{% for m in messages %}{% for c in m.tool_calls or [] %}" +
                                                      source + "{% endfor %}{% endfor %}"}}),
                  {{"messages", ordered_json::array({message})}});
  };
  for (const ordered_json& arguments : {ordered_json("{\"b\": 1}"), ordered_json({{"b", 1}})}) {
    EXPECT_EQ(prompt("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", arguments),
              "b=1");
  }
  EXPECT_EQ(prompt("{{ '<' + c.function.arguments }}", {{"b", 1}}), "<{\"b\":1}");
}

TEST(TextModel, KimisToolsAreSortedOthersAreNot) {
  ordered_json config = {{"chat_template", "{{ tools|tojson }}"}};
  const auto context = ordered_json::parse(R"({"tools": [{"type": "f", "a": {"z": 1, "y": 2}}]})");
  EXPECT_EQ(Prompt(ManifestWith(config), context), R"([{"type": "f", "a": {"z": 1, "y": 2}}])");
  config["tokenizer_class"] = "TikTokenTokenizer";
  EXPECT_EQ(Prompt(ManifestWith(config), context), R"([{"a": {"y": 2, "z": 1}, "type": "f"}])");
  config["chat_template"] = "{{ tools_ts_str }}";
  EXPECT_EQ(Prompt(ManifestWith(config),
                   ordered_json::parse(R"({"tools": [{"type": "function", "function": {"name": "f"}}]})")),
            "# Tools\n\n## functions\nnamespace functions {\ntype f = (_: {}) => any;\n}\n");
}

TEST(TextModel, WithoutTokenizerJsonTiktokenIsRead) {
  Manifest manifest;
  EXPECT_EQ(TextModel::Load(manifest).status().code(), StatusCode::kNotFound);
  manifest.files["tiktoken.model"] = "not base64 0\n";
  EXPECT_THAT(TextModel::Load(manifest).status().message(), HasSubstr("tiktoken.model: line 1"));
}

}  // namespace
}  // namespace moraine
