// TextModel: a store's tokenizer and chat template, and the way from messages to token ids.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "model/template/chat_template.h"
#include "model/template/tool_calls.h"
#include "model/tokenizer/tokenizer.h"
#include "store/manifest.h"

namespace moraine {

class TokenTrie;  // model/constraint/token_trie.h

// Thread-safe after Load.
class TextModel {
 public:
  // kNotFound if the store has neither tokenizer.json nor tiktoken.model; chat_template.jinja wins over
  // tokenizer_config.json.
  static Result<TextModel> Load(const Manifest& manifest);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  // Why there is none, or why the model's cannot be used; ok if there is one.
  const Status& chat_template_status() const { return chat_template_status_; }
  // For constraints. Made at the first call, in about 0.1 s for 150,000 tokens. `vocab_size`:
  // the model's, the same in all calls.
  std::shared_ptr<const TokenTrie> token_trie(uint32_t vocab_size) const;
  // The templates' source, also if it cannot be used; empty if there is none.
  const std::string& chat_template_source() const { return chat_template_source_; }
  // `context`: messages, add_generation_prompt and whatever else the template takes (tools, documents,
  // enable_thinking and all other chat_template_kwargs, as members of their own); bos_token and
  // eos_token are added. The arguments of tool calls may be strings or objects: they are put into the
  // form that the template takes. With tools the template called "tool_use" is used, if there is one;
  // Kimi's get their keys sorted and are declared as TypeScript too (tools_ts_str), as its remote code
  // does.
  // chat_template_status() if there is none: a broken template does not keep the model from continuing
  // plain text.
  Result<RenderedPrompt> RenderChat(nlohmann::ordered_json context) const;
  // The tokens of that.
  Result<std::vector<int32_t>> EncodeChat(nlohmann::ordered_json context) const;

 private:
  struct Template {
    ChatTemplate parsed;
    ArgumentsForm arguments_form;
  };
  Status AddTemplate(const std::string& source, std::optional<Template>* place);

  explicit TextModel(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  struct LazyTrie {
    std::once_flag once;
    std::shared_ptr<const TokenTrie> trie;
  };

  Tokenizer tokenizer_;
  std::unique_ptr<LazyTrie> lazy_trie_ = std::make_unique<LazyTrie>();
  std::string chat_template_source_;
  std::optional<Template> chat_template_, tool_use_template_;
  Status chat_template_status_;
};

}  // namespace moraine
