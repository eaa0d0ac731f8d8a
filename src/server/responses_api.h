// POST /v1/responses: OpenAI's newer API, translated to a chat and back.
//
// Nothing is stored: a conversation is sent whole with every request, and previous_response_id,
// conversation and background are refused by name.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "server/api_request.h"
#include "server/response_writer.h"

namespace moraine {

// The body -> the body of a chat with the same meaning.
std::optional<ApiError> TranslateResponsesRequest(const nlohmann::ordered_json& body,
                                                  nlohmann::ordered_json* chat);

struct ResponsesWriterOptions {
  std::string id;  // "resp_..."
  int64_t created_unix = 0;
  std::string model;
  bool streams = false;
  nlohmann::ordered_json request;  // what the answer repeats: instructions, tools, temperature, ...
};

// Events of a stream have a number; items are opened, filled and closed one after the other.
class ResponsesWriter final : public ResponseWriter {
 public:
  ResponsesWriter(ResponsesWriterOptions options,
                  std::vector<std::unique_ptr<OutputParser>> parsers);

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

  std::string Event(const char* type, Json fields);
  std::string ItemEvent(const char* type, Json fields);
  std::string Open(const OutputDelta& delta);
  std::string Append(const std::string& text);
  std::string Close();
  Json Response(const char* status, Json output) const;
  Json NewItem(OutputDelta::Kind kind, const OutputDelta& call, const std::string& text,
               const char* status) const;
  const char* FinalStatus() const;

  const ResponsesWriterOptions options_;
  uint64_t sequence_ = 0;
  Json items_;               // of the stream, closed ones
  std::optional<OutputDelta> open_;  // the item that is being written; its text so far
};

}  // namespace moraine
