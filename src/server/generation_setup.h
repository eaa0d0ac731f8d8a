// From a parsed request to what the engine gets and what reads its output.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "server/api_request.h"
#include "server/generation_service.h"
#include "server/output_parser.h"

namespace moraine {

struct GenerationSetup {
  std::vector<GenerationRequest> generations;  // one a choice; all but on_event
  std::vector<std::unique_ptr<OutputParser>> parsers;
};

// Renders and tokenizes the prompt: up to seconds. Takes the prompt out of `request`. `random_bits` makes
// the ids of tool calls, later and on another thread too.
std::optional<ApiError> SetUpGeneration(const GenerationService& service, ApiRequest* request,
                                        std::function<uint64_t()> random_bits, GenerationSetup* out);

// The prompt of a chat. Tool calls of the messages go in as objects, or as text if the template does not
// take them so.
Result<RenderedPrompt> RenderChatPrompt(const GenerationService& service, ApiRequest* request);

}  // namespace moraine
