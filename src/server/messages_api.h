// POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, translated to a chat and back.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "server/api_request.h"
#include "server/response_writer.h"

namespace moraine {

// The body -> the body of a chat with the same meaning. `counts`: only the prompt is wanted, so
// max_tokens may be absent.
std::optional<ApiError> TranslateMessagesRequest(const nlohmann::ordered_json& body, bool counts,
                                                 nlohmann::ordered_json* chat);

struct MessagesWriterOptions {
  std::string id;  // "msg_..."
  std::string model;
  bool streams = false;
};

// Blocks are opened, filled and closed one after the other: thinking, text, tool_use.
class MessagesWriter final : public ResponseWriter {
 public:
  MessagesWriter(MessagesWriterOptions options, std::vector<std::unique_ptr<OutputParser>> parsers);

  std::string FullBody() override;
  std::string StreamError(const ApiError& error) override;

 protected:
  std::string StreamStart() override;
  std::string StreamDeltas(uint32_t choice, std::span<const OutputDelta> deltas,
                           const GenerationEvent* event) override;
  std::string StreamFinish(uint32_t choice) override;
  std::string StreamEnd() override;

 private:
  using Json = nlohmann::ordered_json;

  Json Message() const;
  Json UsageBody() const;
  std::string Close();

  const MessagesWriterOptions options_;
  std::optional<OutputDelta::Kind> open_;  // of the block that is being written
  uint32_t block_ = 0;                     // its index
};

}  // namespace moraine
