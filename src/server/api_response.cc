#include "server/api_response.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;
using Kind = OutputDelta::Kind;

std::string DataEvent(const Json& json) { return "data: " + DumpJson(json) + "\n\n"; }

// JSON has no infinity; OpenAI writes this for a token of probability zero.
double FiniteLogprob(float value) { return std::max(static_cast<double>(value), -9999.0); }

const char* FinishReasonText(const ChoiceAnswer& answer) {
  // A cancelled or failed generation never gets here: it ends in an error.
  if (answer.finish_reason == FinishReason::kLength) return "length";
  return answer.tool_calls.empty() ? "stop" : "tool_calls";
}

Json ToolCallHead(size_t index, const std::string& id, const std::string& name) {
  Json call;
  call["index"] = index;
  call["id"] = id;
  call["type"] = "function";
  call["function"]["name"] = name;
  call["function"]["arguments"] = "";
  return call;
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

std::string DumpJson(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

CompletionWriter::CompletionWriter(CompletionWriterOptions options,
                                   std::vector<std::unique_ptr<OutputParser>> parsers)
    : ResponseWriter(std::move(parsers), options.streams), options_(std::move(options)) {
  states_.resize(choices().size());
  for (ChoiceState& state : states_) state.logprobs = EmptyLogprobs(options_.identity.kind);
}

Json CompletionWriter::UsageBody() const {
  const UsageTotals totals = Usage();
  Json usage;
  usage["prompt_tokens"] = totals.prompt_tokens;
  usage["completion_tokens"] = totals.completion_tokens;
  usage["total_tokens"] = totals.prompt_tokens + totals.completion_tokens;
  usage["prompt_tokens_details"]["cached_tokens"] = totals.cached_tokens;
  if (totals.reasoning_tokens > 0) {
    usage["completion_tokens_details"]["reasoning_tokens"] = totals.reasoning_tokens;
  }
  return usage;
}

Json CompletionWriter::Chunk(Json choices) const {
  const CompletionIdentity& identity = options_.identity;
  Json chunk;
  chunk["id"] = identity.id;
  chunk["object"] = is_chat() ? "chat.completion.chunk" : "text_completion";
  chunk["created"] = identity.created_unix;
  chunk["model"] = identity.model;
  chunk["system_fingerprint"] = identity.fingerprint;
  chunk["choices"] = std::move(choices);
  if (options_.include_usage) chunk["usage"] = nullptr;
  return chunk;
}

void CompletionWriter::AppendLogprobs(uint32_t choice, const GenerationEvent& event,
                                      Json* all) const {
  const std::string bytes = options_.token_bytes(event.token);
  if (is_chat()) {
    Json entry = SpelledToken(bytes, event.logprobs->chosen);
    entry["top_logprobs"] = Json::array();
    for (const TokenLogprob& top : event.logprobs->top) {
      entry["top_logprobs"].push_back(SpelledToken(options_.token_bytes(top.token), top.logprob));
    }
    (*all)["content"].push_back(std::move(entry));
    return;
  }
  (*all)["tokens"].push_back(ToValidUtf8(bytes));
  (*all)["token_logprobs"].push_back(FiniteLogprob(event.logprobs->chosen));
  Json top = Json::object();
  for (const TokenLogprob& candidate : event.logprobs->top) {
    top[ToValidUtf8(options_.token_bytes(candidate.token))] = FiniteLogprob(candidate.logprob);
  }
  (*all)["top_logprobs"].push_back(std::move(top));
  (*all)["text_offset"].push_back(states_[choice].text_offset);
}

Json CompletionWriter::LogprobsOf(uint32_t choice, const GenerationEvent& event) const {
  Json all = EmptyLogprobs(options_.identity.kind);
  AppendLogprobs(choice, event, &all);
  return all;
}

// `delta` is chat's, `text` the other endpoint's.
Json CompletionWriter::ChoiceChunk(uint32_t choice, Json delta, std::string text, Json logprobs,
                                   const char* finish_reason) const {
  Json entry;
  if (!is_chat()) entry["text"] = std::move(text);
  entry["index"] = choice;
  if (is_chat()) entry["delta"] = std::move(delta);
  entry["logprobs"] = std::move(logprobs);
  entry["finish_reason"] = finish_reason == nullptr ? Json() : Json(finish_reason);
  return Chunk(Json::array({std::move(entry)}));
}

std::string CompletionWriter::StreamStart() {
  if (!is_chat()) return "";  // which has no roles
  std::string data;
  for (uint32_t choice = 0; choice < choices().size(); ++choice) {
    Json delta;
    delta["role"] = "assistant";
    delta["content"] = "";
    data += DataEvent(ChoiceChunk(choice, std::move(delta), "", nullptr, nullptr));
  }
  return data;
}

std::string CompletionWriter::StreamProgress(const GenerationEvent& event) {
  if (!options_.with_progress) return "";
  Json chunk = Chunk(Json::array());
  chunk["prompt_progress"]["total"] = event.timings.prompt_tokens;
  chunk["prompt_progress"]["cache"] = event.timings.cached_tokens;
  chunk["prompt_progress"]["processed"] = event.prefilled_tokens;
  return DataEvent(chunk);
}

void CompletionWriter::NoteToken(uint32_t choice, const GenerationEvent& event) {
  if (streams() || !options_.with_logprobs || !event.logprobs) return;
  AppendLogprobs(choice, event, &states_[choice].logprobs);
  states_[choice].text_offset += CharacterCount(event.text);
}

// Log-probabilities go with the first chunk of their token, or with an empty one where its text is
// still held back.
std::string CompletionWriter::StreamDeltas(uint32_t choice, std::span<const OutputDelta> deltas,
                                           const GenerationEvent* event) {
  ChoiceState& state = states_[choice];
  Json logprobs;
  if (event != nullptr && options_.with_logprobs && event->logprobs) {
    logprobs = LogprobsOf(choice, *event);
  }
  std::string data;
  for (const OutputDelta& delta : deltas) {
    Json body = Json::object();
    switch (delta.kind) {
      case Kind::kContent: body["content"] = delta.text; break;
      case Kind::kReasoning: body["reasoning_content"] = delta.text; break;
      case Kind::kToolCall:
        body["tool_calls"] = Json::array({ToolCallHead(state.tool_calls++, delta.id, delta.name)});
        break;
      case Kind::kToolArguments: {
        Json call;
        call["index"] = state.tool_calls - 1;
        call["function"]["arguments"] = delta.text;
        body["tool_calls"] = Json::array({std::move(call)});
        break;
      }
    }
    data += DataEvent(ChoiceChunk(choice, std::move(body), delta.text,
                                  std::exchange(logprobs, nullptr), nullptr));
    state.text_offset += CharacterCount(delta.text);
  }
  if (!logprobs.is_null()) {
    Json body;
    body["content"] = "";
    data += DataEvent(ChoiceChunk(choice, std::move(body), "", std::move(logprobs), nullptr));
  }
  return data;
}

std::string CompletionWriter::StreamFinish(uint32_t choice) {
  return DataEvent(ChoiceChunk(choice, Json::object(), "", nullptr,
                               FinishReasonText(choices()[choice])));
}

std::string CompletionWriter::StreamEnd() {
  std::string data;
  if (options_.include_usage) {
    // "choices" must be there and empty: without it, or with null, every client breaks.
    Json chunk = Chunk(Json::array());
    chunk["usage"] = UsageBody();
    data = DataEvent(chunk);
  }
  return data + "data: [DONE]\n\n";
}

std::string CompletionWriter::StreamError(const ApiError& error) {
  return "data: " + error.ToJson() + "\n\n";
}

namespace {

Json MessageOf(const ChoiceAnswer& answer) {
  Json message;
  message["role"] = "assistant";
  // null is what OpenAI sends beside calls.
  message["content"] =
      answer.content.empty() && !answer.tool_calls.empty() ? Json() : Json(answer.content);
  if (!answer.reasoning.empty()) message["reasoning_content"] = answer.reasoning;
  message["refusal"] = nullptr;
  for (const ToolCall& call : answer.tool_calls) {
    Json entry;
    entry["id"] = call.id;
    entry["type"] = "function";
    entry["function"]["name"] = call.name;
    entry["function"]["arguments"] = call.arguments;
    message["tool_calls"].push_back(std::move(entry));
  }
  return message;
}

}  // namespace

std::string CompletionWriter::FullBody() {
  const CompletionIdentity& identity = options_.identity;
  Json list = Json::array();
  for (uint32_t i = 0; i < choices().size(); ++i) {
    Json choice;
    if (!is_chat()) choice["text"] = choices()[i].content;
    choice["index"] = i;
    if (is_chat()) choice["message"] = MessageOf(choices()[i]);
    choice["logprobs"] = options_.with_logprobs ? states_[i].logprobs : Json();
    choice["finish_reason"] = FinishReasonText(choices()[i]);
    list.push_back(std::move(choice));
  }
  Json body;
  body["id"] = identity.id;
  body["object"] = is_chat() ? "chat.completion" : "text_completion";
  body["created"] = identity.created_unix;
  body["model"] = identity.model;
  body["system_fingerprint"] = identity.fingerprint;
  body["choices"] = std::move(list);
  body["usage"] = UsageBody();
  return DumpJson(body);
}

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

std::string ModelBody(const ModelInfo& info) { return DumpJson(ModelObject(info)); }

std::string ModelListBody(const ModelInfo& info) {
  Json list;
  list["object"] = "list";
  list["data"] = Json::array({ModelObject(info)});
  return DumpJson(list);
}

}  // namespace moraine
