// TextModel: a store's tokenizer and chat template, and the way from messages to token ids.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <vector>

#include "model/template/chat_template.h"
#include "model/template/tool_calls.h"
#include "model/tokenizer/tokenizer.h"
#include "store/manifest.h"

namespace moraine {

// Thread-safe after Load.
class TextModel {
 public:
  // kNotFound if the store has neither tokenizer.json nor tiktoken.model; chat_template.jinja wins over
  // tokenizer_config.json.
  static Result<TextModel> Load(const Manifest& manifest);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  // Why there is none, or why the model's cannot be used; ok if there is one.
  const Status& chat_template_status() const { return chat_template_status_; }
  // `context`: messages, add_generation_prompt and whatever else the template takes (tools, documents,
  // enable_thinking and all other chat_template_kwargs, as members of their own); bos_token and
  // eos_token are added. The arguments of tool calls may be strings or objects: they are put into the
  // form that the template takes. With tools the template called "tool_use" is used, if there is one;
  // Kimi's get their keys sorted and are declared as TypeScript too (tools_ts_str), as its remote code
  // does.
  // chat_template_status() if there is none: a broken template does not keep the model from continuing
  // plain text.
  Result<std::vector<int32_t>> EncodeChat(nlohmann::ordered_json context) const;

 private:
  struct Template {
    ChatTemplate parsed;
    ArgumentsForm arguments_form;
  };
  Status AddTemplate(const std::string& source, std::optional<Template>* place);

  explicit TextModel(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {}

  Tokenizer tokenizer_;
  std::optional<Template> chat_template_, tool_use_template_;
  Status chat_template_status_;
};

}  // namespace moraine
