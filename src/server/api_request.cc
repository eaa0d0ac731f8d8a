#include "server/api_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "server/chat_messages.h"
#include "server/json_fields.h"

namespace moraine {
namespace {

// OpenAI's limit is 4; clients of other servers send more. Each one costs a search per token.
constexpr size_t kMaxStopStrings = 16;
constexpr size_t kMaxStopBytes = 1024;
// OpenAI's for chat; each one is a line of every chunk.
constexpr uint32_t kMaxTopLogprobs = 20;
constexpr uint32_t kMaxTokensField = std::numeric_limits<int32_t>::max();
// What /v1/completions generates when max_tokens is absent: OpenAI's default, which clients of that
// endpoint rely on. Chat has none.
constexpr uint32_t kCompletionDefaultTokens = 16;
// Each choice holds its answer in memory until the last one has ended.
constexpr uint32_t kMaxChoices = 8;
// What evaluation harnesses send at a time.
constexpr size_t kMaxPrompts = 128;

void RefuseUnsupported(FieldReader& fields) {
  struct Refusal {
    const char* name;
    const char* why;
  };
  static constexpr const char* kUseTools = "use tools and tool_choice";
  static constexpr const char* kNoGuide = "use response_format";
  static constexpr Refusal kRefusals[] = {
      {"functions", kUseTools},
      {"function_call", kUseTools},
      {"audio", "text only"},
      {"prediction", "predicted outputs are not implemented"},
      {"web_search_options", "this server does not search"},
      {"suffix", "text is only appended, not inserted"},
      {"echo", "the prompt is not repeated"},
      {"use_beam_search", "tokens are sampled"},
      {"guided_json", kNoGuide},
      {"guided_regex", kNoGuide},
      {"guided_choice", kNoGuide},
      {"guided_grammar", kNoGuide},
      {"structured_outputs", kNoGuide},
      {"grammar", kNoGuide},
      {"json_schema", kNoGuide},
  };
  for (const Refusal& refusal : kRefusals) {
    if (AsksForSomething(fields.Get(refusal.name))) {
      fields.Fail(UnsupportedField(refusal.name, refusal.why));
    }
  }
  int64_t best_of = 1;
  fields.Integer("best_of", 1, 128, &best_of);
  if (best_of != 1) fields.Fail(UnsupportedField("best_of", "all choices are returned: use n"));
  if (const Json* modalities = fields.Get("modalities")) {
    if (*modalities != Json::array({"text"})) {
      fields.Fail(UnsupportedField("modalities", "text only"));
    }
  }
}

void ReadResponseFormat(FieldReader& fields, ApiRequest* out) {
  const Json* format = fields.Get("response_format");
  if (format == nullptr) return;
  const Json type = format->is_object() ? format->value("type", Json()) : Json();
  if (type == "text") return;
  if (type == "json_object") {
    out->response_format = ResponseFormat::kJsonObject;
  } else if (type == "json_schema") {
    out->response_format = ResponseFormat::kJsonSchema;
    const Json named = format->value("json_schema", Json());
    out->response_schema = named.is_object() ? named.value("schema", Json()) : Json();
    if (!out->response_schema.is_object()) {
      fields.Fail("response_format.json_schema.schema", "a JSON schema", out->response_schema);
    }
  } else {
    fields.Fail("response_format.type", "text, json_object or json_schema", type);
  }
}

void ReadStop(FieldReader& fields, std::vector<std::string>* stop) {
  const Json* value = fields.Get("stop");
  if (value == nullptr) return;
  const Json list = value->is_string() ? Json::array({*value}) : *value;
  const std::string expected =
      fmt::format("a string or an array of at most {} strings of 1 to {} bytes", kMaxStopStrings,
                  kMaxStopBytes);
  if (!list.is_array() || list.size() > kMaxStopStrings) return fields.Fail("stop", expected, *value);
  for (const Json& item : list) {
    const std::string* text = item.get_ptr<const std::string*>();
    if (text == nullptr || text->empty() || text->size() > kMaxStopBytes) {
      return fields.Fail("stop", expected, item);
    }
    stop->push_back(*text);
  }
}

void ReadLogitBias(FieldReader& fields, uint32_t vocab_size,
                   std::vector<std::pair<int32_t, float>>* bias) {
  const Json* value = fields.Get("logit_bias");
  if (value == nullptr) return;
  if (!value->is_object()) {
    return fields.Fail("logit_bias", "an object from token ids to numbers", *value);
  }
  for (const auto& [key, number] : value->items()) {
    int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    if (error != std::errc() || end != key.data() + key.size() || token < 0 ||
        static_cast<uint32_t>(token) >= vocab_size) {
      return fields.Fail("logit_bias", fmt::format("token ids below {} as keys", vocab_size), key);
    }
    if (!number.is_number() || !(number.get<double>() >= -100 && number.get<double>() <= 100)) {
      return fields.Fail("logit_bias." + key, "a number from -100 to 100", number);
    }
    bias->emplace_back(token, number.get<float>());
  }
}

void ReadSampling(FieldReader& fields, const RequestDefaults& defaults, SamplingOptions* sampling) {
  *sampling = defaults.sampling;
  fields.Number("temperature", {0, 2}, &sampling->temperature);
  fields.Number("top_p", {0, 1}, &sampling->top_p);
  // The sampler wants more than 0. Clients send 0 for "only the best token", which this also means.
  sampling->top_p = std::max(sampling->top_p, std::numeric_limits<float>::min());
  fields.Unsigned("top_k", 0, kMaxTokensField, &sampling->top_k);
  fields.Number("min_p", {.low = 0, .high = 1, .high_open = true}, &sampling->min_p);
  fields.Number("repetition_penalty", {.low = 0, .high = 100, .low_open = true},
                &sampling->repetition_penalty);
  fields.Number("presence_penalty", {-2, 2}, &sampling->presence_penalty);
  fields.Number("frequency_penalty", {-2, 2}, &sampling->frequency_penalty);
  int64_t seed = static_cast<int64_t>(sampling->seed);
  fields.Integer("seed", std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max(),
                 &seed);
  sampling->seed = static_cast<uint64_t>(seed);
  ReadLogitBias(fields, defaults.vocab_size, &sampling->logit_bias);
}

void ReadStreamOptions(FieldReader& fields, ApiRequest* out) {
  fields.Bool("stream", &out->stream);
  const Json* options = fields.Get("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields.Fail("stream_options", "an object", *options);
  if (!out->stream) {
    return fields.Fail(InvalidRequest("stream_options: only allowed when stream is true",
                                      "stream_options"));
  }
  FieldReader inner(*options, "stream_options.");
  inner.Bool("include_usage", &out->include_usage);
  if (inner.failed()) fields.Fail(*inner.error());
}

// What both endpoints have in common.
void ReadCommon(FieldReader& fields, const RequestDefaults& defaults, ApiRequest* out) {
  RefuseUnsupported(fields);
  fields.String("model", &out->model);
  ReadStreamOptions(fields, out);
  ReadSampling(fields, defaults, &out->sampling);
  ReadStop(fields, &out->stop);
  ReadResponseFormat(fields, out);
  fields.Unsigned("max_tokens", 1, kMaxTokensField, &out->max_tokens);
  fields.Unsigned("max_completion_tokens", 1, kMaxTokensField, &out->max_tokens);
  fields.Bool("ignore_eos", &out->ignore_eos);
  fields.Unsigned("n", 1, kMaxChoices, &out->choice_count);
  fields.Bool("return_progress", &out->return_progress);
}

void ReadChatLogprobs(FieldReader& fields, std::optional<uint32_t>* top_logprobs) {
  bool wanted = false;
  uint32_t count = 0;
  fields.Bool("logprobs", &wanted);
  fields.Unsigned("top_logprobs", 0, kMaxTopLogprobs, &count);
  if (fields.Get("top_logprobs") != nullptr && !wanted && count > 0) {
    fields.Fail(InvalidRequest("top_logprobs: only allowed when logprobs is true", "top_logprobs"));
  }
  if (wanted) *top_logprobs = count;
}

// vLLM's way to reach a template's own switches, e.g. {"enable_thinking": false}.
void ReadTemplateVariables(FieldReader& fields, Json* context) {
  const Json* variables = fields.Get("chat_template_kwargs");
  if (variables == nullptr) return;
  if (!variables->is_object()) return fields.Fail("chat_template_kwargs", "an object", *variables);
  for (const auto& [name, value] : variables->items()) {
    // What the server sets itself must not come from a request: "bos_token" and its like are trusted
    // text to the template, in which special tokens are parsed.
    const bool reserved = name == "messages" || name == "tools" ||
                          name == "add_generation_prompt" || name.ends_with("_token");
    if (reserved) {
      return fields.Fail(InvalidRequest("chat_template_kwargs." + name + ": set by the server",
                                        "chat_template_kwargs." + name));
    }
    (*context)[name] = value;
  }
}

// "none" turns thinking off in templates that have that switch (Qwen3, GLM); the words are gpt-oss's.
void ReadReasoning(FieldReader& fields, ApiRequest* out) {
  std::string effort, format = "auto";
  fields.String("reasoning_effort", &effort);
  fields.String("reasoning_format", &format);
  if (format != "auto" && format != "none") {
    return fields.Fail("reasoning_format", "\"auto\" or \"none\"", Json(format));
  }
  out->split_reasoning = format == "auto";
  if (effort.empty()) return;
  Json& context = out->template_context;
  if (effort == "none" && !context.contains("enable_thinking")) context["enable_thinking"] = false;
  if (effort != "none" && !context.contains("reasoning_effort")) {
    context["reasoning_effort"] = effort;
  }
}

bool IsTokenIds(const Json& value) {
  return value.is_array() && !value.empty() && value[0].is_number();
}

void ReadTextPrompt(FieldReader& fields, const std::string& where, const Json& value,
                    uint32_t vocab_size, TextPrompt* out) {
  if (!IsTokenIds(value)) {
    if (!value.is_string()) return fields.Fail(where, "a string or an array of token ids", value);
    out->text = value.get_ref<const std::string&>();
    return;
  }
  std::vector<int32_t>& ids = out->tokens.emplace();
  for (const Json& item : value) {
    const bool fits = item.is_number_unsigned() && item.get<uint64_t>() < vocab_size;
    if (!fits) return fields.Fail(where, fmt::format("token ids below {}", vocab_size), item);
    ids.push_back(item.get<int32_t>());
  }
}

void ReadPrompts(FieldReader& fields, uint32_t vocab_size, ApiRequest* out) {
  if (fields.failed()) return;
  const Json* prompt = fields.Get("prompt");
  if (prompt == nullptr) {
    return fields.Fail(InvalidRequest(
        "prompt: expected a string or an array of token ids, found nothing", "prompt"));
  }
  const bool is_list = prompt->is_array() && !prompt->empty() && !IsTokenIds(*prompt);
  if (!is_list) {
    return ReadTextPrompt(fields, "prompt", *prompt, vocab_size, &out->prompts.emplace_back());
  }
  if (prompt->size() > kMaxPrompts) {
    return fields.Fail("prompt", fmt::format("at most {} prompts", kMaxPrompts), *prompt);
  }
  for (size_t i = 0; i < prompt->size() && !fields.failed(); ++i) {
    ReadTextPrompt(fields, fmt::format("prompt[{}]", i), (*prompt)[i], vocab_size,
                   &out->prompts.emplace_back());
  }
}

// An answer goes on with the assistant's last message, as llama.cpp and Anthropic do it, unless
// `continue_final_message` or `add_generation_prompt` (vLLM's fields) say otherwise.
void ReadContinuation(FieldReader& fields, ApiRequest* out) {
  bool generation_prompt = false, wanted = true;
  fields.Bool("add_generation_prompt", &generation_prompt);
  const bool asked = fields.Get("continue_final_message") != nullptr;
  fields.Bool("continue_final_message", &wanted);
  if (fields.failed()) return;
  const Json& last = out->template_context["messages"].back();
  const bool possible = last["role"] == "assistant" && !last.contains("tool_calls") &&
                        last["content"].get_ref<const std::string&>().find_first_not_of(" \t\r\n") !=
                            std::string::npos;
  if (asked && wanted && !possible) {
    return fields.Fail(InvalidRequest(
        "continue_final_message: expected a last message of the assistant with text and no tool calls",
        "continue_final_message"));
  }
  out->continues_message = possible && wanted && !generation_prompt;
}

}  // namespace

std::optional<ApiError> ReadChatRequest(const Json& body, const RequestDefaults& defaults,
                                        ApiRequest* out) {
  FieldReader fields(body);
  out->kind = ApiKind::kChat;
  ReadCommon(fields, defaults, out);
  ReadChatLogprobs(fields, &out->top_logprobs);
  out->template_context = Json::object();
  ReadTemplateVariables(fields, &out->template_context);
  ReadReasoning(fields, out);
  ReadMessages(fields, out);
  ReadTools(fields, out);
  if (!fields.failed()) ReadContinuation(fields, out);
  out->template_context["add_generation_prompt"] = !out->continues_message;
  return fields.error();
}

std::optional<ApiError> ParseChatRequest(std::string_view body, const RequestDefaults& defaults,
                                         ApiRequest* out) {
  Json json;
  if (std::optional<ApiError> error = ParseJsonBody(body, &json)) return error;
  return ReadChatRequest(json, defaults, out);
}

std::optional<ApiError> ParseCompletionRequest(std::string_view body,
                                               const RequestDefaults& defaults, ApiRequest* out) {
  Json json;
  if (std::optional<ApiError> error = ParseJsonBody(body, &json)) return error;
  FieldReader fields(json);
  out->kind = ApiKind::kCompletion;
  out->max_tokens = kCompletionDefaultTokens;
  if (AsksForSomething(fields.Get("tools"))) {
    fields.Fail(UnsupportedField("tools", "tools are for /v1/chat/completions"));
  }
  ReadCommon(fields, defaults, out);
  if (fields.Get("logprobs") != nullptr) {
    uint32_t count = 0;
    fields.Unsigned("logprobs", 0, kMaxTopLogprobs, &count);
    out->top_logprobs = count;
  }
  if (AsksForSomething(fields.Get("continue_final_message"))) {
    fields.Fail(UnsupportedField("continue_final_message", "for /v1/chat/completions"));
  }
  ReadPrompts(fields, defaults.vocab_size, out);
  return fields.error();
}

}  // namespace moraine
