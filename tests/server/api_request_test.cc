#include "server/api_request.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "server/json_fields.h"

namespace moraine {
namespace {

RequestDefaults Defaults() {
  RequestDefaults defaults;
  defaults.sampling.temperature = 0.7f;
  defaults.sampling.top_k = 20;
  defaults.sampling.seed = 99;
  defaults.vocab_size = 1000;
  return defaults;
}

std::string Chat(const std::string& more) {
  return R"({"messages":[{"role":"user","content":"hi"}],)" + more + "}";
}
std::string Raw(const std::string& more) { return R"({"prompt":"hi",)" + more + "}"; }

ApiRequest ParseOrFail(const std::string& body, bool chat) {
  ApiRequest request;
  const auto error = chat ? ParseChatRequest(body, Defaults(), &request)
                          : ParseCompletionRequest(body, Defaults(), &request);
  EXPECT_FALSE(error) << body << ": " << error->message;
  return request;
}
ApiRequest ParseChatOrFail(const std::string& body) { return ParseOrFail(body, true); }
ApiRequest ParseRawOrFail(const std::string& body) { return ParseOrFail(body, false); }

TEST(ApiRequestTest, AllFieldsOfChat) {
  const ApiRequest request = ParseChatOrFail(Chat(
      R"("model":"m","stream":true,"stream_options":{"include_usage":true},"temperature":0.25,)"
      R"("top_p":0.5,"top_k":7,"min_p":0.125,"repetition_penalty":1.5,"presence_penalty":-2,)"
      R"("frequency_penalty":2,"seed":-5,"logit_bias":{"3":-100,"999":1.5},"stop":["a","b"],)"
      R"("max_tokens":5,"max_completion_tokens":6,"ignore_eos":true,"logprobs":true,)"
      R"("top_logprobs":20,"chat_template_kwargs":{"enable_thinking":false},)"
      R"("n":3,"user":"u","return_progress":true,"metadata":{"a":"b"},"some_future_field":[1])"));
  EXPECT_EQ(request.kind, ApiKind::kChat);
  EXPECT_EQ(request.model, "m");
  EXPECT_TRUE(request.stream && request.include_usage && request.ignore_eos);
  EXPECT_TRUE(request.return_progress);
  EXPECT_EQ(request.choice_count, 3u);
  EXPECT_EQ(request.sampling.temperature, 0.25f);
  EXPECT_EQ(request.sampling.top_p, 0.5f);
  EXPECT_EQ(request.sampling.top_k, 7u);
  EXPECT_EQ(request.sampling.min_p, 0.125f);
  EXPECT_EQ(request.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request.sampling.presence_penalty, -2.0f);
  EXPECT_EQ(request.sampling.frequency_penalty, 2.0f);
  EXPECT_EQ(request.sampling.seed, static_cast<uint64_t>(-5));
  const std::vector<std::pair<int32_t, float>> bias = {{3, -100.0f}, {999, 1.5f}};
  EXPECT_EQ(request.sampling.logit_bias, bias);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(request.max_tokens, 6u);  // the newer name wins
  EXPECT_EQ(request.top_logprobs, 20u);
  EXPECT_EQ(request.template_context.dump(),
            R"({"enable_thinking":false,"messages":[{"role":"user","content":"hi"}],)"
            R"("add_generation_prompt":true})");
}

TEST(ApiRequestTest, AbsentAndNullFieldsTakeTheDefaults) {
  for (const char* more : {R"("x":0)", R"("temperature":null,"top_k":null,"stop":null,"seed":null,)"
                                       R"("max_tokens":null,"logprobs":null,"tools":null,"n":null,)"
                                       R"("stream":null,"stream_options":null,"model":null)"}) {
    const ApiRequest request = ParseChatOrFail(Chat(more));
    EXPECT_EQ(request.sampling.temperature, 0.7f);
    EXPECT_EQ(request.sampling.top_k, 20u);
    EXPECT_EQ(request.sampling.seed, 99u);
    EXPECT_EQ(request.max_tokens, 0u);
    EXPECT_FALSE(request.stream || request.include_usage || request.top_logprobs);
    EXPECT_TRUE(request.stop.empty());
    EXPECT_EQ(ParseRawOrFail(Raw(more)).max_tokens, 16u);  // OpenAI's default of that endpoint
  }
  EXPECT_GT(ParseChatOrFail(Chat(R"("top_p":0)")).sampling.top_p, 0.0f);  // the sampler needs more than 0
}

TEST(ApiRequestTest, FieldsThatAskForNothingAreTolerated) {
  ParseChatOrFail(Chat(R"("tools":[],"tool_choice":"none","functions":[],"audio":null,"n":1,)"
                       R"("modalities":["text"],"response_format":{"type":"text"},"echo":false,)"
                       R"("suffix":null,"use_beam_search":false,"logprobs":false,"top_logprobs":0)"));
}

TEST(ApiRequestTest, MessagesInNormalForm) {
  const ApiRequest request = ParseChatOrFail(
      R"({"messages":[{"role":"developer","content":"be brief"},{"role":"system","content":""},)"
      R"({"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"n"},)"
      R"({"role":"assistant","content":null,"tool_calls":[]},)"
      R"({"role":"tool","content":"42","tool_call_id":"t1"}]})");
  EXPECT_EQ(request.template_context["messages"].dump(),
            R"([{"role":"system","content":"be brief"},{"role":"system","content":""},)"
            R"({"role":"user","content":"a\nb","name":"n"},{"role":"assistant","content":""},)"
            R"({"role":"tool","content":"42","tool_call_id":"t1"}])");
}

TEST(ApiRequestTest, ToolsAndTheirCalls) {
  const std::string tools =
      R"("tools":[{"type":"function","function":{"name":"f","description":"d","parameters":)"
      R"({"type":"object","properties":{"a":{"type":"string"}}}}},)"
      R"({"type":"function","function":{"name":"g"}}])";
  ApiRequest request = ParseChatOrFail(Chat(tools + R"(,"parallel_tool_calls":false)"));
  ASSERT_EQ(request.tools.size(), 2u);
  EXPECT_EQ(request.tools[0].name, "f");
  EXPECT_EQ(request.tools[0].parameters["properties"]["a"]["type"], "string");
  EXPECT_EQ(request.tools[1].parameters.dump(), R"({"type":"object"})");
  EXPECT_FALSE(request.parallel_tool_calls);
  EXPECT_EQ(request.tool_choice.kind, ToolChoice::Kind::kAuto);
  EXPECT_EQ("{" + tools + "}", R"({"tools":)" + request.template_context["tools"].dump() + "}");

  request = ParseChatOrFail(
      Chat(tools + R"(,"tool_choice":{"type":"function","function":{"name":"g"}})"));
  EXPECT_EQ(request.tool_choice.kind, ToolChoice::Kind::kNamed);
  EXPECT_EQ(request.tool_choice.name, "g");
  request = ParseChatOrFail(Chat(tools + R"(,"tool_choice":"none")"));
  EXPECT_TRUE(request.tools.empty());
  EXPECT_FALSE(request.template_context.contains("tools"));

  request = ParseChatOrFail(
      R"({"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",)"
      R"("function":{"name":"f","arguments":"{\"a\": 1}"}},{"id":"2","type":"function",)"
      R"("function":{"name":"g","arguments":"broken"}}]}]})");
  const std::string head = R"([{"role":"assistant","content":"","tool_calls":[{"id":"1","type":)"
                           R"("function","function":{"name":"f","arguments":)";
  const std::string tail = R"(}},{"id":"2","type":"function","function":{"name":"g","arguments":)"
                           R"("broken"}}]}])";
  EXPECT_EQ(request.template_context["messages"].dump(), head + R"({"a":1})" + tail);
  UseArgumentText(&request);  // to the byte as it came
  EXPECT_EQ(request.template_context["messages"].dump(), head + R"("{\"a\": 1}")" + tail);
}

TEST(ApiRequestTest, ReasoningEffortGoesToTheTemplate) {
  EXPECT_EQ(ParseChatOrFail(Chat(R"("reasoning_effort":"high")")).template_context["reasoning_effort"],
            "high");
  EXPECT_EQ(ParseChatOrFail(Chat(R"("reasoning_effort":"none")")).template_context["enable_thinking"],
            false);
  EXPECT_EQ(ParseChatOrFail(Chat(R"("reasoning_effort":"none",)"
                                 R"("chat_template_kwargs":{"enable_thinking":true})"))
                .template_context["enable_thinking"],
            true);
  EXPECT_FALSE(ParseChatOrFail(Chat(R"("reasoning_format":"none")")).split_reasoning);
}

TEST(ApiRequestTest, PromptsOfCompletions) {
  EXPECT_EQ(ParseRawOrFail(R"({"prompt":"hi"})").prompts.at(0).text, "hi");
  EXPECT_EQ(ParseRawOrFail(R"({"prompt":["hi"]})").prompts.at(0).text, "hi");
  const std::vector<int32_t> ids = {1, 999};
  EXPECT_EQ(ParseRawOrFail(R"({"prompt":[1,999]})").prompts.at(0).tokens, ids);
  EXPECT_EQ(ParseRawOrFail(R"({"prompt":[[1,999]]})").prompts.at(0).tokens, ids);
  const ApiRequest several = ParseRawOrFail(R"({"prompt":["a",[1,999],"b"]})");
  ASSERT_EQ(several.prompts.size(), 3u);
  EXPECT_EQ(several.prompts[0].text, "a");
  EXPECT_EQ(several.prompts[1].tokens, ids);
  EXPECT_EQ(several.prompts[2].text, "b");
  EXPECT_EQ(ParseRawOrFail(Raw(R"("logprobs":0)")).top_logprobs, 0u);
}

struct BadCase {
  bool chat;
  std::string body;
  const char* param;  // "" for none
  const char* message;
};

// Every error names the field, what was expected and what was found.
TEST(ApiRequestTest, ErrorsNameFieldFoundAndExpected) {
  const BadCase cases[] = {
      {true, "", "", "the body is not valid JSON: parse error"},
      {true, "[1]", "", "the body: expected an object, found an array of 1"},
      {true, "{}", "messages", "messages: expected an array, found nothing"},
      {true, R"({"messages":"hi"})", "messages",
       R"(messages: expected an array of at least one message, found the string "hi")"},
      {true, R"({"messages":[]})", "messages",
       "messages: expected an array of at least one message, found an array of 0"},
      {true, R"({"messages":["x"]})", "messages[0]",
       R"(messages[0]: expected an object, found the string "x")"},
      {true, R"({"messages":[{"role":"user","content":"a"},{"role":"robot","content":"b"}]})",
       "messages[1].role",
       "messages[1].role: expected system, developer, user, assistant or tool, found the string "
       "\"robot\""},
      {true, R"({"messages":[{"content":"a"}]})", "messages[0].role",
       "messages[0].role: expected system, developer, user, assistant or tool, found null"},
      {true, R"({"messages":[{"role":"user"}]})", "messages[0].content",
       "messages[0].content: expected a string or an array of text parts, found nothing"},
      {true, R"({"messages":[{"role":"user","content":3}]})", "messages[0].content",
       "messages[0].content: expected a string or an array of text parts, found the number 3"},
      {true, R"({"messages":[{"role":"user","content":[5]}]})", "messages[0].content[0]",
       "messages[0].content[0]: expected an object with a type, found the number 5"},
      {true, R"({"messages":[{"role":"user","content":[{"type":"text","text":1}]}]})",
       "messages[0].content[0].text",
       "messages[0].content[0].text: expected a string, found the number 1"},
      {true, R"({"messages":[{"role":"user","content":"a","name":[]}]})", "messages[0].name",
       "messages[0].name: expected a string, found an array of 0"},
      {true, Chat(R"("temperature":3)"), "temperature",
       "temperature: expected a number from 0 to 2, found the number 3"},
      {true, Chat(R"("temperature":"warm")"), "temperature",
       R"(temperature: expected a number from 0 to 2, found the string "warm")"},
      {true, Chat(R"("top_p":-0.1)"), "top_p",
       "top_p: expected a number from 0 to 1, found the number -0.1"},
      {true, Chat(R"("min_p":1)"), "min_p",
       "min_p: expected a number from 0 to below 1, found the number 1"},
      {true, Chat(R"("repetition_penalty":0)"), "repetition_penalty",
       "repetition_penalty: expected a number above 0 to 100, found the number 0"},
      {true, Chat(R"("presence_penalty":2.5)"), "presence_penalty",
       "presence_penalty: expected a number from -2 to 2, found the number 2.5"},
      {true, Chat(R"("top_k":1.5)"), "top_k",
       "top_k: expected an integer from 0 to 2147483647, found the number 1.5"},
      {true, Chat(R"("top_k":18446744073709551615)"), "top_k",
       "top_k: expected an integer from 0 to 2147483647, found the number 18446744073709551615"},
      {true, Chat(R"("max_tokens":0)"), "max_tokens",
       "max_tokens: expected an integer from 1 to 2147483647, found the number 0"},
      {true, Chat(R"("stream":"yes")"), "stream",
       R"(stream: expected true or false, found the string "yes")"},
      {true, Chat(R"("stream_options":{})"), "stream_options",
       "stream_options: only allowed when stream is true"},
      {true, Chat(R"("stream":true,"stream_options":{"include_usage":1})"),
       "stream_options.include_usage",
       "stream_options.include_usage: expected true or false, found the number 1"},
      {true, Chat(R"("seed":1e3)"), "seed",
       "seed: expected an integer from -9223372036854775808 to 9223372036854775807, found the "
       "number 1000.0"},
      {true, Chat(R"("model":7)"), "model", "model: expected a string, found the number 7"},
      {true, Chat(R"("stop":["a",""])"), "stop",
       "stop: expected a string or an array of at most 16 strings of 1 to 1024 bytes, found the "
       "string \"\""},
      {true, Chat(R"("stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16",)"
                  R"("17"])"),
       "stop",
       "stop: expected a string or an array of at most 16 strings of 1 to 1024 bytes, found an "
       "array of 17"},
      {true, Chat(R"("logit_bias":{"1000":1})"), "logit_bias",
       R"(logit_bias: expected token ids below 1000 as keys, found the string "1000")"},
      {true, Chat(R"("logit_bias":{"+1":1})"), "logit_bias",
       R"(logit_bias: expected token ids below 1000 as keys, found the string "+1")"},
      {true, Chat(R"("logit_bias":{"1":101})"), "logit_bias.1",
       "logit_bias.1: expected a number from -100 to 100, found the number 101"},
      {true, Chat(R"("logprobs":1)"), "logprobs",
       "logprobs: expected true or false, found the number 1"},
      {true, Chat(R"("top_logprobs":2)"), "top_logprobs",
       "top_logprobs: only allowed when logprobs is true"},
      {true, Chat(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs",
       "top_logprobs: expected an integer from 0 to 20, found the number 21"},
      {true, Chat(R"("response_format":"json")"), "response_format.type",
       "response_format.type: expected text, json_object or json_schema, found null"},
      {true, Chat(R"("response_format":{"type":"json_schema","json_schema":{}})"),
       "response_format.json_schema.schema",
       "response_format.json_schema.schema: expected a JSON schema, found null"},
      {true, Chat(R"("n":9)"), "n", "n: expected an integer from 1 to 8, found the number 9"},
      {true, Chat(R"("tools":[7])"), "tools[0]", "tools[0]: expected an object, found the number 7"},
      {true, Chat(R"("tools":[{"type":"function","function":{"name":"a b"}}])"),
       "tools[0].function.name",
       "tools[0].function.name: expected 1 to 128 of a-z, A-Z, 0-9, _, - and ., found the string \"a "
       "b\""},
      {true, Chat(R"("tools":[{"type":"function","function":{"name":"f","parameters":3}}])"),
       "tools[0].function.parameters",
       "tools[0].function.parameters: expected a JSON schema, found the number 3"},
      {true, Chat(R"("tool_choice":{"type":"function","function":{"name":"f"}})"), "tool_choice",
       "tool_choice: expected one of the tools, found an object"},
      {true, Chat(R"("tool_choice":"always")"), "tool_choice",
       "tool_choice: expected \"none\", \"auto\", \"required\" or a function's name, found the "
       "string \"always\""},
      {true, R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":1}}]}]})",
       "messages[0].tool_calls[0].function.name",
       "messages[0].tool_calls[0].function.name: expected a string, found the number 1"},
      {true,
       R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f",)"
       R"("arguments":{}}}]}]})",
       "messages[0].tool_calls[0].function.arguments",
       "messages[0].tool_calls[0].function.arguments: expected a string of JSON, found an object"},
      {true, Chat(R"("reasoning_format":"deepseek")"), "reasoning_format",
       "reasoning_format: expected \"auto\" or \"none\", found the string \"deepseek\""},
      {true, Chat(R"("chat_template_kwargs":{"bos_token":"<|im_end|>"})"),
       "chat_template_kwargs.bos_token", "chat_template_kwargs.bos_token: set by the server"},
      {true, Chat(R"("chat_template_kwargs":{"messages":[]})"), "chat_template_kwargs.messages",
       "chat_template_kwargs.messages: set by the server"},
      {false, "{}", "prompt",
       "prompt: expected a string or an array of token ids, found nothing"},
      {false, R"({"prompt":[]})", "prompt",
       "prompt: expected a string or an array of token ids, found an array of 0"},
      {false, R"({"prompt":[1,1000]})", "prompt",
       "prompt: expected token ids below 1000, found the number 1000"},
      {false, R"({"prompt":[1,-1]})", "prompt",
       "prompt: expected token ids below 1000, found the number -1"},
      {false, R"({"prompt":[1,"a"]})", "prompt",
       R"(prompt: expected token ids below 1000, found the string "a")"},
      {false, Raw(R"("logprobs":true)"), "logprobs",
       "logprobs: expected an integer from 0 to 20, found true"},
  };
  for (const BadCase& c : cases) {
    ApiRequest request;
    const auto error = c.chat ? ParseChatRequest(c.body, Defaults(), &request)
                              : ParseCompletionRequest(c.body, Defaults(), &request);
    ASSERT_TRUE(error) << c.body;
    EXPECT_EQ(error->http_status, 400);
    EXPECT_EQ(error->message.substr(0, std::string(c.message).size()), c.message) << c.body;
    EXPECT_EQ(error->param.value_or(""), c.param) << c.body;
  }
}

TEST(ApiRequestTest, UnsupportedFieldsAreRefusedByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("functions":[{}])", "functions"},
      {R"("function_call":"auto")", "function_call"},
      {R"("best_of":2)", "best_of"},
      {R"("audio":{"voice":"x"})", "audio"},
      {R"("modalities":["text","audio"])", "modalities"},
      {R"("prediction":{"type":"content"})", "prediction"},
      {R"("web_search_options":{"a":1})", "web_search_options"},
      {R"("echo":true)", "echo"},
      {R"("suffix":"end")", "suffix"},
      {R"("guided_json":{"a":1})", "guided_json"},
      {R"("grammar":"root ::= x")", "grammar"},
  };
  for (const auto& [field, param] : cases) {
    for (const bool chat : {true, false}) {
      ApiRequest request;
      const auto error = chat ? ParseChatRequest(Chat(field), Defaults(), &request)
                              : ParseCompletionRequest(Raw(field), Defaults(), &request);
      ASSERT_TRUE(error) << field;
      EXPECT_EQ(error->http_status, 400);
      EXPECT_EQ(error->param, param);
      EXPECT_EQ(error->code, "unsupported") << error->message;
    }
  }
  ApiRequest request;
  auto error = ParseChatRequest(
      R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]})", Defaults(),
      &request);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "messages[0].content[0].type");
  EXPECT_EQ(error->code, "unsupported");
  error = ParseChatRequest(R"({"messages":[{"role":"assistant","audio":{"id":"1"}}]})", Defaults(),
                           &request);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "messages[0].audio");
  error = ParseChatRequest(Chat(R"("tools":[{"type":"web_search"}])"), Defaults(), &request);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "tools[0].type");
  EXPECT_EQ(error->code, "unsupported");
}

TEST(ApiRequestTest, ALastMessageOfTheAssistantIsContinued) {
  const auto chat = [](const std::string& last, const std::string& more = "") {
    return R"({"messages":[{"role":"user","content":"a"},)" + last + "]" + more + "}";
  };
  const std::string prefix = R"({"role":"assistant","content":"b"})";
  ApiRequest request = ParseChatOrFail(chat(prefix));
  EXPECT_TRUE(request.continues_message);
  EXPECT_EQ(request.template_context["add_generation_prompt"], false);
  EXPECT_TRUE(ParseChatOrFail(chat(prefix, R"(,"continue_final_message":true)")).continues_message);
  for (const std::string& body :
       {chat(prefix, R"(,"continue_final_message":false)"),
        chat(prefix, R"(,"add_generation_prompt":true)"),
        chat(R"({"role":"assistant","content":" "})"), chat(R"({"role":"user","content":"b"})"),
        chat(R"({"role":"assistant","content":"b","tool_calls":[{"id":"1","function":{"name":"f"}}]})")}) {
    request = ParseChatOrFail(body);
    EXPECT_FALSE(request.continues_message) << body;
    EXPECT_EQ(request.template_context["add_generation_prompt"], true) << body;
  }
  const auto error = ParseChatRequest(Chat(R"("continue_final_message":true)"), Defaults(), &request);
  ASSERT_TRUE(error);
  EXPECT_EQ(error->param, "continue_final_message");
}

// Arguments of earlier calls are JSON within JSON, to which the limits of a body apply, too: deep values
// would overflow the stack, and objects of many members cost the square of their number.
TEST(ApiRequestTest, ArgumentsOfEarlierCallsThatAreTooLargeStayText) {
  const auto arguments_of = [](const std::string& text) {
    const ApiRequest request = ParseChatOrFail(
        R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":)" +
        Json(text).dump() + "}}]}]}");
    return request.template_context["messages"][0]["tool_calls"][0]["function"]["arguments"];
  };
  EXPECT_TRUE(arguments_of(R"({"a":[1]})").is_object());
  std::string deep = "1";
  for (int i = 0; i < 60; ++i) deep = R"({"a":)" + deep + "}";
  EXPECT_TRUE(arguments_of(deep).is_object());
  const size_t levels = 1'000'000;
  deep.clear();
  for (size_t i = 0; i < levels; ++i) deep += R"({"a":)";
  deep += "1" + std::string(levels, '}');
  EXPECT_TRUE(arguments_of(deep).is_string());
  std::string wide = "{";
  for (int i = 0; i < 2000; ++i) wide += fmt::format(R"("{}":1,)", i);
  wide.back() = '}';
  EXPECT_TRUE(arguments_of(wide).is_string());
}

TEST(JsonBodyTest, SizeOfStructureIsBounded) {
  const auto error_of = [](const std::string& body) {
    Json json;
    const auto error = ParseJsonBody(body, &json);
    return error ? error->message : "accepted";
  };
  const auto nested = [](int levels) {
    std::string list;
    for (int i = 0; i < levels; ++i) list += '[';
    return R"({"a":)" + list + std::string(static_cast<size_t>(levels), ']') + "}";
  };
  EXPECT_EQ(error_of(nested(kMaxJsonDepth - 1)), "accepted");
  EXPECT_NE(error_of(nested(kMaxJsonDepth)).find("nested deeper than 64 levels"), std::string::npos);
  EXPECT_NE(error_of(nested(1'000'000)).find("nested deeper"), std::string::npos);
  EXPECT_EQ(error_of(R"({"a":"[[[[\"[[[[[{{{{{:::,,,"})"), "accepted");  // not in strings

  std::string many = R"({"a":[0)";
  for (size_t i = 0; i < kMaxJsonValues; ++i) many += ",0";
  EXPECT_NE(error_of(many + "]}").find("more than 2097152 values"), std::string::npos);

  std::string members = "{";
  for (size_t i = 0; i < kMaxJsonMembersOfObject; ++i) members += "\"" + std::to_string(i) + "\":0,";
  EXPECT_NE(error_of(members + "\"x\":0}").find("more than 1024 members"), std::string::npos);
  members.pop_back();
  EXPECT_EQ(error_of(members + "}"), "accepted");
}

TEST(JsonBodyTest, BadUtf8IsRefused) {
  for (const char* bad : {"{\"a\":\"\xff\"}", "{\"a\":\"\xc3\"}", "{\"a\":\"\xed\xa0\x80\"}",
                          "{\"\xf8\":1}", R"({"a":"\ud800"})"}) {
    Json json;
    EXPECT_TRUE(ParseJsonBody(bad, &json)) << bad;
  }
}

TEST(JsonBodyTest, DescriptionsAreCutBetweenCharacters) {
  EXPECT_EQ(DescribeJson(Json(std::string(39, 'a') + "ö-rest")),
            "the string \"" + std::string(39, 'a') + "...\"");
}

}  // namespace
}  // namespace moraine
