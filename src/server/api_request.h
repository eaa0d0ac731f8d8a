// The bodies of POST /v1/chat/completions and /v1/completions.
//
// Unknown fields are tolerated: clients send hints that mean nothing here. Fields that would change
// the answer and cannot be honoured (tools, response_format, n > 1, audio, ...) are refused by name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/sampler.h"
#include "server/api_error.h"

namespace moraine {

enum class ApiKind : uint8_t { kChat, kCompletion };

struct ApiRequest {
  ApiKind kind = ApiKind::kChat;
  std::string model;  // empty: not said
  bool stream = false;
  bool include_usage = false;
  // kChat: what the template gets, messages in normal form (content is a string).
  nlohmann::ordered_json template_context;
  // kCompletion: ids if they were given, else the text.
  std::string prompt_text;
  std::optional<std::vector<int32_t>> prompt_tokens;

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

}  // namespace moraine
