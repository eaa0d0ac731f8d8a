// The APIs that are translations: OpenAI's responses and Anthropic's messages.
#include <gtest/gtest.h>

#include <array>
#include <nlohmann/json.hpp>

#include "http_server_fixture.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

class TranslatedApiTest : public HttpServerTest {};

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

TEST_F(TranslatedApiTest, ResponsesWhole) {
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

TEST_F(TranslatedApiTest, ResponsesStream) {
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

TEST_F(TranslatedApiTest, ResponsesTranslateConversations) {
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

TEST_F(TranslatedApiTest, MessagesWhole) {
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

TEST_F(TranslatedApiTest, MessagesStream) {
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

TEST_F(TranslatedApiTest, MessagesTranslateConversations) {
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

TEST_F(TranslatedApiTest, MessagesHaveTheirOwnErrors) {
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

}  // namespace
}  // namespace moraine
