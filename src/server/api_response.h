// What goes back from /v1/chat/completions and /v1/completions, as OpenAI's clients parse it.
//
// A chat stream is: for each choice a chunk with delta {"role","content":""}, chunks with content,
// reasoning_content or tool_calls, a chunk with the finish_reason; then a chunk with "choices":[] and the
// usage if it was asked for, and `data: [DONE]`. Leaving out any of these breaks a published client. id
// and created are the same in all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "server/api_request.h"
#include "server/response_writer.h"

namespace moraine {

struct CompletionIdentity {
  ApiKind kind = ApiKind::kChat;
  std::string id;  // "chatcmpl-..." or "cmpl-..."
  int64_t created_unix = 0;
  std::string model;
  std::string fingerprint;  // names the version of the server
};

struct CompletionWriterOptions {
  CompletionIdentity identity;
  bool streams = false;
  bool include_usage = false;
  bool with_logprobs = false;
  bool with_progress = false;  // chunks with "prompt_progress" during prefill
  // Spells tokens in log-probabilities.
  std::function<std::string(int32_t)> token_bytes;
};

class CompletionWriter final : public ResponseWriter {
 public:
  CompletionWriter(CompletionWriterOptions options,
                   std::vector<std::unique_ptr<OutputParser>> parsers);

  std::string FullBody() override;
  std::string StreamError(const ApiError& error) override;

 protected:
  std::string StreamStart() override;
  std::string StreamProgress(const GenerationEvent& event) override;
  std::string StreamDeltas(uint32_t choice, std::span<const OutputDelta> deltas,
                           const GenerationEvent* event) override;
  std::string StreamFinish(uint32_t choice) override;
  std::string StreamEnd() override;
  void NoteToken(uint32_t choice, const GenerationEvent& event) override;

 private:
  using Json = nlohmann::ordered_json;

  bool is_chat() const { return options_.identity.kind == ApiKind::kChat; }
  Json Chunk(Json choices) const;
  Json ChoiceChunk(uint32_t choice, Json delta, std::string text, Json logprobs,
                   const char* finish_reason) const;
  Json LogprobsOf(uint32_t choice, const GenerationEvent& event) const;
  void AppendLogprobs(uint32_t choice, const GenerationEvent& event, Json* all) const;
  Json UsageBody() const;

  const CompletionWriterOptions options_;
  struct ChoiceState {
    size_t text_offset = 0;  // characters so far, for text_offset of legacy logprobs
    size_t tool_calls = 0;   // sent so far
    Json logprobs;           // of the whole answer
  };
  std::vector<ChoiceState> states_;
};

// A comment: keeps proxies and clients (Node drops a silent stream after 300 s) from giving up, and
// tells a curious reader how far prefill is.
std::string StreamPing(uint32_t prefilled_tokens, uint32_t prompt_tokens);

std::string ModelBody(const ModelInfo& info);
std::string ModelListBody(const ModelInfo& info);

// JSON text; what is not UTF-8 (model names come from the file system) is replaced.
std::string DumpJson(const nlohmann::ordered_json& json);

}  // namespace moraine
