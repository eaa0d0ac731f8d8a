// The routes around text and the model: tokens, templates, properties. Fields are llama.cpp's, and vLLM's
// where it has the same route.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_error.h"
#include "server/api_handler.h"
#include "server/generation_service.h"

namespace moraine {

// {"content"} (or "prompt", or "messages" of a chat), "add_special", "parse_special", "with_pieces".
std::optional<ApiError> Tokenize(const GenerationService& service, std::string_view body,
                                 std::string* answer);
// {"tokens"}.
std::optional<ApiError> Detokenize(const GenerationService& service, std::string_view body,
                                   std::string* answer);
// The body of /v1/messages -> {"input_tokens"}.
std::optional<ApiError> CountTokens(const GenerationService& service, std::string_view body,
                                    std::string* answer);
// The body of a chat -> {"prompt"}: what the model would be given.
std::optional<ApiError> ApplyTemplate(const GenerationService& service, std::string_view body,
                                      std::string* answer);

std::string PropsBody(const GenerationService& service, const std::string& version);
std::string SlotsBody(const std::vector<SlotReport>& slots);

}  // namespace moraine
