// Bodies of the four APIs, and what happens to fields that come through: the
// first byte chooses the endpoint, the rest is the body. Any input must be accepted or refused with an
// error that is itself valid JSON.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/check.h"
#include "server/access.h"
#include "server/api_request.h"
#include "server/messages_api.h"
#include "server/output_grammar.h"
#include "server/responses_api.h"

using namespace moraine;

namespace {

void CheckAccepted(const ApiRequest& request, uint32_t vocab_size) {
  CHECK(request.stop.size() <= 16, "too many stop strings");
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    CHECK(token >= 0 && static_cast<uint32_t>(token) < vocab_size, "token of logit_bias");
    CHECK(bias >= -100 && bias <= 100, "logit_bias");
  }
  CHECK(request.sampling.temperature >= 0 && request.sampling.temperature <= 2, "temperature");
  CHECK(request.sampling.top_p > 0 && request.sampling.top_p <= 1, "top_p");
  if (request.kind == ApiKind::kChat) {
    CHECK(!request.template_context["messages"].empty(), "no messages");
    for (const auto& message : request.template_context["messages"]) {
      CHECK(message["content"].is_string(), "content is not in normal form");
    }
    (void)request.template_context.dump();  // throws on invalid UTF-8
    // Schemas and tools, in all formats: a grammar or an error.
    for (const OutputFormat& format : OutputFormats()) {
      if (!format.has_tools() && !request.tools.empty()) continue;
      std::shared_ptr<const Grammar> grammar;
      const auto error = MakeOutputGrammar(request, {.format = &format, .may_reason = true}, &grammar);
      CHECK(!error || nlohmann::json::accept(error->ToJson()), "an error must be valid JSON");
    }
  }
  CHECK(request.prompts.empty() == (request.kind == ApiKind::kChat), "prompts");
  for (const TextPrompt& prompt : request.prompts) {
    for (const int32_t token : prompt.tokens.value_or(std::vector<int32_t>())) {
      CHECK(token >= 0 && static_cast<uint32_t>(token) < vocab_size, "token of the prompt");
    }
  }
}

// A head made of the input: nothing that comes back may break the response's lines.
void FuzzHead(std::string_view text) {
  AccessOptions options;
  options.api_key = "key";
  options.cors_origins = {"https://a.example"};
  const AccessPolicy policy(options);
  RequestHead head;
  head.method = "OPTIONS";
  head.target = std::string(text);
  for (const char* name : {"host", "authorization", "x-api-key", "access-control-request-headers"}) {
    head.fields.push_back({name, std::string(text)});
  }
  head.fields.push_back({"origin", "https://a.example"});
  if (const auto error = policy.CheckHost(head)) {
    CHECK(nlohmann::json::accept(error->ToJson()), "an error must be valid JSON");
  }
  (void)policy.CheckKey(head);
  (void)SerializeResponse(policy.Preflight(head, "POST"), {});
  (void)head.QueryValue("layers");
  CHECK(PercentDecode(head.path()).size() <= text.size(), "decoding grew");
}

// The other two APIs: what they make of a body must be a chat or an error.
void FuzzTranslation(std::string_view body, bool responses) {
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(body, nullptr, false);
  if (!json.is_object()) return;
  nlohmann::ordered_json chat;
  const auto error = responses ? TranslateResponsesRequest(json, &chat)
                               : TranslateMessagesRequest(json, /*counts=*/false, &chat);
  if (error) {
    CHECK(nlohmann::json::accept(error->ToJson()), "an error must be valid JSON");
    return;
  }
  ApiRequest request;
  (void)ReadChatRequest(chat, {.sampling = {}, .vocab_size = 1000}, &request);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 5 == 2) {
    FuzzHead(body);
    return 0;
  }
  if (data[0] % 5 > 2) {
    FuzzTranslation(body, /*responses=*/data[0] % 5 == 3);
    return 0;
  }
  RequestDefaults defaults;
  defaults.vocab_size = 1000;
  ApiRequest request;
  const bool chat = data[0] % 5 == 0;
  const auto error = chat ? ParseChatRequest(body, defaults, &request)
                          : ParseCompletionRequest(body, defaults, &request);
  if (!error) {
    CheckAccepted(request, defaults.vocab_size);
    return 0;
  }
  CHECK(error->http_status == 400, "a bad body is the client's fault");
  CHECK(!error->message.empty() && error->message.size() < 20'000, "message");
  CHECK(nlohmann::json::accept(error->ToJson()), "an error must be valid JSON");
  return 0;
}
