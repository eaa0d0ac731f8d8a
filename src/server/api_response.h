// What goes back: completion objects, and the chunks of a stream, as OpenAI's clients parse them.
//
// A chat stream is: a chunk with delta {"role","content":""}, one chunk a piece of text, a chunk with
// the finish_reason, a chunk with "choices":[] and the usage if it was asked for, `data: [DONE]`.
// Leaving out any of these breaks a published client. id and created are the same in all of them.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/engine.h"
#include "server/api_error.h"
#include "server/api_request.h"

namespace moraine {

struct CompletionIdentity {
  ApiKind kind = ApiKind::kChat;
  std::string id;  // "chatcmpl-..." or "cmpl-..."
  int64_t created_unix = 0;
  std::string model;
  std::string fingerprint;  // names the version of the server
};

// Builds the parts of one answer, in order. Thread-compatible.
class CompletionWriter {
 public:
  using TokenBytes = std::function<std::string(int32_t)>;
  // `token_bytes` spells tokens in log-probabilities.
  CompletionWriter(CompletionIdentity identity, bool include_usage, bool with_logprobs,
                   TokenBytes token_bytes);

  // The stream's events, each "data: {...}\n\n".
  std::string Start() const;  // empty for kCompletion, which has no roles
  // Empty if there is nothing to say: no text yet (UTF-8 or a stop string held back), no logprobs.
  std::string Token(const GenerationEvent& event);
  // The rest of the text, finish chunk, usage chunk, [DONE].
  std::string Finish(const GenerationEvent& event);

  // The same without a stream: collects what Token and Finish are given.
  void Collect(const GenerationEvent& event);
  std::string FullBody(const GenerationEvent& finished) const;

 private:
  nlohmann::ordered_json Chunk(nlohmann::ordered_json choices) const;
  nlohmann::ordered_json Choice(std::string text, const GenerationEvent* event,
                                const char* finish_reason);
  nlohmann::ordered_json LogprobsOf(const GenerationEvent& event);
  void AppendLogprobs(const GenerationEvent& event, nlohmann::ordered_json* all);

  CompletionIdentity identity_;
  bool include_usage_;
  bool with_logprobs_;
  TokenBytes token_bytes_;
  size_t text_offset_ = 0;  // characters sent so far, for text_offset of legacy logprobs
  std::string text_;
  nlohmann::ordered_json logprobs_;
};

// `data: {"error":...}`: a failure after the stream has begun. Every client turns it into an APIError.
std::string StreamError(const ApiError& error);
// A comment: keeps proxies and clients (Node drops a silent stream after 300 s) from giving up, and
// tells a curious reader how far prefill is.
std::string StreamPing(uint32_t prefilled_tokens, uint32_t prompt_tokens);

std::string ModelBody(const ModelInfo& info);
std::string ModelListBody(const ModelInfo& info);

}  // namespace moraine
