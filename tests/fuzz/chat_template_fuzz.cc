// The input is a template, rendered over a fixed conversation under small budgets. Besides crashes,
// leaks and time-outs this looks for text of the request that came out trusted.
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "model/template/chat_template.h"
#include "model/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moraine;
  // A character that no template spells: if it comes out, it must come out untrusted.
  static const std::string kMark = "\xF3\xB0\x80\x80";
  static const nlohmann::ordered_json context = {
      {"messages",
       {{{"role", "system"}, {"content", kMark + " a b"}},
        {{"role", "user"}, {"content", "x," + kMark}, {"n", 3}, {"f", 1.5}},
        {{"role", "assistant"}, {"content", nullptr}, {"tool_calls", {{{"k", kMark}}}}}}},
      {"tools", {{{"type", "function"}, {"name", kMark}}}},
      {"bos_token", "<s>"},
      {"add_generation_prompt", true}};
  const std::string_view source(reinterpret_cast<const char*>(data), size);
  if (source.find("\xF3") != source.npos || source.find("\\U") != source.npos) return 0;
  ChatTemplateOptions options;
  options.max_steps = 20'000;
  options.max_output_bytes = 1 << 20;
  options.max_memory_bytes = 16 << 20;
  const auto chat_template = ChatTemplate::Parse(source, options);
  if (!chat_template.ok()) return 0;
  const auto prompt = chat_template->Render(context);
  if (!prompt.ok()) return 0;
  for (const PromptSegment& segment : prompt->segments) {
    CHECK(!segment.text.empty(), "an empty segment");
    CHECK(!segment.trusted || segment.text.find(kMark) == std::string::npos,
          "text of the request is trusted");
    CHECK(segment.text == ToValidUtf8(segment.text), "a segment is not UTF-8");
  }
  return 0;
}
