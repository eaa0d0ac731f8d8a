// The wire of OpenAI's API, to the byte, against a scripted service.
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "http_server_fixture.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

class OpenAiApiTest : public HttpServerTest {};

TEST_F(OpenAiApiTest, ChatStreamIsExactToTheByte) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions",
              ChatBody("hi", R"(,"stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"),
            "HTTP/1.1 200 OK\r\n"
            "date: Tue, 14 Nov 2023 22:13:21 GMT\r\n"
            "server: moraine\r\n"
            "content-type: text/event-stream; charset=utf-8\r\n"
            "x-content-type-options: nosniff\r\n"
            "cache-control: no-cache\r\n"
            "x-accel-buffering: no\r\n"
            "x-request-id: chatcmpl-0000000000abcdef\r\n"
            "transfer-encoding: chunked\r\n"
            "connection: keep-alive\r\n\r\n");
  const std::string events = Unchunk(client.ReadUntil("0\r\n\r\n"));
  const auto chunk = [](const std::string& choices, const std::string& usage) {
    return R"(data: {"id":"chatcmpl-0000000000abcdef","object":"chat.completion.chunk",)"
           R"("created":1700000001,"model":"fake model","system_fingerprint":"moraine","choices":[)" +
           choices + R"(],"usage":)" + usage + "}\n\n";
  };
  const auto delta = [&](const std::string& inner, const std::string& reason) {
    return chunk(R"({"index":0,"delta":{)" + inner + R"(},"logprobs":null,"finish_reason":)" +
                     reason + "}",
                 "null");
  };
  EXPECT_EQ(events,
            delta(R"("role":"assistant","content":"")", "null") + delta(R"("content":"Hello")", "null") +
                delta(R"("content":",")", "null") + delta(R"("content":" wörld")", "null") +
                delta(R"("content":"!")", "null") + delta("", "\"stop\"") +
                chunk("", R"({"prompt_tokens":9,"completion_tokens":5,"total_tokens":14,)"
                          R"("prompt_tokens_details":{"cached_tokens":3}})") +
                "data: [DONE]\n\n");
  client.Get("/health");  // the connection goes on
  EXPECT_EQ(client.Read().body, R"({"status":"ok"})");
}

TEST_F(OpenAiApiTest, CompletionStreamIsExactToTheByte) {
  Start();
  RawClient client(port());
  client.Post("/v1/completions", R"({"prompt":"a","stream":true,"max_tokens":1,"logprobs":1})");
  client.ReadUntil("\r\n\r\n");
  const std::string head =
      R"(data: {"id":"cmpl-0000000000abcdef","object":"text_completion","created":1700000001,)"
      R"("model":"fake model","system_fingerprint":"moraine","choices":[)";
  EXPECT_EQ(Unchunk(client.ReadUntil("0\r\n\r\n")),
            head +
                R"({"text":"Hello","index":0,"logprobs":{"tokens":["Hello"],"token_logprobs":[-0.5],)"
                R"("top_logprobs":[{"Hello":-0.5}],"text_offset":[0]},"finish_reason":null}]})"
                "\n\n" +
                head + R"({"text":"","index":0,"logprobs":null,"finish_reason":"length"}]})"
                       "\n\ndata: [DONE]\n\n");
}

TEST_F(OpenAiApiTest, WholeAnswers) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("hi", R"(,"logprobs":true,"top_logprobs":1,"max_tokens":4)"));
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("content-type: application/json\r\n"), std::string::npos);
  ordered_json body = ordered_json::parse(response.body);
  EXPECT_EQ(body["object"], "chat.completion");
  EXPECT_EQ(body["choices"][0]["message"].dump(),
            R"({"role":"assistant","content":"Hello, wörld","refusal":null})");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  // The fourth token is half a character: no text, but its log-probability and bytes are there.
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"][3].dump(),
            R"({"token":"�","logprob":-0.5,"bytes":[240,159],)"
            R"("top_logprobs":[{"token":"�","logprob":-0.5,"bytes":[240,159]}]})");
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);

  client.Post("/v1/completions", R"({"prompt":[104,105],"logprobs":0,"max_tokens":50})");
  response = client.Read();
  body = ordered_json::parse(response.body);
  EXPECT_EQ(body["object"], "text_completion");
  EXPECT_EQ(body["choices"][0]["text"], "Hello, wörld!");
  EXPECT_EQ(body["choices"][0]["logprobs"]["text_offset"].dump(), "[0,5,6,12,12]");
  EXPECT_EQ(body["usage"]["prompt_tokens"], 2);
}

TEST_F(OpenAiApiTest, ModelsHealthStatsMetrics) {
  Start();
  RawClient client(port());
  client.Get("/v1/models");
  EXPECT_EQ(client.Read().body,
            R"({"object":"list","data":[{"id":"fake model","object":"model","created":1700000000,)"
            R"("owned_by":"moraine","max_model_len":4096}]})");
  client.Get("/v1/models/fake%20model");
  EXPECT_EQ(ordered_json::parse(client.Read().body)["id"], "fake model");
  client.Get("/v1/models/other");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(ErrorCode(response), "model_not_found");
  client.Get("/stats");
  EXPECT_EQ(ordered_json::parse(client.Read().body)["layers"].size(), 2u);
  client.Get("/stats?x=1&layers=0");
  EXPECT_EQ(ordered_json::parse(client.Read().body)["layers"].size(), 0u);
  client.Get("/metrics");
  response = client.Read();
  EXPECT_NE(response.head.find("content-type: text/plain; version=0.0.4"), std::string::npos);
  EXPECT_NE(response.body.find("moraine_http_responses_total{code=\"404\"} 1\n"), std::string::npos);
  EXPECT_NE(response.body.find("\nmoraine_ready 1\n"), std::string::npos);
  EXPECT_NE(response.body.find("moraine_info{model=\"fake model\""), std::string::npos);
}

TEST_F(OpenAiApiTest, MetricsSayHowLongClientsWait) {
  Start();
  RawClient client(port());
  PostJson(client, "/v1/chat/completions", ChatBody("hi", R"(,"n":2)"));
  PostJson(client, "/v1/chat/completions", ChatBody("[fail]"));
  client.Get("/metrics");
  const std::string metrics = client.Read().body;
  // Five tokens each, and two before the failure.
  for (const char* line : {"moraine_time_to_first_token_seconds_count 3\n",
                           "moraine_time_between_tokens_seconds_count 9\n",
                           "moraine_generation_seconds_count 3\n",
                           "moraine_generation_seconds_bucket{le=\"900\"} 3\n"}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line << metrics;
  }
}

TEST_F(OpenAiApiTest, SeveralChoices) {
  Start();
  RawClient client(port());
  ordered_json body = PostJson(client, "/v1/chat/completions",
                               ChatBody("hi", R"(,"n":2,"seed":7,"max_tokens":2)"));
  ASSERT_EQ(body["choices"].size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["message"]["content"], "Hello,");
    EXPECT_EQ(body["choices"][i]["finish_reason"], "length");
  }
  EXPECT_EQ(body["usage"]["completion_tokens"], 4);
  EXPECT_EQ(body["usage"]["prompt_tokens"], 9);  // counted once
  EXPECT_EQ(service_.last_request().sampling.seed, 8u);  // so that the choices differ

  client.Post("/v1/chat/completions", ChatBody("hi", R"(,"n":2,"stream":true)"));
  client.ReadUntil("\r\n\r\n");
  const std::string stream = Unchunk(client.ReadUntil("0\r\n\r\n"));
  std::array<std::string, 2> text;
  std::array<int, 2> roles = {}, ends = {};
  for (const ordered_json& event : Events(stream)) {
    const ordered_json& choice = event["choices"][0];
    const size_t index = choice["index"].get<size_t>();
    roles.at(index) += choice["delta"].contains("role");
    ends.at(index) += !choice["finish_reason"].is_null();
    text.at(index) += choice["delta"].value("content", "");
  }
  EXPECT_EQ(text[0], "Hello, wörld!");
  EXPECT_EQ(text[1], "Hello, wörld!");
  EXPECT_EQ(roles, (std::array{1, 1}));
  EXPECT_EQ(ends, (std::array{1, 1}));
  EXPECT_EQ(stream.find("[DONE]"), stream.rfind("[DONE]"));
}

// The queue takes 2 beside the one that runs.
TEST_F(OpenAiApiTest, ChoicesThatDoNotFitTheQueueAreServedInTurn) {
  Start();
  RawClient client(port());
  const ordered_json whole = PostJson(client, "/v1/chat/completions", ChatBody("hi", R"(,"n":8)"));
  ASSERT_EQ(whole["choices"].size(), 8u) << whole.dump();
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(whole["choices"][i]["index"], i);
    EXPECT_EQ(whole["choices"][i]["message"]["content"], "Hello, wörld!");
  }
  EXPECT_EQ(whole["usage"]["completion_tokens"], 8 * FakeService::kAnswer.size());
  EXPECT_EQ(service_.last_request().sampling.seed, 0xABCDEFu + 7);
}

TEST_F(OpenAiApiTest, ChoicesThatWaitGoWithTheConnection) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]", R"(,"n":8,"stream":true)"));
  client.ReadUntil("Hello");
  client.Close();
  ASSERT_TRUE(service_.WaitFor(
      [](const auto& c) { return c.cancelled > 0 && c.cancelled == c.submitted; }));
  // Two or three: whether the first had left the queue when the third came.
  EXPECT_LE(service_.counts().submitted, 3);
}

TEST_F(OpenAiApiTest, SeveralPrompts) {
  Start();
  RawClient client(port());
  const ordered_json whole = PostJson(
      client, "/v1/completions",
      R"({"prompt":["[say]one[/say]","[say]three[/say]",[104,105]],"n":2,"max_tokens":9})");
  const char* const expected[] = {"one", "one", "three", "three", "Hello, wörld!", "Hello, wörld!"};
  ASSERT_EQ(whole["choices"].size(), std::size(expected)) << whole.dump();
  for (size_t i = 0; i < std::size(expected); ++i) {
    EXPECT_EQ(whole["choices"][i]["index"], i);
    EXPECT_EQ(whole["choices"][i]["text"], expected[i]);
  }
  // Each prompt once; three tokens of each were cached.
  EXPECT_EQ(whole["usage"]["prompt_tokens"], 14 + 16 + 2);
  EXPECT_EQ(whole["usage"]["prompt_tokens_details"]["cached_tokens"], 9);
  EXPECT_EQ(whole["usage"]["completion_tokens"], 2 * (1 + 2 + 5));
}

TEST_F(OpenAiApiTest, TheAssistantsLastMessageIsContinued) {
  Start();
  RawClient client(port());
  const std::string messages = R"({"messages":[{"role":"user","content":"a"},{"role":"assistant",)"
                               R"("content":"  The answer is "}])";
  EXPECT_EQ(PostJson(client, "/apply-template", messages + "}")["prompt"],
            "user: a\nassistant:   The answer is ");
  EXPECT_EQ(PostJson(client, "/apply-template", messages + R"(,"add_generation_prompt":true})")["prompt"],
            "user: a\nassistant:   The answer is \n");
  EXPECT_EQ(PostJson(client, "/v1/messages", R"({"max_tokens":5,)" + messages.substr(1) + "}")["content"][0]["text"],
            "Hello, wörld!");
  std::string prompt;
  for (const int32_t token : service_.last_request().prompt) prompt += static_cast<char>(token);
  EXPECT_EQ(prompt, "user: a\nassistant:   The answer is ");
}

TEST_F(OpenAiApiTest, ToolCallsAndReasoningOfAWholeAnswer) {
  Start();
  RawClient client(port());
  ordered_json body = PostJson(client, "/v1/chat/completions", ChatBody(kSayCall, kTools));
  EXPECT_EQ(body["choices"][0]["message"].dump(),
            R"({"role":"assistant","content":"Wait.","reasoning_content":"Hm.","refusal":null,)"
            R"("tool_calls":[{"id":"call_0000000000abcdef","type":"function","function":)"
            R"({"name":"get_weather","arguments":"{\"city\": \"Köln\"}"}},)"
            R"({"id":"call_0000000000abcdef","type":"function","function":{"name":"now",)"
            R"("arguments":"{}"}}]})");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "tool_calls");
  EXPECT_GT(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);

  body = PostJson(client, "/v1/chat/completions",
                  ChatBody(kSayCall, std::string(kTools) + R"(,"parallel_tool_calls":false)"));
  EXPECT_EQ(body["choices"][0]["message"]["tool_calls"].size(), 1u);
  // Without tools a call is text; with reasoning_format none, so is reasoning.
  body = PostJson(client, "/v1/chat/completions",
                  ChatBody(kSayCall, R"(,"reasoning_format":"none")"));
  EXPECT_EQ(body["choices"][0]["message"]["content"].get<std::string>().rfind(
                "<think>Hm.</think>Wait.<tool_call>", 0), 0u);
  EXPECT_EQ(body["choices"][0]["finish_reason"], "stop");
}

TEST_F(OpenAiApiTest, ToolCallsOfAStream) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody(kSayCall, kTools + kStream));
  client.ReadUntil("\r\n\r\n");
  std::string content, reasoning, reason;
  std::array<std::string, 2> names, arguments;
  int argument_deltas = 0;
  for (const ordered_json& event : Events(Unchunk(client.ReadUntil("0\r\n\r\n")))) {
    const ordered_json& choice = event["choices"][0];
    const ordered_json& delta = choice["delta"];
    content += delta.value("content", "");
    reasoning += delta.value("reasoning_content", "");
    if (choice["finish_reason"].is_string()) reason = choice["finish_reason"];
    if (!delta.contains("tool_calls")) continue;
    const ordered_json& call = delta["tool_calls"][0];
    const size_t index = call["index"].get<size_t>();  // in every delta
    if (call.contains("id")) {
      EXPECT_EQ(call["type"], "function");
      EXPECT_EQ(names.at(index), "");
      names.at(index) = call["function"]["name"];
    }
    argument_deltas += !call["function"]["arguments"].get<std::string>().empty();
    arguments.at(index) += call["function"]["arguments"].get<std::string>();
  }
  EXPECT_EQ(content, "Wait.");
  EXPECT_EQ(reasoning, "Hm.");
  EXPECT_EQ(names[0], "get_weather");
  EXPECT_EQ(arguments[0], R"({"city": "Köln"})");
  EXPECT_EQ(names[1], "now");
  EXPECT_EQ(arguments[1], "{}");
  EXPECT_EQ(reason, "tool_calls");
  EXPECT_GT(argument_deltas, 5);  // as they are written
}

TEST_F(OpenAiApiTest, CallsOfEarlierMessagesReachTheTemplateInTheFormItTakes) {
  service_.set_chat_template("<tool_call> text-arguments");
  Start();
  RawClient client(port());
  const std::string messages =
      R"({"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",)"
      R"("function":{"name":"f","arguments":"{\"a\":  1}"}}]},{"role":"tool","content":"42",)"
      R"("tool_call_id":"1"}]})";
  EXPECT_EQ(PostJson(client, "/apply-template", messages)["prompt"],
            "assistant: \nf <- \"{\\\"a\\\":  1}\"\ntool: 42\n");
}

TEST_F(OpenAiApiTest, ToolsNeedATemplateThatKnowsThem) {
  service_.set_chat_template("plain");
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("hi", kTools));
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "unsupported");
}

TEST_F(OpenAiApiTest, ConstrainedAnswers) {
  Start();
  RawClient client(port());
  const std::string schema =
      R"(,"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"type":"object",)"
      R"("properties":{"a":{"type":"integer"}},"required":["a"]}}})";
  ordered_json body = PostJson(client, "/v1/chat/completions",
                               ChatBody(R"([say]{\"a\": 12}[/say])", schema));
  EXPECT_EQ(body["choices"][0]["message"]["content"], R"({"a": 12})");
  // The service checks what it says against the constraint it was given.
  body = PostJson(client, "/v1/chat/completions", ChatBody(R"([say]{\"b\": 12}[/say])", schema));
  EXPECT_NE(body["error"]["message"].get<std::string>().find("does not allow"), std::string::npos);
  const std::string json = R"(,"response_format":{"type":"json_object"})";
  body = PostJson(client, "/v1/chat/completions", ChatBody("[say]<think>x</think>{}[/say]", json));
  EXPECT_EQ(body["choices"][0]["message"]["content"], "{}");
  EXPECT_EQ(body["choices"][0]["message"]["reasoning_content"], "x");
  body = PostJson(client, "/v1/chat/completions", ChatBody("[say][1][/say]", json));
  EXPECT_TRUE(body.contains("error"));
  body = PostJson(client, "/v1/completions",
                  R"({"prompt":"[say]{}[/say]","response_format":{"type":"json_object"}})");
  EXPECT_EQ(body["choices"][0]["text"], "{}");

  const std::string required = std::string(kTools) + R"(,"tool_choice":"required")";
  body = PostJson(client, "/v1/chat/completions",
                  ChatBody(R"([say]<tool_call>{\"name\": \"get_weather\", \"arguments\": {}}</tool_call>[/say])",
                           required));
  EXPECT_EQ(body["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "get_weather") << body;
  EXPECT_EQ(body["choices"][0]["finish_reason"], "tool_calls");
  body = PostJson(client, "/v1/chat/completions", ChatBody("[say]I would rather not[/say]", required));
  EXPECT_TRUE(body.contains("error"));

  client.Post("/v1/chat/completions",
              ChatBody("hi", R"(,"response_format":{"type":"json_schema","json_schema":{"schema":)"
                             R"({"not":{}}}})"));
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "unsupported");
}

TEST_F(OpenAiApiTest, TokensAndTemplates) {
  Start();
  RawClient client(port());
  EXPECT_EQ(PostJson(client, "/tokenize", R"({"content":"[bos]é"})").dump(),
            R"({"count":7,"max_model_len":4096,"tokens":[91,98,111,115,93,195,169]})");
  EXPECT_EQ(PostJson(client, "/tokenize", R"({"content":"[bos]","add_special":true})")["tokens"][0], 1);
  EXPECT_EQ(PostJson(client, "/tokenize", R"({"prompt":"[bos]"})")["tokens"][0], 1);
  EXPECT_EQ(PostJson(client, "/tokenize", R"({"messages":[{"role":"user","content":"hi"}]})")["count"], 9);
  EXPECT_EQ(PostJson(client, "/tokenize", R"({"content":"\u0000\u0003","with_pieces":true})")["tokens"].dump(),
            R"([{"id":0,"piece":"Hello"},{"id":3,"piece":[240,159]}])");
  EXPECT_EQ(PostJson(client, "/detokenize", R"({"tokens":[104,105]})").dump(),
            R"({"content":"hi","prompt":"hi"})");
  EXPECT_EQ(PostJson(client, "/apply-template",
                     ChatBody("hi", kTools))["prompt"], "tool: get_weather\nuser: hi\n");
  for (const auto& [path, body, param] :
       {std::tuple("/tokenize", "{}", "content"), std::tuple("/detokenize", "{}", "tokens"),
        std::tuple("/detokenize", R"({"tokens":[256]})", "tokens"),
        std::tuple("/tokenize", R"({"content":1})", "content"),
        std::tuple("/apply-template", "{}", "messages")}) {
    EXPECT_EQ(PostJson(client, path, body)["error"]["param"], param) << path;
  }
  client.Get("/tokenize");
  EXPECT_EQ(client.Read().status, 405);
}

TEST_F(OpenAiApiTest, PropertiesAndSlots) {
  Start();
  RawClient client(port()), running(port());
  client.Get("/props");
  const ordered_json props = ordered_json::parse(client.Read().body);
  EXPECT_EQ(props["default_generation_settings"]["n_ctx"], 4096);
  EXPECT_EQ(props["total_slots"], 3);
  EXPECT_EQ(props["output_format"], "hermes");
  EXPECT_EQ(props["chat_template"], service_.chat_template());
  client.Get("/slots");
  EXPECT_EQ(client.Read().body, "[]");
  running.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  running.ReadUntil("Hello");
  client.Get("/slots");
  EXPECT_EQ(client.Read().body,
            R"([{"id":"chatcmpl-0000000000abcdef","state":"decode","is_processing":true,)"
            R"("n_prompt_tokens":13,"n_prompt_tokens_processed":13,"n_decoded":1}])");
  service_.set_ready(false);
  client.Get("/props");
  EXPECT_EQ(client.Read().status, 503);
}

TEST_F(OpenAiApiTest, ProgressOfPrefillIsTold) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[prefill]", R"(,"stream":true,"return_progress":true)"));
  client.ReadUntil(R"("choices":[],"prompt_progress":{"total":2048,"cache":3,"processed":512}})");
  service_.Release();
  client.ReadUntil("data: [DONE]");
}

}  // namespace
}  // namespace moraine
