// The bodies of POST /v1/chat/completions and /v1/completions, and what /v1/responses and /v1/messages are
// translated to.
//
// Unknown fields are tolerated: clients send hints that mean nothing here. Fields that would change
// the answer and cannot be honoured (audio, suffix, beam search, ...) are refused by name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/sampler.h"
#include "server/api_error.h"
#include "server/tool_definition.h"

namespace moraine {

enum class ResponseFormat : uint8_t { kText, kJsonObject, kJsonSchema };
enum class ApiKind : uint8_t { kChat, kCompletion };

// A raw prompt: ids if they were given, else the text.
struct TextPrompt {
  std::string text;
  std::optional<std::vector<int32_t>> tokens;
};

struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::string model;  // empty: not said
  bool stream = false;
  bool include_usage = false;
  bool return_progress = false;  // llama.cpp's field: chunks that say how far prefill is
  uint32_t choice_count = 1;     // "n": of each prompt
  // kChat: what the template gets, messages in normal form (content is a string, the arguments of tool
  // calls are objects).
  nlohmann::ordered_json template_context;
  // The arguments of the messages' tool calls as they were sent, in order: for templates that want text.
  std::vector<std::string> tool_arguments;
  std::vector<ToolDefinition> tools;  // none if tool_choice is "none"
  ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  bool split_reasoning = true;
  ResponseFormat response_format = ResponseFormat::kText;
  nlohmann::ordered_json response_schema;  // kJsonSchema
  // kChat: the last message is the assistant's, and the answer goes on where it ends.
  bool continues_message = false;
  std::vector<TextPrompt> prompts;  // kCompletion: at least one; each has choice_count choices

  SamplingOptions sampling;
  uint32_t max_tokens = 0;  // 0: up to the context's end
  std::vector<std::string> stop;
  bool ignore_eos = false;
  std::optional<uint32_t> top_logprobs;
};

struct RequestDefaults {
  SamplingOptions sampling;  // with the seed to use when the request has none
  uint32_t vocab_size = 0;
};

// Return the error, or nothing and the request in *out.
std::optional<ApiError> ParseChatRequest(std::string_view body, const RequestDefaults& defaults,
                                         ApiRequest* out);
std::optional<ApiError> ParseCompletionRequest(std::string_view body,
                                               const RequestDefaults& defaults, ApiRequest* out);
// The same of a body that is JSON already.
std::optional<ApiError> ReadChatRequest(const nlohmann::ordered_json& body,
                                        const RequestDefaults& defaults, ApiRequest* out);

// Replaces the arguments of the messages' tool calls by the text that was sent.
void UseArgumentText(ApiRequest* request);

}  // namespace moraine
