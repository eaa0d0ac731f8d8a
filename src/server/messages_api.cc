#include "server/messages_api.h"

#include <fmt/format.h>

#include "server/api_response.h"
#include "server/chat_messages.h"
#include "server/json_fields.h"

namespace moraine {
namespace {

using Kind = OutputDelta::Kind;

constexpr const char* kSameFields[] = {"model", "stream", "top_p", "top_k", "min_p", "seed",
                                       "chat_template_kwargs"};

// A string, or blocks of text; joined by line breaks.
bool ReadText(FieldReader& fields, const Json& value, const std::string& where, std::string* text) {
  if (value.is_string()) {
    *text = value.get<std::string>();
    return true;
  }
  if (!value.is_array()) {
    fields.Fail(where, "a string or an array of blocks", value);
    return false;
  }
  for (size_t i = 0; i < value.size(); ++i) {
    const Json block = value[i].is_object() ? value[i] : Json::object();
    if (block.value("type", Json()) != "text" || !block.value("text", Json()).is_string()) {
      fields.Fail(UnsupportedField(fmt::format("{}[{}]", where, i), "blocks of text only"));
      return false;
    }
    if (i > 0) *text += '\n';
    *text += block["text"].get_ref<const std::string&>();
  }
  return true;
}

// One message's blocks. Results of tools become messages of their own, in front of the text beside them.
class BlockTranslator {
 public:
  BlockTranslator(FieldReader& fields, std::string role, Json* messages)
      : fields_(fields), role_(std::move(role)), messages_(*messages) {}

  void Add(const Json& block, const std::string& where) {
    const Json type = block.is_object() ? block.value("type", Json()) : Json();
    if (type == "text") {
      const Json text = block.value("text", Json());
      if (!text.is_string()) return fields_.Fail(where + ".text", "a string", text);
      if (has_text_) text_ += '\n';
      has_text_ = true;
      text_ += text.get_ref<const std::string&>();
    } else if (type == "thinking" && role_ == "assistant") {
      const Json text = block.value("thinking", Json());
      if (!text.is_string()) return fields_.Fail(where + ".thinking", "a string", text);
      thinking_ += text.get_ref<const std::string&>();
    } else if (type == "redacted_thinking" && role_ == "assistant") {
      // Another server's secret: nothing to show to a model.
    } else if (type == "tool_use" && role_ == "assistant") {
      AddCall(block, where);
    } else if (type == "tool_result" && role_ == "user") {
      AddResult(block, where);
    } else {
      fields_.Fail(UnsupportedField(where + ".type", "text, thinking, tool_use and tool_result only, found " +
                                                         DescribeJson(type)));
    }
  }

  void Finish() {
    const bool only_results = role_ == "user" && !has_text_ && results_;
    if (only_results) return;
    Json message = {{"role", role_}, {"content", text_}};
    if (!thinking_.empty()) message["reasoning_content"] = thinking_;
    if (!calls_.empty()) message["tool_calls"] = calls_;
    messages_.push_back(std::move(message));
  }

 private:
  void AddCall(const Json& block, const std::string& where) {
    const Json input = block.value("input", Json());
    if (!input.is_object()) return fields_.Fail(where + ".input", "an object", input);
    calls_.push_back({{"id", block.value("id", Json())},
                      {"type", "function"},
                      {"function", {{"name", block.value("name", Json())}, {"arguments", DumpJson(input)}}}});
  }
  void AddResult(const Json& block, const std::string& where) {
    std::string text;
    const Json content = block.value("content", Json(""));
    if (!ReadText(fields_, content, where + ".content", &text)) return;
    results_ = true;
    messages_.push_back({{"role", "tool"},
                         {"tool_call_id", block.value("tool_use_id", Json())},
                         {"content", text}});
  }

  FieldReader& fields_;
  const std::string role_;
  Json& messages_;
  std::string text_, thinking_;
  bool has_text_ = false, results_ = false;
  Json calls_ = Json::array();
};

void TranslateMessages(FieldReader& fields, Json* chat) {
  Json& messages = (*chat)["messages"] = Json::array();
  if (const Json* system = fields.Get("system")) {
    std::string text;
    if (!ReadText(fields, *system, "system", &text)) return;
    if (!text.empty()) messages.push_back({{"role", "system"}, {"content", text}});
  }
  const Json* list = fields.Get("messages");
  if (list == nullptr || !list->is_array() || list->empty()) {
    return fields.Fail("messages", "an array of at least one message", list ? *list : Json());
  }
  for (size_t i = 0; i < list->size(); ++i) {
    const std::string where = fmt::format("messages[{}]", i);
    const Json message = (*list)[i].is_object() ? (*list)[i] : Json::object();
    const Json role = message.value("role", Json());
    if (role != "user" && role != "assistant") {
      return fields.Fail(where + ".role", "user or assistant", role);
    }
    const Json content = message.value("content", Json());
    BlockTranslator blocks(fields, role.get<std::string>(), &messages);
    if (content.is_string()) {
      blocks.Add({{"type", "text"}, {"text", content}}, where + ".content");
    } else if (content.is_array()) {
      for (size_t k = 0; k < content.size() && !fields.failed(); ++k) {
        blocks.Add(content[k], fmt::format("{}.content[{}]", where, k));
      }
    } else {
      return fields.Fail(where + ".content", "a string or an array of blocks", content);
    }
    if (fields.failed()) return;
    blocks.Finish();
  }
}

void TranslateTools(FieldReader& fields, Json* chat) {
  const Json* tools = fields.Get("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Fail("tools", "an array", *tools);
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const Json tool = (*tools)[i].is_object() ? (*tools)[i] : Json::object();
    const Json type = tool.value("type", Json("custom"));
    if (type != "custom") {
      return fields.Fail(UnsupportedField(fmt::format("tools[{}].type", i),
                                          "tools of the client only, found " + DescribeJson(type)));
    }
    Json function = {{"name", tool.value("name", Json())}};
    if (tool.contains("description")) function["description"] = tool["description"];
    function["parameters"] = tool.value("input_schema", Json());
    (*chat)["tools"].push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  const Json* choice = fields.Get("tool_choice");
  if (choice == nullptr) return;
  const Json type = choice->is_object() ? choice->value("type", Json()) : Json();
  if (type == "auto" || type == "none") {
    (*chat)["tool_choice"] = type;
  } else if (type == "any") {
    (*chat)["tool_choice"] = "required";
  } else if (type == "tool") {
    (*chat)["tool_choice"] = {{"type", "function"}, {"function", {{"name", choice->value("name", Json())}}}};
  } else {
    return fields.Fail("tool_choice.type", "auto, any, tool or none", type);
  }
  if (choice->value("disable_parallel_tool_use", Json()) == true) {
    (*chat)["parallel_tool_calls"] = false;
  }
}

// Anthropic's thinking is off unless asked for; a template's own switch decides here unless the request
// says something.
void TranslateThinking(FieldReader& fields, Json* chat) {
  const Json* thinking = fields.Get("thinking");
  if (thinking == nullptr) return;
  const Json type = thinking->is_object() ? thinking->value("type", Json()) : Json();
  if (type != "enabled" && type != "disabled" && type != "adaptive") {
    return fields.Fail("thinking.type", "enabled, adaptive or disabled", type);
  }
  Json& variables = (*chat)["chat_template_kwargs"];
  if (!variables.is_object()) variables = Json::object();
  if (!variables.contains("enable_thinking")) variables["enable_thinking"] = type != "disabled";
}

std::string Event(const char* type, Json fields) {
  Json event;
  event["type"] = type;
  event.update(fields);
  return fmt::format("event: {}\ndata: {}\n\n", type, DumpJson(event));
}

}  // namespace

std::optional<ApiError> TranslateMessagesRequest(const Json& body, bool counts, Json* chat) {
  FieldReader fields(body);
  *chat = Json::object();
  for (const char* name : kSameFields) {
    if (const Json* value = fields.Get(name)) (*chat)[name] = *value;
  }
  float temperature = 0;
  fields.Number("temperature", {0, 1}, &temperature);
  if (const Json* value = fields.Get("temperature")) (*chat)["temperature"] = *value;
  if (const Json* stop = fields.Get("stop_sequences"); stop != nullptr && !stop->empty()) {
    (*chat)["stop"] = *stop;
  }
  if (!counts) {
    uint32_t max_tokens = 0;
    fields.Unsigned("max_tokens", 1, INT32_MAX, &max_tokens);
    if (fields.Get("max_tokens") == nullptr) {
      fields.Fail(InvalidRequest("max_tokens: expected an integer, found nothing", "max_tokens"));
    }
    (*chat)["max_tokens"] = max_tokens;
  }
  TranslateMessages(fields, chat);
  TranslateTools(fields, chat);
  TranslateThinking(fields, chat);
  return fields.error();
}

MessagesWriter::MessagesWriter(MessagesWriterOptions options,
                               std::vector<std::unique_ptr<OutputParser>> parsers)
    : ResponseWriter(std::move(parsers), options.streams), options_(std::move(options)) {}

MessagesWriter::Json MessagesWriter::UsageBody() const {
  const UsageTotals totals = Usage();
  Json usage;
  // Anthropic counts what came from the cache apart.
  usage["input_tokens"] = totals.prompt_tokens - totals.cached_tokens;
  usage["cache_creation_input_tokens"] = 0;
  usage["cache_read_input_tokens"] = totals.cached_tokens;
  usage["output_tokens"] = totals.completion_tokens;
  return usage;
}

MessagesWriter::Json MessagesWriter::Message() const {
  Json message;
  message["id"] = options_.id;
  message["type"] = "message";
  message["role"] = "assistant";
  message["model"] = options_.model;
  message["content"] = Json::array();
  message["stop_reason"] = nullptr;
  message["stop_sequence"] = nullptr;
  const ChoiceAnswer& answer = choices()[0];
  if (answer.finished) {
    message["stop_reason"] = answer.finish_reason == FinishReason::kLength ? "max_tokens"
                             : !answer.stop_string.empty()                 ? "stop_sequence"
                             : !answer.tool_calls.empty()                  ? "tool_use"
                                                                           : "end_turn";
    if (!answer.stop_string.empty()) message["stop_sequence"] = answer.stop_string;
  }
  message["usage"] = UsageBody();
  return message;
}

std::string MessagesWriter::StreamStart() {
  return Event("message_start", {{"message", Message()}});
}

std::string MessagesWriter::Close() {
  if (!open_) return "";
  open_.reset();
  return Event("content_block_stop", {{"index", block_++}});
}

std::string MessagesWriter::StreamDeltas(uint32_t, std::span<const OutputDelta> deltas,
                                         const GenerationEvent*) {
  std::string data;
  for (const OutputDelta& delta : deltas) {
    const Kind kind = delta.kind == Kind::kToolArguments ? Kind::kToolCall : delta.kind;
    if (delta.kind == Kind::kToolCall || open_ != kind) {
      data += Close();
      open_ = kind;
      Json block;
      if (kind == Kind::kContent) block = {{"type", "text"}, {"text", ""}};
      if (kind == Kind::kReasoning) block = {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}};
      if (kind == Kind::kToolCall) {
        block = {{"type", "tool_use"}, {"id", delta.id}, {"name", delta.name}, {"input", Json::object()}};
      }
      data += Event("content_block_start", {{"index", block_}, {"content_block", std::move(block)}});
    }
    if (delta.kind == Kind::kToolCall) continue;
    Json change;
    if (kind == Kind::kContent) change = {{"type", "text_delta"}, {"text", delta.text}};
    if (kind == Kind::kReasoning) change = {{"type", "thinking_delta"}, {"thinking", delta.text}};
    if (kind == Kind::kToolCall) change = {{"type", "input_json_delta"}, {"partial_json", delta.text}};
    data += Event("content_block_delta", {{"index", block_}, {"delta", std::move(change)}});
  }
  return data;
}

std::string MessagesWriter::StreamFinish(uint32_t) { return Close(); }

std::string MessagesWriter::StreamEnd() {
  const Json message = Message();
  return Event("message_delta", {{"delta",
                                  {{"stop_reason", message["stop_reason"]},
                                   {"stop_sequence", message["stop_sequence"]}}},
                                 {"usage", message["usage"]}}) +
         Event("message_stop", Json::object());
}

std::string MessagesWriter::StreamError(const ApiError& error) {
  return "event: error\ndata: " + error.ToJson(ErrorShape::kAnthropic) + "\n\n";
}

std::string MessagesWriter::FullBody() {
  Json message = Message();
  const ChoiceAnswer& answer = choices()[0];
  Json& content = message["content"];
  if (!answer.reasoning.empty()) {
    content.push_back({{"type", "thinking"}, {"thinking", answer.reasoning}, {"signature", ""}});
  }
  if (!answer.content.empty() || answer.tool_calls.empty()) {
    content.push_back({{"type", "text"}, {"text", answer.content}});
  }
  for (const ToolCall& call : answer.tool_calls) {
    Json input;
    // What was cut off is no object; the API has nothing else for it.
    if (!ParseJsonText(call.arguments, &input) || !input.is_object()) input = Json::object();
    content.push_back(
        {{"type", "tool_use"}, {"id", call.id}, {"name", call.name}, {"input", std::move(input)}});
  }
  return DumpJson(message);
}

}  // namespace moraine
