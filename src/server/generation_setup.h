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
  // One a choice, prompt by prompt; all but on_event.
  std::vector<GenerationRequest> generations;
  std::vector<std::unique_ptr<OutputParser>> parsers;
};

// Renders and tokenizes the prompt: up to seconds. Takes the prompt out of `request`. `random_bits` makes
// the ids of tool calls, later and on another thread too.
std::optional<ApiError> SetUpGeneration(const GenerationService& service, ApiRequest* request,
                                        std::function<uint64_t()> random_bits, GenerationSetup* out);

// The prompt of a chat. Tool calls of the messages go in as objects, or as text if the template does not
// take them so. If the last message is to be continued, the prompt ends with its text: kUnsupported if
// the template does not repeat it.
Result<RenderedPrompt> RenderChatPrompt(const GenerationService& service, ApiRequest* request);

}  // namespace moraine
