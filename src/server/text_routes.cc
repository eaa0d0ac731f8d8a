#include "server/text_routes.h"

#include "model/tokenizer/utf8.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/generation_setup.h"
#include "server/json_fields.h"
#include "server/messages_api.h"
#include "server/output_format.h"

namespace moraine {
namespace {

std::optional<ApiError> RenderBody(const GenerationService& service, const Json& body,
                                   RenderedPrompt* prompt) {
  ApiRequest request;
  const RequestDefaults defaults{service.default_sampling(), service.model_info().vocab_size};
  if (auto error = ReadChatRequest(body, defaults, &request)) return error;
  Result<RenderedPrompt> rendered = RenderChatPrompt(service, &request);
  if (!rendered.ok()) return ErrorOfEncoding(rendered.status(), "messages");
  *prompt = std::move(*rendered);
  return std::nullopt;
}

std::optional<ApiError> TokensOfText(const GenerationService& service, const Json& json,
                                     std::vector<int32_t>* tokens) {
  FieldReader fields(json);
  std::string text;
  const bool is_content = fields.Get("content") != nullptr;
  fields.String(is_content ? "content" : "prompt", &text);
  // llama.cpp's "content" leaves bos out unless asked, vLLM's "prompt" puts it in.
  EncodeOptions options{.add_special_tokens = !is_content, .parse_special = true};
  fields.Bool("add_special", &options.add_special_tokens);
  fields.Bool("add_special_tokens", &options.add_special_tokens);
  fields.Bool("parse_special", &options.parse_special);
  if (!is_content && !fields.failed() && fields.Get("prompt") == nullptr) {
    return InvalidRequest("content: expected a string, found nothing", "content");
  }
  if (fields.failed()) return fields.error();
  Result<std::vector<int32_t>> encoded = service.EncodeText(text, options);
  if (!encoded.ok()) return ErrorOfEncoding(encoded.status(), is_content ? "content" : "prompt");
  *tokens = std::move(*encoded);
  return std::nullopt;
}

std::optional<ApiError> TokensOf(const GenerationService& service, const Json& json,
                                 std::vector<int32_t>* tokens) {
  if (!json.contains("messages")) return TokensOfText(service, json, tokens);
  RenderedPrompt prompt;
  if (auto error = RenderBody(service, json, &prompt)) return error;
  Result<std::vector<int32_t>> encoded = service.EncodePrompt(prompt);
  if (!encoded.ok()) return ErrorOfEncoding(encoded.status(), "messages");
  *tokens = std::move(*encoded);
  return std::nullopt;
}

// A string, or its bytes where a token is part of a character.
Json PieceOf(const std::string& bytes) {
  if (ToValidUtf8(bytes) == bytes) return bytes;
  Json list = Json::array();
  for (const char c : bytes) list.push_back(static_cast<uint8_t>(c));
  return list;
}

}  // namespace

std::optional<ApiError> Tokenize(const GenerationService& service, std::string_view body,
                                 std::string* answer) {
  Json json;
  if (auto error = ParseJsonBody(body, &json)) return error;
  FieldReader fields(json);
  bool with_pieces = false;
  fields.Bool("with_pieces", &with_pieces);
  if (fields.failed()) return fields.error();
  std::vector<int32_t> tokens;
  if (auto error = TokensOf(service, json, &tokens)) return error;
  Json out;
  out["count"] = tokens.size();
  out["max_model_len"] = service.model_info().max_context;
  Json& list = out["tokens"] = Json::array();
  for (const int32_t token : tokens) {
    if (with_pieces) {
      list.push_back({{"id", token}, {"piece", PieceOf(service.TokenBytes(token))}});
    } else {
      list.push_back(token);
    }
  }
  *answer = DumpJson(out);
  return std::nullopt;
}

std::optional<ApiError> Detokenize(const GenerationService& service, std::string_view body,
                                   std::string* answer) {
  Json json;
  if (auto error = ParseJsonBody(body, &json)) return error;
  const Json list = json.value("tokens", Json());
  const uint32_t vocab_size = service.model_info().vocab_size;
  if (!list.is_array()) {
    return InvalidRequest("tokens: expected an array of token ids, found " + DescribeJson(list),
                          "tokens");
  }
  std::vector<int32_t> tokens;
  for (const Json& item : list) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() >= vocab_size) {
      return InvalidRequest("tokens: expected token ids below " + std::to_string(vocab_size) +
                                ", found " + DescribeJson(item),
                            "tokens");
    }
    tokens.push_back(item.get<int32_t>());
  }
  Json out;
  out["content"] = service.DecodeTokens(tokens);
  out["prompt"] = out["content"];
  *answer = DumpJson(out);
  return std::nullopt;
}

std::optional<ApiError> ApplyTemplate(const GenerationService& service, std::string_view body,
                                      std::string* answer) {
  Json json;
  if (auto error = ParseJsonBody(body, &json)) return error;
  RenderedPrompt prompt;
  if (auto error = RenderBody(service, json, &prompt)) return error;
  *answer = DumpJson(Json{{"prompt", prompt.text()}});
  return std::nullopt;
}

std::optional<ApiError> CountTokens(const GenerationService& service, std::string_view body,
                                    std::string* answer) {
  Json json, chat;
  if (auto error = ParseJsonBody(body, &json)) return error;
  if (auto error = TranslateMessagesRequest(json, /*counts=*/true, &chat)) return error;
  std::vector<int32_t> tokens;
  if (auto error = TokensOf(service, chat, &tokens)) return error;
  *answer = DumpJson(Json{{"input_tokens", tokens.size()}});
  return std::nullopt;
}

std::string PropsBody(const GenerationService& service, const std::string& version) {
  const ModelInfo model = service.model_info();
  const SamplingOptions sampling = service.default_sampling();
  const std::string chat_template = service.chat_template();
  Json out;
  Json& defaults = out["default_generation_settings"];
  defaults["n_ctx"] = model.max_context;
  defaults["params"] = {{"temperature", sampling.temperature},
                        {"top_k", sampling.top_k},
                        {"top_p", sampling.top_p},
                        {"min_p", sampling.min_p},
                        {"repetition_penalty", sampling.repetition_penalty}};
  out["total_slots"] = model.max_sequences;
  out["model_alias"] = model.name;
  out["architecture"] = model.architecture;
  out["vocab_size"] = model.vocab_size;
  out["chat_template"] = chat_template;
  out["output_format"] = FormatOfTemplate(chat_template).name;
  out["reasoning"] = TemplateHasReasoning(chat_template);
  out["modalities"] = {{"vision", false}, {"audio", false}};
  out["build_info"] = version;
  return DumpJson(out);
}

std::string SlotsBody(const std::vector<SlotReport>& slots) {
  Json list = Json::array();
  for (const SlotReport& slot : slots) {
    list.push_back({{"id", slot.id},
                    {"state", slot.state},
                    {"is_processing", slot.state != "queued"},
                    {"n_prompt_tokens", slot.prompt_tokens},
                    {"n_prompt_tokens_processed", slot.prefilled_tokens},
                    {"n_decoded", slot.generated_tokens}});
  }
  return DumpJson(list);
}

}  // namespace moraine
