#include "engine/text_model.h"

#include <nlohmann/json.hpp>

namespace moraine {
namespace {

std::string FileOrEmpty(const Manifest& manifest, const char* name) {
  const auto it = manifest.files.find(name);
  return it == manifest.files.end() ? "" : it->second;
}

Result<Tokenizer> LoadTokenizer(const Manifest& manifest) {
  const std::string config = FileOrEmpty(manifest, "tokenizer_config.json");
  const std::string json = FileOrEmpty(manifest, "tokenizer.json");
  if (!json.empty()) return Tokenizer::FromContents(json, config);
  const std::string tiktoken = FileOrEmpty(manifest, "tiktoken.model");
  if (!tiktoken.empty()) return Tokenizer::FromTiktoken(tiktoken, config);
  return NotFound("the store has neither tokenizer.json nor tiktoken.model (nor had the checkpoint)");
}

}  // namespace

Result<TextModel> TextModel::Load(const Manifest& manifest) {
  ASSIGN_OR_RETURN(Tokenizer tokenizer, LoadTokenizer(manifest));
  TextModel text(std::move(tokenizer));
  std::string source = FileOrEmpty(manifest, "chat_template.jinja");
  if (source.empty()) source = text.tokenizer_.config().chat_template;
  if (source.empty()) {
    text.chat_template_status_ =
        Unsupported("this model has no chat template: use it with plain text");
    return text;
  }
  auto parsed = ChatTemplate::Parse(source);
  text.chat_template_status_ = parsed.status();
  if (parsed.ok()) text.chat_template_.emplace(std::move(*parsed));
  return text;
}

Result<std::vector<int32_t>> TextModel::EncodeChat(nlohmann::ordered_json context) const {
  RETURN_IF_ERROR(chat_template_status_);
  context["bos_token"] = tokenizer_.config().bos_token;
  context["eos_token"] = tokenizer_.config().eos_token;
  ASSIGN_OR_RETURN(const RenderedPrompt prompt, chat_template_->Render(context));
  return tokenizer_.EncodeSegments(prompt.segments);
}

}  // namespace moraine
