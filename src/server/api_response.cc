#include "server/api_response.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  // Text is valid UTF-8 by the engine's contract; model names come from the file system.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string DataEvent(const Json& json) { return "data: " + Dump(json) + "\n\n"; }

// JSON has no infinity; OpenAI writes this for a token of probability zero.
double FiniteLogprob(float value) { return std::max(static_cast<double>(value), -9999.0); }

const char* FinishReasonText(FinishReason reason) {
  // A cancelled or failed generation never gets here: it ends in an error.
  return reason == FinishReason::kLength ? "length" : "stop";
}

Json UsageOf(const GenerationTimings& timings) {
  Json usage;
  usage["prompt_tokens"] = timings.prompt_tokens;
  usage["completion_tokens"] = timings.completion_tokens;
  usage["total_tokens"] = uint64_t{timings.prompt_tokens} + timings.completion_tokens;
  usage["prompt_tokens_details"]["cached_tokens"] = timings.cached_tokens;
  return usage;
}

Json SpelledToken(const std::string& bytes, float logprob) {
  Json entry;
  entry["token"] = ToValidUtf8(bytes);
  entry["logprob"] = FiniteLogprob(logprob);
  entry["bytes"] = Json::array();
  for (const char c : bytes) entry["bytes"].push_back(static_cast<uint8_t>(c));
  return entry;
}

// OpenAI counts characters (code points), not bytes.
size_t CharacterCount(std::string_view utf8) {
  return static_cast<size_t>(
      std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

Json EmptyLogprobs(ApiKind kind) {
  Json all;
  if (kind == ApiKind::kChat) {
    all["content"] = Json::array();
    all["refusal"] = nullptr;
    return all;
  }
  for (const char* name : {"tokens", "token_logprobs", "top_logprobs", "text_offset"}) {
    all[name] = Json::array();
  }
  return all;
}

}  // namespace

CompletionWriter::CompletionWriter(CompletionIdentity identity, bool include_usage,
                                   bool with_logprobs, TokenBytes token_bytes)
    : identity_(std::move(identity)),
      include_usage_(include_usage),
      with_logprobs_(with_logprobs),
      token_bytes_(std::move(token_bytes)),
      logprobs_(EmptyLogprobs(identity_.kind)) {}

Json CompletionWriter::Chunk(Json choices) const {
  Json chunk;
  chunk["id"] = identity_.id;
  chunk["object"] =
      identity_.kind == ApiKind::kChat ? "chat.completion.chunk" : "text_completion";
  chunk["created"] = identity_.created_unix;
  chunk["model"] = identity_.model;
  chunk["system_fingerprint"] = identity_.fingerprint;
  chunk["choices"] = std::move(choices);
  if (include_usage_) chunk["usage"] = nullptr;
  return chunk;
}

void CompletionWriter::AppendLogprobs(const GenerationEvent& event, Json* all) {
  if (!event.logprobs) return;
  const std::string bytes = token_bytes_(event.token);
  if (identity_.kind == ApiKind::kChat) {
    Json entry = SpelledToken(bytes, event.logprobs->chosen);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& top : event.logprobs->top) {
      entry["top_logprobs"].push_back(SpelledToken(token_bytes_(top.token), top.logprob));
    }
    (*all)["content"].push_back(std::move(entry));
    return;
  }
  (*all)["tokens"].push_back(ToValidUtf8(bytes));
  (*all)["token_logprobs"].push_back(FiniteLogprob(event.logprobs->chosen));
  Json top = Json::object();
  for (const TokenLogprob& candidate : event.logprobs->top) {
    top[ToValidUtf8(token_bytes_(candidate.token))] = FiniteLogprob(candidate.logprob);
  }
  (*all)["top_logprobs"].push_back(std::move(top));
  (*all)["text_offset"].push_back(text_offset_);
}

Json CompletionWriter::LogprobsOf(const GenerationEvent& event) {
  if (!with_logprobs_ || !event.logprobs) return nullptr;
  Json all = EmptyLogprobs(identity_.kind);
  AppendLogprobs(event, &all);
  return all;
}

// `event` gives the logprobs (null: none). Chat: `text` goes into the delta, which is empty without.
Json CompletionWriter::Choice(std::string text, const GenerationEvent* event,
                              const char* finish_reason) {
  Json choice;
  if (identity_.kind == ApiKind::kCompletion) choice["text"] = text;
  choice["index"] = 0;
  if (identity_.kind == ApiKind::kChat) {
    choice["delta"] = Json::object();
    if (finish_reason == nullptr) choice["delta"]["content"] = std::move(text);
  }
  choice["logprobs"] = event == nullptr ? Json() : LogprobsOf(*event);
  choice["finish_reason"] = finish_reason == nullptr ? Json() : Json(finish_reason);
  return choice;
}

std::string CompletionWriter::Start() const {
  if (identity_.kind != ApiKind::kChat) return "";
  Json choice;
  choice["index"] = 0;
  choice["delta"]["role"] = "assistant";
  choice["delta"]["content"] = "";
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  return DataEvent(Chunk(Json::array({std::move(choice)})));
}

std::string CompletionWriter::Token(const GenerationEvent& event) {
  if (event.text.empty() && !(with_logprobs_ && event.logprobs)) return "";
  std::string data = DataEvent(Chunk(Json::array({Choice(event.text, &event, nullptr)})));
  text_offset_ += CharacterCount(event.text);
  return data;
}

std::string CompletionWriter::Finish(const GenerationEvent& event) {
  std::string data = event.text.empty() ? "" : Token(event);
  data += DataEvent(Chunk(Json::array({Choice("", nullptr, FinishReasonText(event.finish_reason))})));
  if (include_usage_) {
    // "choices" must be there and empty: without it, or with null, every client breaks.
    Json chunk = Chunk(Json::array());
    chunk["usage"] = UsageOf(event.timings);
    data += DataEvent(chunk);
  }
  return data + "data: [DONE]\n\n";
}

void CompletionWriter::Collect(const GenerationEvent& event) {
  if (with_logprobs_) AppendLogprobs(event, &logprobs_);
  text_ += event.text;
  text_offset_ += CharacterCount(event.text);
}

std::string CompletionWriter::FullBody(const GenerationEvent& finished) const {
  Json choice;
  if (identity_.kind == ApiKind::kCompletion) choice["text"] = text_;
  choice["index"] = 0;
  if (identity_.kind == ApiKind::kChat) {
    choice["message"]["role"] = "assistant";
    choice["message"]["content"] = text_;
    choice["message"]["refusal"] = nullptr;
  }
  choice["logprobs"] = with_logprobs_ ? logprobs_ : Json();
  choice["finish_reason"] = FinishReasonText(finished.finish_reason);
  Json body;
  body["id"] = identity_.id;
  body["object"] = identity_.kind == ApiKind::kChat ? "chat.completion" : "text_completion";
  body["created"] = identity_.created_unix;
  body["model"] = identity_.model;
  body["system_fingerprint"] = identity_.fingerprint;
  body["choices"] = Json::array({std::move(choice)});
  body["usage"] = UsageOf(finished.timings);
  return Dump(body);
}

std::string StreamError(const ApiError& error) { return "data: " + error.ToJson() + "\n\n"; }

std::string StreamPing(uint32_t prefilled_tokens, uint32_t prompt_tokens) {
  if (prompt_tokens == 0) return ": ping\n\n";
  return fmt::format(": ping, prefill {}/{}\n\n", prefilled_tokens, prompt_tokens);
}

namespace {

Json ModelObject(const ModelInfo& info) {
  Json model;
  model["id"] = info.name;
  model["object"] = "model";
  model["created"] = info.created_unix;
  model["owned_by"] = "moraine";
  // Not OpenAI's, but what vLLM calls it; clients that trim histories read it.
  if (info.max_context > 0) model["max_model_len"] = info.max_context;
  return model;
}

}  // namespace

std::string ModelBody(const ModelInfo& info) { return Dump(ModelObject(info)); }

std::string ModelListBody(const ModelInfo& info) {
  Json list;
  list["object"] = "list";
  list["data"] = Json::array({ModelObject(info)});
  return Dump(list);
}

}  // namespace moraine
