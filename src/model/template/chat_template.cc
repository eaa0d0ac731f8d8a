#include "model/template/chat_template.h"

#include "model/template/interpreter.h"
#include "model/template/parser.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

// The longest published template has 18 KB.
constexpr size_t kMaxSourceBytes = size_t{1} << 20;

Status StatusOf(const jinja::Error& error, int line) {
  return Status(error.code, "chat template line " +
                                std::to_string(error.line != 0 ? error.line : line) + ": " +
                                error.message);
}

RenderedPrompt PromptOf(const jinja::Text& text) {
  RenderedPrompt prompt;
  const auto add = [&](size_t begin, size_t end, bool trusted) {
    if (begin < end) prompt.segments.push_back({text.bytes.substr(begin, end - begin), trusted});
  };
  size_t done = 0;
  for (const jinja::ByteSpan& span : text.untrusted) {
    add(done, span.begin, true);
    add(span.begin, span.end, false);
    done = span.end;
  }
  add(done, text.bytes.size(), true);
  return prompt;
}

}  // namespace

ChatTemplate::ChatTemplate(std::shared_ptr<const jinja::Template> root, ChatTemplateOptions options)
    : root_(std::move(root)), options_(std::move(options)) {}

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source, ChatTemplateOptions options) {
  if (source.size() > kMaxSourceBytes) {
    return InvalidArgument("chat template: longer than 1 MiB");
  }
  try {
    auto root = std::make_shared<jinja::Template>(jinja::ParseTemplate(ToValidUtf8(source)));
    return ChatTemplate(std::move(root), std::move(options));
  } catch (const jinja::Error& error) {
    return StatusOf(error, 1);
  }
}

Result<RenderedPrompt> ChatTemplate::Render(const nlohmann::ordered_json& context) const {
  if (!context.is_object()) return InvalidArgument("chat template: the context is not an object");
  std::optional<jinja::Interpreter> interpreter;
  try {
    interpreter.emplace(options_, context);
    return PromptOf(*interpreter->Run(*root_));
  } catch (const jinja::Error& error) {
    return StatusOf(error, interpreter.has_value() ? interpreter->line() : 1);
  }
}

}  // namespace moraine
