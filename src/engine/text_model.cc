#include "engine/text_model.h"

#include <nlohmann/json.hpp>

#include "model/constraint/token_trie.h"
#include "model/template/typescript_tools.h"

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
  std::string source = FileOrEmpty(manifest, "chat_template.jinja"), tool_use;
  if (source.empty()) {
    source = text.tokenizer_.config().chat_template;
    tool_use = text.tokenizer_.config().tool_use_template;
  }
  text.chat_template_source_ = source + tool_use;
  if (source.empty()) {
    text.chat_template_status_ =
        Unsupported("this model has no chat template: use it with plain text");
    return text;
  }
  text.chat_template_status_ = text.AddTemplate(source, &text.chat_template_);
  if (text.chat_template_status_.ok() && !tool_use.empty()) {
    text.chat_template_status_ = text.AddTemplate(tool_use, &text.tool_use_template_);
  }
  return text;
}

Status TextModel::AddTemplate(const std::string& source, std::optional<Template>* place) {
  ASSIGN_OR_RETURN(ChatTemplate parsed, ChatTemplate::Parse(source));
  const ArgumentsForm form = ProbeArgumentsForm(parsed);
  place->emplace(Template{std::move(parsed), form});
  return OkStatus();
}

std::shared_ptr<const TokenTrie> TextModel::token_trie(uint32_t vocab_size) const {
  std::call_once(lazy_trie_->once, [&] {
    lazy_trie_->trie =
        std::make_shared<const TokenTrie>(TokenTrie::FromTokenizer(tokenizer_, vocab_size));
  });
  return lazy_trie_->trie;
}

Result<RenderedPrompt> TextModel::RenderChat(nlohmann::ordered_json context) const {
  RETURN_IF_ERROR(chat_template_status_);
  context["bos_token"] = tokenizer_.config().bos_token;
  context["eos_token"] = tokenizer_.config().eos_token;
  const auto tools = context.find("tools");
  const bool has_tools = tools != context.end() && tools->is_array() && !tools->empty();
  const Template& chat_template =
      has_tools && tool_use_template_.has_value() ? *tool_use_template_ : *chat_template_;
  ConvertArguments(chat_template.arguments_form, context);
  if (has_tools && tokenizer_.config().tokenizer_class == "TikTokenTokenizer") {
    SortToolKeys(context);
    const auto declared = TypeScriptOfTools(context["tools"]);
    if (declared.has_value()) context["tools_ts_str"] = *declared;
  }
  return chat_template.parsed.Render(context);
}

Result<std::vector<int32_t>> TextModel::EncodeChat(nlohmann::ordered_json context) const {
  ASSIGN_OR_RETURN(const RenderedPrompt prompt, RenderChat(std::move(context)));
  return tokenizer_.EncodeSegments(prompt.segments);
}

}  // namespace moraine
