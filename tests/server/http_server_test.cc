// The running server against raw sockets and a scripted service.
#include "server/http_server.h"

#include <gtest/gtest.h>

#include <array>
#include <future>
#include <nlohmann/json.hpp>

#include "fake_service.h"
#include "raw_client.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;
using std::chrono::milliseconds;

std::string ChatBody(const std::string& text, const std::string& more = "") {
  return R"({"messages":[{"role":"user","content":")" + text + "\"}]" + more + "}";
}
const std::string kStream = R"(,"stream":true)";

std::string ErrorCode(const RawClient::Response& response) {
  const ordered_json body = ordered_json::parse(response.body, nullptr, false);
  if (!body.is_object() || !body.contains("error")) return "no error object: " + response.body;
  for (const char* field : {"message", "type", "param", "code"}) {
    if (!body["error"].contains(field)) return std::string("error lacks ") + field;
  }
  return body["error"]["code"].is_string() ? body["error"]["code"].get<std::string>() : "";
}

// Undoes the chunked coding; the stream must be whole.
std::string Unchunk(std::string_view text) {
  std::string out;
  for (;;) {
    const size_t line = text.find("\r\n");
    if (line == std::string_view::npos) return out + "<truncated>";
    const size_t size = std::stoul(std::string(text.substr(0, line)), nullptr, 16);
    if (size == 0) return out;
    out += text.substr(line + 2, size);
    text.remove_prefix(line + 2 + size + 2);
  }
}

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    options_.port = 0;
    options_.api.unix_time_s = [] { return int64_t{1700000001}; };
    options_.api.random_bits = [] { return uint64_t{0xABCDEF}; };
    options_.disconnect_poll_interval = milliseconds(5);
  }
  void Start() {
    auto server = HttpServer::Start(options_, &service_);
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = std::move(*server);
  }
  uint16_t port() const { return server_->port(); }

  FakeService service_{2};
  HttpServerOptions options_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, ChatStreamIsExactToTheByte) {
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

TEST_F(HttpServerTest, CompletionStreamIsExactToTheByte) {
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

TEST_F(HttpServerTest, WholeAnswers) {
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

TEST_F(HttpServerTest, ModelsHealthStatsMetrics) {
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

ordered_json PostJson(RawClient& client, const std::string& path, const std::string& body) {
  client.Post(path, body);
  return ordered_json::parse(client.Read().body, nullptr, false);
}

TEST_F(HttpServerTest, MetricsSayHowLongClientsWait) {
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

// The data of a stream's events, [DONE] left out.
std::vector<ordered_json> Events(const std::string& stream) {
  std::vector<ordered_json> events;
  for (size_t at = stream.find("data: {"); at != std::string::npos;
       at = stream.find("data: {", at + 1)) {
    events.push_back(ordered_json::parse(stream.substr(at + 6, stream.find("\n\n", at) - at - 6)));
  }
  return events;
}

TEST_F(HttpServerTest, SeveralChoices) {
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
TEST_F(HttpServerTest, ChoicesThatDoNotFitTheQueueAreServedInTurn) {
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

TEST_F(HttpServerTest, ChoicesThatWaitGoWithTheConnection) {
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

TEST_F(HttpServerTest, SeveralPrompts) {
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

TEST_F(HttpServerTest, TheAssistantsLastMessageIsContinued) {
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

constexpr const char* kTools =
    R"(,"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object"}}}])";
const std::string kSayCall =
    R"([say]<think>Hm.</think>Wait.<tool_call>\n{\"name\": \"get_weather\", \"arguments\": )"
    R"({\"city\": \"Köln\"}}\n</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call>[/say])";

TEST_F(HttpServerTest, ToolCallsAndReasoningOfAWholeAnswer) {
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

TEST_F(HttpServerTest, ToolCallsOfAStream) {
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

TEST_F(HttpServerTest, CallsOfEarlierMessagesReachTheTemplateInTheFormItTakes) {
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

TEST_F(HttpServerTest, ToolsNeedATemplateThatKnowsThem) {
  service_.set_chat_template("plain");
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("hi", kTools));
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "unsupported");
}

TEST_F(HttpServerTest, ConstrainedAnswers) {
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
                             R"({"uniqueItems":true}}})"));
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "unsupported");
}

// The types of a stream's events, repetitions once.
std::vector<std::string> EventTypes(const std::string& stream) {
  std::vector<std::string> types;
  for (size_t at = stream.find("event: "); at != std::string::npos;
       at = stream.find("event: ", at + 1)) {
    std::string type = stream.substr(at + 7, stream.find('\n', at) - at - 7);
    if (types.empty() || types.back() != type) types.push_back(std::move(type));
  }
  return types;
}

TEST_F(HttpServerTest, ResponsesWhole) {
  Start();
  RawClient client(port());
  const ordered_json body = PostJson(
      client, "/v1/responses",
      R"({"input":[{"role":"user","content":[{"type":"input_text","text":")" + kSayCall + R"("}]}],)"
      R"("instructions":"Be brief.","tools":[{"type":"function","name":"get_weather",)"
      R"("parameters":{"type":"object"}}],"temperature":0.5,"max_output_tokens":90})");
  EXPECT_EQ(body["id"], "resp_0000000000abcdef");
  EXPECT_EQ(body["object"], "response");
  EXPECT_EQ(body["status"], "completed");
  EXPECT_EQ(body["instructions"], "Be brief.");
  EXPECT_EQ(body["temperature"], 0.5);
  ASSERT_EQ(body["output"].size(), 4u) << body.dump();
  EXPECT_EQ(body["output"][0]["type"], "reasoning");
  EXPECT_EQ(body["output"][0]["content"][0]["text"], "Hm.");
  EXPECT_EQ(body["output"][1]["content"][0].dump(),
            R"({"type":"output_text","annotations":[],"text":"Wait."})");
  EXPECT_EQ(body["output"][2].dump(),
            R"({"id":"fc_0000000000abcdef_2","type":"function_call","status":"completed",)"
            R"("call_id":"call_0000000000abcdef","name":"get_weather",)"
            R"("arguments":"{\"city\": \"Köln\"}"})");
  EXPECT_EQ(body["usage"]["input_tokens_details"]["cached_tokens"], 3);
  EXPECT_GT(body["usage"]["output_tokens_details"]["reasoning_tokens"], 0);
  EXPECT_EQ(service_.last_request().max_tokens, 90u);
  EXPECT_EQ(PostJson(client, "/v1/responses", R"({"input":"hi","max_output_tokens":2})")["status"],
            "incomplete");
}

TEST_F(HttpServerTest, ResponsesStream) {
  Start();
  RawClient client(port());
  client.Post("/v1/responses",
              R"({"stream":true,"input":")" + kSayCall +
                  R"(","tools":[{"type":"function","name":"get_weather","parameters":{"type":"object"}}]})");
  client.ReadUntil("\r\n\r\n");
  const std::string stream = Unchunk(client.ReadUntil("0\r\n\r\n"));
  const std::vector<std::string> call = {
      "response.output_item.added", "response.function_call_arguments.delta",
      "response.function_call_arguments.done", "response.output_item.done"};
  std::vector<std::string> expected = {
      "response.created", "response.in_progress",
      "response.output_item.added", "response.content_part.added", "response.reasoning_text.delta",
      "response.reasoning_text.done", "response.content_part.done", "response.output_item.done",
      "response.output_item.added", "response.content_part.added", "response.output_text.delta",
      "response.output_text.done", "response.content_part.done", "response.output_item.done"};
  for (int i = 0; i < 2; ++i) expected.insert(expected.end(), call.begin(), call.end());
  expected.push_back("response.completed");
  EXPECT_EQ(EventTypes(stream), expected);
  uint64_t sequence = 0;
  std::string text;
  ordered_json last;
  for (const ordered_json& event : Events(stream)) {
    EXPECT_EQ(event["sequence_number"], sequence++);
    if (event["type"] == "response.output_text.delta") text += event["delta"].get<std::string>();
    last = event;
  }
  EXPECT_EQ(text, "Wait.");
  EXPECT_EQ(last["response"]["output"].size(), 4u);
  EXPECT_EQ(last["response"]["output"][3]["arguments"], "{}");
}

TEST_F(HttpServerTest, ResponsesTranslateConversations) {
  Start();
  RawClient client(port());
  client.Post("/v1/responses",
              R"({"instructions":"i","input":[{"role":"user","content":"a"},{"type":"reasoning",)"
              R"("summary":[],"content":[{"type":"reasoning_text","text":"r"}]},{"type":"function_call",)"
              R"("call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output",)"
              R"("call_id":"c","output":"42"}]})");
  EXPECT_EQ(client.Read().status, 200);
  std::string prompt;
  for (const int32_t token : service_.last_request().prompt) prompt += static_cast<char>(token);
  EXPECT_EQ(prompt, "system: i\nuser: a\nassistant: \nf <- {}\ntool: 42\n");
  for (const auto& [body, param] :
       {std::pair(R"({"input":"a","previous_response_id":"x"})", "previous_response_id"),
        std::pair("{}", "input"), std::pair(R"({"input":[{"type":"file"}]})", "input[0].type"),
        std::pair(R"({"input":"a","max_output_tokens":0})", "max_output_tokens")}) {
    EXPECT_EQ(PostJson(client, "/v1/responses", body)["error"]["param"], param) << body;
  }
}

TEST_F(HttpServerTest, MessagesWhole) {
  Start();
  RawClient client(port());
  const ordered_json body = PostJson(
      client, "/v1/messages",
      R"({"max_tokens":90,"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":")" +
          kSayCall + R"("}],"tools":[{"name":"get_weather","input_schema":{"type":"object"}}]})");
  EXPECT_EQ(body.dump(),
            R"({"id":"msg_0000000000abcdef","type":"message","role":"assistant","model":"fake model",)"
            R"("content":[{"type":"thinking","thinking":"Hm.","signature":""},{"type":"text","text":"Wait."},)"
            R"({"type":"tool_use","id":"call_0000000000abcdef","name":"get_weather","input":{"city":"Köln"}},)"
            R"({"type":"tool_use","id":"call_0000000000abcdef","name":"now","input":{}}],)"
            R"("stop_reason":"tool_use","stop_sequence":null,"usage":{"input_tokens":)" +
                body["usage"]["input_tokens"].dump() +
                R"(,"cache_creation_input_tokens":0,"cache_read_input_tokens":3,"output_tokens":)" +
                body["usage"]["output_tokens"].dump() + "}}");
  const std::string short_one = R"({"max_tokens":2,"messages":[{"role":"user","content":"hi"}]})";
  EXPECT_EQ(PostJson(client, "/v1/messages", short_one)["stop_reason"], "max_tokens");
  EXPECT_EQ(PostJson(client, "/v1/messages/count_tokens", R"({"messages":[{"role":"user","content":"hi"}]})").dump(),
            R"({"input_tokens":9})");
}

TEST_F(HttpServerTest, MessagesStream) {
  Start();
  RawClient client(port());
  client.Post("/v1/messages",
              R"({"stream":true,"max_tokens":90,"messages":[{"role":"user","content":")" + kSayCall +
                  R"("}],"tools":[{"name":"get_weather","input_schema":{"type":"object"}}]})");
  client.ReadUntil("\r\n\r\n");
  const std::string stream = Unchunk(client.ReadUntil("0\r\n\r\n"));
  std::vector<std::string> expected = {"message_start"};
  for (int i = 0; i < 4; ++i) {
    expected.insert(expected.end(),
                    {"content_block_start", "content_block_delta", "content_block_stop"});
  }
  expected.insert(expected.end(), {"message_delta", "message_stop"});
  EXPECT_EQ(EventTypes(stream), expected);
  std::array<std::string, 4> blocks;
  for (const ordered_json& event : Events(stream)) {
    if (event["type"] != "content_block_delta") continue;
    for (const char* name : {"thinking", "text", "partial_json"}) {
      blocks.at(event["index"].get<size_t>()) += event["delta"].value(name, "");
    }
  }
  EXPECT_EQ(blocks, (std::array<std::string, 4>{"Hm.", "Wait.", R"({"city": "Köln"})", "{}"}));
  EXPECT_NE(stream.find(R"("delta":{"stop_reason":"tool_use","stop_sequence":null})"), std::string::npos);
}

TEST_F(HttpServerTest, MessagesTranslateConversations) {
  Start();
  RawClient client(port());
  client.Post("/v1/messages",
              R"({"max_tokens":5,"messages":[{"role":"user","content":"a"},{"role":"assistant","content":)"
              R"([{"type":"thinking","thinking":"t","signature":"x"},{"type":"text","text":"b"},)"
              R"({"type":"tool_use","id":"c","name":"f","input":{"x":1}}]},{"role":"user","content":)"
              R"([{"type":"tool_result","tool_use_id":"c","content":[{"type":"text","text":"42"}]},)"
              R"({"type":"text","text":"go on"}]}]})");
  EXPECT_EQ(client.Read().status, 200);
  std::string prompt;
  for (const int32_t token : service_.last_request().prompt) prompt += static_cast<char>(token);
  EXPECT_EQ(prompt, "user: a\nassistant: b\nf <- {\"x\":1}\ntool: 42\nuser: go on\n");
}

TEST_F(HttpServerTest, MessagesHaveTheirOwnErrors) {
  options_.api.access.api_key = "secret";
  Start();
  RawClient client(port());
  client.Post("/v1/messages", "{}");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(ordered_json::parse(response.body)["error"]["type"], "authentication_error");
  const std::string key = "x-api-key: secret\r\n";
  for (const auto& [body, message] :
       {std::pair(R"({"messages":[{"role":"user","content":"a"}]})", "max_tokens: expected an integer"),
        std::pair(R"({"max_tokens":5})", "messages: expected an array"),
        std::pair(R"({"max_tokens":5,"messages":[{"role":"user","content":[{"type":"image"}]}]})",
                  "messages[0].content[0].type: not supported"),
        std::pair(R"({"max_tokens":5,"temperature":1.5,"messages":[{"role":"user","content":"a"}]})",
                  "temperature: expected a number from 0 to 1")}) {
    client.Post("/v1/messages", body, key);
    response = client.Read();
    EXPECT_EQ(response.status, 400) << body;
    const ordered_json error = ordered_json::parse(response.body);
    EXPECT_EQ(error["type"], "error");
    EXPECT_EQ(error["error"]["type"], "invalid_request_error");
    EXPECT_EQ(error["error"]["message"].get<std::string>().rfind(message, 0), 0u) << response.body;
  }
  client.Post("/v1/messages",
              R"({"stream":true,"max_tokens":5,"messages":[{"role":"user","content":"[fail]"}]})", key);
  client.ReadUntil("\r\n\r\n");
  const std::string stream = Unchunk(client.ReadToEnd());
  EXPECT_NE(stream.find("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
            std::string::npos) << stream;
}

TEST_F(HttpServerTest, TokensAndTemplates) {
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

TEST_F(HttpServerTest, PropertiesAndSlots) {
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

TEST_F(HttpServerTest, ProgressOfPrefillIsTold) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[prefill]", R"(,"stream":true,"return_progress":true)"));
  client.ReadUntil(R"("choices":[],"prompt_progress":{"total":2048,"cache":3,"processed":512}})");
  service_.Release();
  client.ReadUntil("data: [DONE]");
}

TEST_F(HttpServerTest, HeadHasTheHeadOnly) {
  Start();
  RawClient client(port());
  client.Send("HEAD /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
  EXPECT_NE(client.ReadUntil("\r\n\r\n").find("content-length: 15\r\n"), std::string::npos);
  client.Get("/health");
  EXPECT_EQ(client.Read().head.rfind("HTTP/1.1 200", 0), 0u);  // no body was in between
}

TEST_F(HttpServerTest, AnswersWhileLoading) {
  service_.set_ready(false);
  Start();
  RawClient client(port());
  client.Get("/health");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.body, R"({"status":"loading"})");
  client.Get("/v1/models");
  EXPECT_EQ(client.Read().status, 200);
  client.Get("/metrics");
  EXPECT_NE(client.Read().body.find("moraine_ready 0\n"), std::string::npos);
  client.Get("/stats");
  EXPECT_EQ(ErrorCode(client.Read()), "model_loading");
  client.Post("/v1/chat/completions", ChatBody("hi"));
  response = client.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_NE(response.head.find("retry-after: 2\r\n"), std::string::npos);
  service_.set_ready(true);
  client.Post("/v1/chat/completions", ChatBody("hi"));
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, RefusalsHaveTheirStatusAndAnErrorObject) {
  Start();
  const std::string json = "content-type: application/json\r\n";
  struct Case {
    const char* what;
    std::string request;
    int status;
    const char* code;
    const char* head;  // must be in the response's head
  };
  const Case cases[] = {
      {"unknown path", "GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n", 404, "not_found", ""},
      {"wrong method", "GET /v1/completions HTTP/1.1\r\nhost: localhost\r\n\r\n", 405,
       "method_not_allowed", "allow: POST, OPTIONS\r\n"},
      {"wrong method", "DELETE /health HTTP/1.1\r\nhost: localhost\r\n\r\n", 405,
       "method_not_allowed", "allow: GET, HEAD, OPTIONS\r\n"},
      {"foreign host", "GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403,
       "host_not_allowed", "x-should-retry: false\r\n"},
      {"host that begins like ours", "GET /health HTTP/1.1\r\nhost: localhost.evil.example\r\n\r\n",
       403, "host_not_allowed", ""},
      {"host that begins like loopback", "GET /health HTTP/1.1\r\nhost: 127.0.0.1.evil.example\r\n\r\n",
       403, "host_not_allowed", ""},
      {"no host", "GET /health HTTP/1.1\r\n\r\n", 400, "bad_host", ""},
      {"two hosts", "GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n", 400,
       "bad_host", ""},
      {"text", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
               "content-length: 2\r\n\r\n{}", 415, "bad_request", ""},
      {"no type", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}",
       415, "bad_request", ""},
      {"compressed", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                         "content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
       415, "bad_request", ""},
      {"not JSON", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                       "content-length: 2\r\n\r\n{x", 400, "", ""},
      {"bad UTF-8", "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + json +
                        "content-length: 14\r\n\r\n{\"prompt\":\"\xff\"}", 400, "", ""},
  };
  RawClient client(port());
  for (const Case& c : cases) {
    client.Send(c.request);
    const RawClient::Response response = client.Read();
    EXPECT_EQ(response.status, c.status) << c.what;
    EXPECT_EQ(ErrorCode(response), c.code) << c.what << ": " << response.body;
    EXPECT_NE(response.head.find(c.head), std::string::npos) << c.what << ": " << response.head;
    EXPECT_NE(response.head.find("connection: keep-alive"), std::string::npos) << c.what;
  }
}

TEST_F(HttpServerTest, ErrorsOfTheServiceBecomeRealStatuses) {
  Start();
  RawClient client(port());
  for (const std::string& stream : {std::string(), kStream}) {
    client.Post("/v1/chat/completions", ChatBody("[too-long]", stream));
    RawClient::Response response = client.Read();
    EXPECT_EQ(response.status, 400);
    EXPECT_EQ(ErrorCode(response), "context_length_exceeded");
    client.Post("/v1/chat/completions", ChatBody("[refuse]", stream));
    response = client.Read();
    EXPECT_EQ(response.status, 400);
    EXPECT_NE(response.body.find("the template refuses"), std::string::npos);
    client.Post("/v1/completions", R"({"prompt":"","stream":)" + std::string(stream.empty() ? "false" : "true") + "}");
    EXPECT_EQ(client.Read().status, 400);
  }
  client.Post("/v1/chat/completions", ChatBody("[fail-first]"));
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 500);
  EXPECT_NE(response.body.find("expert 7 of layer 3"), std::string::npos);
  EXPECT_NE(response.head.find("x-should-retry: false\r\n"), std::string::npos);
  client.Post("/v1/chat/completions", ChatBody("hi", R"(,"model":"gpt-5")"));
  EXPECT_EQ(ErrorCode(client.Read()), "model_not_found");
}

TEST_F(HttpServerTest, AFailureInMidStreamIsAnErrorEventAndTheEnd) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[fail]", kStream));
  client.ReadUntil("\r\n\r\n");
  const std::string events = Unchunk(client.ReadToEnd());
  const std::string last = events.substr(events.rfind("data: "));
  EXPECT_EQ(last,
            R"(data: {"error":{"message":"pack 0 at 4096: Input/output error","type":"server_error",)"
            R"("param":null,"code":"io_error"}})"
            "\n\n");
  EXPECT_NE(events.find(R"("content":"Hello")"), std::string::npos);
  EXPECT_EQ(events.find("[DONE]"), std::string::npos);
}

TEST_F(HttpServerTest, DisconnectCancelsAStream) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  client.ReadUntil("Hello");
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, DisconnectCancelsAWholeAnswer) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, DisconnectCancelsPrefill) {
  Start();
  for (const std::string& stream : {std::string(), kStream}) {
    const int before = service_.counts().cancelled;
    RawClient client(port());
    client.Post("/v1/chat/completions", ChatBody("[prefill]", stream));
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.held == before + 1; }));
    client.Close();
    EXPECT_TRUE(service_.WaitFor([&](const auto& c) { return c.cancelled == before + 1; }));
  }
}

TEST_F(HttpServerTest, DisconnectCancelsWhatWaitsInTheQueue) {
  Start();
  RawClient running(port());
  running.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  running.ReadUntil("Hello");
  for (const std::string& stream : {std::string(), kStream}) {
    RawClient waiting(port());
    const int before = service_.counts().submitted;
    waiting.Post("/v1/chat/completions", ChatBody("waits", stream));
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.submitted == before + 1; }));
    waiting.Close();
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.cancel_asked == before; }));
  }
  running.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.finished == 3; }));
  EXPECT_EQ(service_.counts().cancelled, 3);
  EXPECT_EQ(service_.counts().started, 1);
}

TEST_F(HttpServerTest, DisconnectIsSeenBehindAPipelinedRequest) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  client.Get("/health");
  client.Close();
  EXPECT_TRUE(service_.WaitFor([](const auto& c) { return c.cancelled == 1; }));
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Start();
  RawClient client(port());
  client.Send(
      "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nGET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n");
  client.Post("/v1/chat/completions", ChatBody("hi"));
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.Read().status, 404);
  EXPECT_NE(client.Read().body.find("Hello, w"), std::string::npos);
  EXPECT_EQ(client.Read().body, R"({"status":"ok"})");
}

TEST_F(HttpServerTest, PipelinedGarbageEndsTheConnection) {
  Start();
  RawClient client(port());
  client.Get("/health");
  client.Send("\x01\x02 garbage\r\n\r\n");
  EXPECT_EQ(client.Read().status, 200);
  const RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(ErrorCode(response), "malformed_http");
  client.ReadToEnd();
}

TEST_F(HttpServerTest, PingsWhileNothingHappens) {
  options_.ping_interval = milliseconds(10);
  Start();
  RawClient running(port());
  running.Post("/v1/chat/completions", ChatBody("[prefill]", kStream));
  running.ReadUntil(": ping, prefill 512/2048\n\n");
  // A stream that waits in the queue gets its head with the first ping.
  RawClient waiting(port());
  waiting.Post("/v1/chat/completions", ChatBody("waits", kStream));
  EXPECT_NE(waiting.ReadUntil(": ping\n\n").find("HTTP/1.1 200 OK"), std::string::npos);
  service_.Release();
  running.ReadUntil("data: [DONE]\n\n");
  waiting.ReadUntil("data: [DONE]\n\n");
}

TEST_F(HttpServerTest, FullQueueIs429WithRetryAfter) {
  Start();
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<RawClient>(port()));
    clients.back()->Post("/v1/chat/completions", ChatBody("[hold]", kStream));
    // The first must have left the queue before it can be filled.
    ASSERT_TRUE(service_.WaitFor([&](const auto& c) { return c.submitted == i + 1 && c.held == 1; }));
  }
  RawClient refused(port());
  refused.Post("/v1/chat/completions", ChatBody("hi", kStream));
  const RawClient::Response response = refused.Read();
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(ErrorCode(response), "queue_full");
  EXPECT_NE(response.head.find("retry-after: 1\r\n"), std::string::npos);
  EXPECT_EQ(response.head.find("x-should-retry"), std::string::npos);
}

TEST_F(HttpServerTest, SlowHeadsAndBodiesAreCutOff) {
  options_.header_timeout = options_.body_timeout = milliseconds(30);
  Start();
  RawClient head(port());
  head.Send("GET /health HTTP/1.1\r\nhost: loc");
  EXPECT_EQ(head.ReadToEnd(), "");
  RawClient body(port());
  body.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "content-length: 100\r\n\r\n{");
  EXPECT_EQ(body.ReadToEnd(), "");
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  options_.idle_timeout = milliseconds(30);
  Start();
  RawClient client(port());
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(client.ReadToEnd(), "");
}

TEST_F(HttpServerTest, LimitsOfHeadAndBody) {
  options_.header_limit_bytes = 4096;
  options_.api.body_limit_bytes = 1000;
  Start();
  RawClient bomb(port());
  bomb.Send("GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + std::string(100'000, 'x') + "\r\n\r\n");
  RawClient::Response response = bomb.Read();
  EXPECT_EQ(response.status, 431);
  EXPECT_EQ(ErrorCode(response), "header_too_large");
  bomb.Close();
  // The client sends on for a while after the refusal; the answer must reach it all the same.
  RawClient oversize(port());
  oversize.Post("/v1/completions", std::string(500'000, ' '));
  response = oversize.Read();
  EXPECT_EQ(response.status, 413);
  EXPECT_EQ(ErrorCode(response), "body_too_large");
  EXPECT_NE(response.head.find("connection: close"), std::string::npos);
  RawClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
               "transfer-encoding: chunked\r\n\r\n800\r\n" + std::string(0x800, ' ') + "\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.Read().status, 413);
}

TEST_F(HttpServerTest, OnlySomeLargeBodiesAtATime) {
  options_.large_body_limit = 1;
  Start();
  const std::string head =
      "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
      "expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n";
  auto first = std::make_unique<RawClient>(port());
  first->Send(head);
  EXPECT_EQ(first->ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  RawClient second(port());
  second.Send(head);
  EXPECT_EQ(ErrorCode(second.Read()), "too_many_large_bodies");
  first->Send(R"({"prompt":"hi"})" + std::string(2'000'000 - 15, ' '));
  EXPECT_EQ(first->Read().status, 200);
  RawClient third(port());
  third.Send(head);
  EXPECT_EQ(third.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
}

TEST_F(HttpServerTest, ChunkedBodiesAndHttp10) {
  Start();
  RawClient chunked(port());
  chunked.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
               "transfer-encoding: chunked\r\n\r\n5\r\n{\"pro\r\na\r\nmpt\":\"hi\"}\r\n0\r\n\r\n");
  EXPECT_EQ(chunked.Read().status, 200);
  RawClient smuggler(port());
  smuggler.Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                "transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
  EXPECT_EQ(smuggler.Read().status, 501);
  // No chunks for a client that does not know them: the stream ends with the connection.
  RawClient old(port());
  const std::string body = ChatBody("hi", kStream);
  old.Send("POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_EQ(old.ReadUntil("\r\n\r\n").find("transfer-encoding"), std::string::npos);
  const std::string events = old.ReadToEnd();
  EXPECT_EQ(events.rfind("data: {\"id\"", 0), 0u);
  EXPECT_TRUE(events.ends_with("data: [DONE]\n\n"));
}

TEST_F(HttpServerTest, ConnectionLimit) {
  options_.connection_limit = 2;
  Start();
  RawClient first(port()), second(port());
  first.Get("/health");
  second.Get("/health");
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Read().status, 200);
  RawClient third(port());
  const RawClient::Response response = third.Read();
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(ErrorCode(response), "too_many_connections");
  EXPECT_EQ(third.ReadToEnd(), "");
}

TEST_F(HttpServerTest, IdleConnectionsAreNotAmongTheRequestsThatAreLimited) {
  options_.busy_limit = 1;
  Start();
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int round = 0; round < 2; ++round) {
    for (size_t i = 0; i < 5; ++i) {
      if (round == 0) idle.push_back(std::make_unique<RawClient>(port()));
      idle[i]->Get("/health");
      EXPECT_EQ(idle[i]->Read().status, 200) << round << " " << i;
    }
  }
  idle[0]->Send("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                "expect: 100-continue\r\ncontent-length: 15\r\n\r\n");
  EXPECT_EQ(idle[0]->ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  // Who is refused is not counted, however long it stays.
  for (size_t i = 1; i < 3; ++i) {
    idle[i]->Get("/health");
    const RawClient::Response response = idle[i]->Read();
    EXPECT_EQ(response.status, 503);
    EXPECT_EQ(ErrorCode(response), "too_many_requests");
    EXPECT_NE(response.head.find("retry-after: 1\r\n"), std::string::npos);
  }
  idle[0]->Send(R"({"prompt":"hi"})");
  EXPECT_EQ(idle[0]->Read().status, 200);
  idle[3]->Get("/health");
  EXPECT_EQ(idle[3]->Read().status, 200);
}

TEST_F(HttpServerTest, KeyAndCors) {
  options_.api.access.api_key = "secret";
  options_.api.access.cors_origins = {"https://app.example"};
  Start();
  RawClient client(port());
  client.Get("/v1/models");
  RawClient::Response response = client.Read();
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(ErrorCode(response), "invalid_api_key");
  EXPECT_NE(response.head.find("www-authenticate: Bearer\r\n"), std::string::npos);
  client.Get("/v1/models", "authorization: Bearer secret2\r\n");
  EXPECT_EQ(client.Read().status, 401);
  client.Get("/v1/models", "authorization: bearer secret\r\norigin: https://app.example\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_NE(response.head.find("access-control-allow-origin: https://app.example\r\n"),
            std::string::npos);
  client.Get("/stats", "x-api-key: secret\r\norigin: https://evil.example\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.head.find("access-control-allow-origin"), std::string::npos);
  client.Get("/health");
  EXPECT_EQ(client.Read().status, 200);
  client.Send("OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: https://app.example\r\n"
              "access-control-request-headers: authorization,x-stainless-os\r\n\r\n");
  response = client.Read();
  EXPECT_EQ(response.status, 204);
  EXPECT_NE(response.head.find("access-control-allow-headers: authorization,x-stainless-os\r\n"),
            std::string::npos);
  EXPECT_NE(response.head.find("access-control-allow-methods: POST, OPTIONS\r\n"), std::string::npos);
}

TEST_F(HttpServerTest, ShutdownLetsTheRunningRequestFinish) {
  Start();
  const uint16_t where = port();
  RawClient idle(where), running(where), waiting(where);
  idle.Get("/health");
  EXPECT_EQ(idle.Read().status, 200);
  running.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  running.ReadUntil("Hello");
  waiting.Post("/v1/chat/completions", ChatBody("waits"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.submitted == 2; }));
  auto shutdown = std::async(std::launch::async, [&] { server_->Shutdown(milliseconds(20'000)); });
  EXPECT_EQ(idle.ReadToEnd(), "");  // idle connections are closed at once
  EXPECT_FALSE(RawClient(where).connected());
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.cancel_asked == 1; }));
  service_.Release();
  EXPECT_TRUE(running.ReadToEnd().ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
  const RawClient::Response refused = waiting.Read();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(ErrorCode(refused), "shutting_down");
  shutdown.get();
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, ShutdownCancelsAfterTheGracePeriod) {
  Start();
  RawClient stream(port()), whole(port());
  stream.Post("/v1/chat/completions", ChatBody("[hold]", kStream));
  stream.ReadUntil("Hello");
  server_->Shutdown(milliseconds(10));
  const std::string rest = stream.ReadToEnd();
  EXPECT_NE(rest.find(R"({"error":{"message":"the server is shutting down")"), std::string::npos)
      << rest;
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, DestructionWaitsForTheServicesLastEvent) {
  Start();
  RawClient client(port());
  client.Post("/v1/chat/completions", ChatBody("[hold]"));
  ASSERT_TRUE(service_.WaitFor([](const auto& c) { return c.held == 1; }));
  server_.reset();
  EXPECT_EQ(service_.counts().finished, 1);
  EXPECT_EQ(service_.counts().cancelled, 1);
}

TEST_F(HttpServerTest, StartNamesAnAddressInUse) {
  Start();
  HttpServerOptions second = options_;
  second.port = port();
  const auto server = HttpServer::Start(second, &service_);
  ASSERT_FALSE(server.ok());
  EXPECT_NE(server.status().message().find("127.0.0.1:" + std::to_string(port())),
            std::string::npos);
  second.host = "not an address";
  EXPECT_EQ(HttpServer::Start(second, &service_).status().code(), StatusCode::kInvalidArgument);
}

TEST_F(HttpServerTest, TheBudgetIsChangedByPostWhenAdministrationIsOn) {
  options_.api.admin = true;
  Start();
  RawClient client(port());
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  auto response = client.Read();
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(ordered_json::parse(response.body),
            ordered_json({{"ram_budget_bytes", 5ull << 30},
                          {"minimum_bytes", 2ull << 30},
                          {"maximum_bytes", 8ull << 30}}));
  for (const auto& [body, message] :
       {std::pair(R"({"ram_budget":"1GiB"})", "the minimum is 2 GiB"),
        std::pair(R"({"ram_budget":5})", "expected a string"), std::pair("{}", "expected a size")}) {
    client.Post("/admin/ram-budget", body);
    response = client.Read();
    EXPECT_EQ(response.status, 400) << body;
    EXPECT_NE(response.body.find(message), std::string::npos) << response.body;
  }
  client.Get("/admin/ram-budget");
  EXPECT_EQ(client.Read().status, 405);
  service_.set_ready(false);
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  EXPECT_EQ(client.Read().status, 503);
}

TEST_F(HttpServerTest, WithoutAdministrationTheRouteDoesNotExist) {
  Start();
  RawClient client(port());
  client.Post("/admin/ram-budget", R"({"ram_budget":"5GiB"})");
  const auto response = client.Read();
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(ErrorCode(response), "not_found");
}

// The peer's address decides, and only where there is no key.
TEST(ApiHandlerTest, AdministrationFromAfarNeedsAKey) {
  FakeService service;
  for (const bool key : {false, true}) {
    ApiHandlerOptions options;
    options.admin = true;
    if (key) options.access.api_key = "secret";
    const ApiHandler handler(options, &service);
    RequestHead head;
    head.method = "POST";
    head.target = "/admin/ram-budget";
    head.fields = {{"host", "localhost"}, {"content-type", "application/json"}};
    if (key) head.fields.push_back({"authorization", "Bearer secret"});
    Route route = Route::kNone;
    const auto refusal = handler.CheckHead(head, &route);
    EXPECT_EQ(refusal.has_value(), !key);
    EXPECT_EQ(refusal ? refusal->status : 0, key ? 0 : 403);
    head.from_loopback = true;
    EXPECT_FALSE(handler.CheckHead(head, &route).has_value());
  }
}

}  // namespace
}  // namespace moraine
