#include "server/responses_api.h"

#include <fmt/format.h>

#include "server/api_response.h"
#include "server/chat_messages.h"
#include "server/json_fields.h"

namespace moraine {
namespace {

using Kind = OutputDelta::Kind;

// Same name, same meaning in a chat.
constexpr const char* kSameFields[] = {
    "model", "stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "logit_bias", "parallel_tool_calls",
    "chat_template_kwargs", "reasoning_format", "return_progress"};

void RefuseStateful(FieldReader& fields) {
  static constexpr const char* kNames[] = {"previous_response_id", "conversation", "background",
                                           "prompt"};
  for (const char* name : kNames) {
    if (AsksForSomething(fields.Get(name))) {
      fields.Fail(UnsupportedField(name, "nothing is stored here; send the whole input"));
    }
  }
}

// The text of "content" or "output": a string, or parts with a text.
bool ReadParts(FieldReader& fields, const Json& value, const std::string& where, std::string* text) {
  if (value.is_string()) {
    *text += value.get_ref<const std::string&>();
    return true;
  }
  if (!value.is_array()) {
    fields.Fail(where, "a string or an array of text parts", value);
    return false;
  }
  for (size_t i = 0; i < value.size(); ++i) {
    const Json part = value[i].is_object() ? value[i] : Json::object();
    const Json type = part.value("type", Json());
    const bool is_text = type == "input_text" || type == "output_text" || type == "text" ||
                         type == "reasoning_text" || type == "summary_text";
    if (!is_text) {
      fields.Fail(UnsupportedField(fmt::format("{}[{}].type", where, i),
                                   "text only, found " + DescribeJson(type)));
      return false;
    }
    if (!part.contains("text") || !part["text"].is_string()) {
      fields.Fail(fmt::format("{}[{}].text", where, i), "a string", part.value("text", Json()));
      return false;
    }
    if (!text->empty()) *text += '\n';
    *text += part["text"].get_ref<const std::string&>();
  }
  return true;
}

// Items become messages; calls and reasoning belong to the assistant's message around them.
class InputTranslator {
 public:
  InputTranslator(FieldReader& fields, Json* messages) : fields_(fields), messages_(*messages) {}

  void Add(const Json& item, const std::string& where) {
    if (!item.is_object()) return fields_.Fail(where, "an object", item);
    const Json type = item.value("type", Json("message"));
    if (type == "message") return AddMessage(item, where);
    if (type == "function_call") return AddCall(item);
    if (type == "function_call_output") return AddOutput(item, where);
    if (type == "reasoning") return AddReasoning(item, where);
    fields_.Fail(UnsupportedField(where + ".type", "messages, reasoning, function_call and "
                                                   "function_call_output only, found " +
                                                       DescribeJson(type)));
  }

 private:
  void AddMessage(const Json& item, const std::string& where) {
    std::string text;
    if (!ReadParts(fields_, item.value("content", Json()), where + ".content", &text)) return;
    Json message = {{"role", item.value("role", Json())}, {"content", text}};
    if (message["role"] == "assistant" && !reasoning_.empty()) {
      message["reasoning_content"] = std::exchange(reasoning_, "");
    }
    messages_.push_back(std::move(message));
  }
  void AddCall(const Json& item) {
    const bool joins = !messages_.empty() && messages_.back()["role"] == "assistant";
    if (!joins) {
      messages_.push_back({{"role", "assistant"}, {"content", nullptr}});
      if (!reasoning_.empty()) {
        messages_.back()["reasoning_content"] = std::exchange(reasoning_, "");
      }
    }
    messages_.back()["tool_calls"].push_back(
        {{"id", item.value("call_id", Json())},
         {"type", "function"},
         {"function",
          {{"name", item.value("name", Json())}, {"arguments", item.value("arguments", Json())}}}});
  }
  void AddOutput(const Json& item, const std::string& where) {
    std::string text;
    if (!ReadParts(fields_, item.value("output", Json()), where + ".output", &text)) return;
    messages_.push_back({{"role", "tool"},
                         {"tool_call_id", item.value("call_id", Json())},
                         {"content", text}});
  }
  void AddReasoning(const Json& item, const std::string& where) {
    for (const char* name : {"content", "summary"}) {
      const Json parts = item.value(name, Json());
      if (!AsksForSomething(&parts)) continue;
      ReadParts(fields_, parts, fmt::format("{}.{}", where, name), &reasoning_);
      return;  // a summary says the same again
    }
  }

  FieldReader& fields_;
  Json& messages_;
  std::string reasoning_;
};

void TranslateInput(FieldReader& fields, Json* chat) {
  Json& messages = (*chat)["messages"] = Json::array();
  std::string instructions;
  fields.String("instructions", &instructions);
  if (!instructions.empty()) {
    messages.push_back({{"role", "system"}, {"content", instructions}});
  }
  const Json* input = fields.Get("input");
  if (input == nullptr) {
    return fields.Fail(
        InvalidRequest("input: expected a string or an array of items, found nothing", "input"));
  }
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
    return;
  }
  if (!input->is_array()) return fields.Fail("input", "a string or an array of items", *input);
  InputTranslator translator(fields, &messages);
  for (size_t i = 0; i < input->size(); ++i) {
    translator.Add((*input)[i], fmt::format("input[{}]", i));
    if (fields.failed()) return;
  }
}

// {"type":"function","name",...} -> {"type":"function","function":{"name",...}}
void TranslateTools(FieldReader& fields, Json* chat) {
  const Json* tools = fields.Get("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Fail("tools", "an array", *tools);
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) {
    const Json& tool = (*tools)[i];
    Json function = tool.is_object() ? tool : Json::object();
    const Json type = function.value("type", Json());
    function.erase("type");
    (*chat)["tools"].push_back({{"type", type}, {"function", std::move(function)}});
  }
  const Json* choice = fields.Get("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_object() && choice->contains("name")) {
    (*chat)["tool_choice"] = {{"type", choice->value("type", Json())},
                              {"function", {{"name", (*choice)["name"]}}}};
  } else {
    (*chat)["tool_choice"] = *choice;
  }
}

// text.format -> response_format
void TranslateText(FieldReader& fields, Json* chat) {
  const Json* text = fields.Get("text");
  if (text == nullptr) return;
  const Json format = text->is_object() ? text->value("format", Json()) : Json();
  if (!format.is_object()) return;
  if (format.value("type", Json()) == "json_schema") {
    Json schema = format;
    schema.erase("type");
    (*chat)["response_format"] = {{"type", "json_schema"}, {"json_schema", std::move(schema)}};
  } else {
    (*chat)["response_format"] = format;
  }
}

}  // namespace

std::optional<ApiError> TranslateResponsesRequest(const Json& body, Json* chat) {
  FieldReader fields(body);
  *chat = Json::object();
  RefuseStateful(fields);
  for (const char* name : kSameFields) {
    if (const Json* value = fields.Get(name)) (*chat)[name] = *value;
  }
  uint32_t max_tokens = 0;
  fields.Unsigned("max_output_tokens", 1, INT32_MAX, &max_tokens);
  if (max_tokens > 0) (*chat)["max_completion_tokens"] = max_tokens;
  if (const Json* reasoning = fields.Get("reasoning"); reasoning != nullptr && reasoning->is_object()) {
    if (reasoning->contains("effort")) (*chat)["reasoning_effort"] = (*reasoning)["effort"];
  }
  TranslateInput(fields, chat);
  TranslateTools(fields, chat);
  TranslateText(fields, chat);
  return fields.error();
}

ResponsesWriter::ResponsesWriter(ResponsesWriterOptions options,
                                 std::vector<std::unique_ptr<OutputParser>> parsers)
    : ResponseWriter(std::move(parsers), options.streams),
      options_(std::move(options)),
      items_(Json::array()) {}

std::string ResponsesWriter::Event(const char* type, Json fields) {
  Json event;
  event["type"] = type;
  event["sequence_number"] = sequence_++;
  event.update(fields);
  return fmt::format("event: {}\ndata: {}\n\n", type, DumpJson(event));
}

// Of the item that is open.
std::string ResponsesWriter::ItemEvent(const char* type, Json fields) {
  Json all;
  all["item_id"] = NewItem(open_->kind, *open_, "", "in_progress")["id"];
  all["output_index"] = items_.size();
  all.update(fields);
  return Event(type, std::move(all));
}

// `text`: of the item; for a call its arguments.
ResponsesWriter::Json ResponsesWriter::NewItem(OutputDelta::Kind kind, const OutputDelta& call,
                                               const std::string& text, const char* status) const {
  const std::string suffix = fmt::format("{}_{}", options_.id.substr(5), items_.size());
  Json item;
  if (kind == Kind::kToolCall) {
    item["id"] = "fc_" + suffix;
    item["type"] = "function_call";
    item["status"] = status;
    item["call_id"] = call.id;
    item["name"] = call.name;
    item["arguments"] = text;
    return item;
  }
  const bool reasoning = kind == Kind::kReasoning;
  item["id"] = (reasoning ? "rs_" : "msg_") + suffix;
  item["type"] = reasoning ? "reasoning" : "message";
  item["status"] = status;
  if (reasoning) {
    item["summary"] = Json::array();
  } else {
    item["role"] = "assistant";
  }
  item["content"] = Json::array();
  if (text.empty()) return item;
  Json part;
  part["type"] = reasoning ? "reasoning_text" : "output_text";
  if (!reasoning) part["annotations"] = Json::array();
  part["text"] = text;
  item["content"].push_back(std::move(part));
  return item;
}

std::string ResponsesWriter::Open(const OutputDelta& delta) {
  open_ = delta;
  open_->text.clear();
  std::string data = Event("response.output_item.added",
                           {{"output_index", items_.size()},
                            {"item", NewItem(delta.kind, delta, "", "in_progress")}});
  if (delta.kind == Kind::kToolCall) return data;
  Json part;
  part["type"] = delta.kind == Kind::kReasoning ? "reasoning_text" : "output_text";
  if (delta.kind == Kind::kContent) part["annotations"] = Json::array();
  part["text"] = "";
  return data + ItemEvent("response.content_part.added",
                          {{"content_index", 0}, {"part", std::move(part)}});
}

std::string ResponsesWriter::Append(const std::string& text) {
  open_->text += text;
  switch (open_->kind) {
    case Kind::kToolCall:
      return ItemEvent("response.function_call_arguments.delta", {{"delta", text}});
    case Kind::kReasoning:
      return ItemEvent("response.reasoning_text.delta", {{"content_index", 0}, {"delta", text}});
    default:
      return ItemEvent("response.output_text.delta",
                       {{"content_index", 0}, {"delta", text}, {"logprobs", Json::array()}});
  }
}

std::string ResponsesWriter::Close() {
  if (!open_) return "";
  const std::string& text = open_->text;
  const Json item = NewItem(open_->kind, *open_, text, "completed");
  std::string data;
  if (open_->kind == Kind::kToolCall) {
    data = ItemEvent("response.function_call_arguments.done",
                     {{"name", open_->name}, {"arguments", text}});
  } else {
    const bool reasoning = open_->kind == Kind::kReasoning;
    Json done = {{"content_index", 0}, {"text", text}};
    if (!reasoning) done["logprobs"] = Json::array();
    data = ItemEvent(reasoning ? "response.reasoning_text.done" : "response.output_text.done",
                     std::move(done));
    Json part = item["content"].empty() ? Json() : item["content"][0];
    data += ItemEvent("response.content_part.done",
                      {{"content_index", 0}, {"part", std::move(part)}});
  }
  data += Event("response.output_item.done", {{"output_index", items_.size()}, {"item", item}});
  items_.push_back(item);
  open_.reset();
  return data;
}

std::string ResponsesWriter::StreamStart() {
  Json response = Response("in_progress", Json::array());
  std::string data = Event("response.created", {{"response", response}});
  return data + Event("response.in_progress", {{"response", std::move(response)}});
}

std::string ResponsesWriter::StreamDeltas(uint32_t, std::span<const OutputDelta> deltas,
                                          const GenerationEvent*) {
  std::string data;
  for (const OutputDelta& delta : deltas) {
    const bool continues =
        open_ && (open_->kind == delta.kind || delta.kind == Kind::kToolArguments);
    if (delta.kind == Kind::kToolCall || !continues) {
      data += Close();
      data += Open(delta);
    }
    if (delta.kind != Kind::kToolCall) data += Append(delta.text);
  }
  return data;
}

std::string ResponsesWriter::StreamFinish(uint32_t) { return Close(); }

const char* ResponsesWriter::FinalStatus() const {
  return choices()[0].finish_reason == FinishReason::kLength ? "incomplete" : "completed";
}

std::string ResponsesWriter::StreamEnd() {
  const bool incomplete = choices()[0].finish_reason == FinishReason::kLength;
  return Event(incomplete ? "response.incomplete" : "response.completed",
               {{"response", Response(FinalStatus(), items_)}});
}

std::string ResponsesWriter::StreamError(const ApiError& error) {
  // Newer clients read the fields, older ones look for "error".
  Json fields = Json::parse(error.ToJson());
  fields["code"] = fields["error"]["code"];
  fields["message"] = fields["error"]["message"];
  fields["param"] = fields["error"]["param"];
  return Event("error", std::move(fields));
}

ResponsesWriter::Json ResponsesWriter::Response(const char* status, Json output) const {
  const auto repeated = [&](const char* name, Json absent) {
    const auto found = options_.request.find(name);
    return found == options_.request.end() || found->is_null() ? absent : *found;
  };
  Json response;
  response["id"] = options_.id;
  response["object"] = "response";
  response["created_at"] = options_.created_unix;
  response["status"] = status;
  response["error"] = nullptr;
  response["incomplete_details"] = nullptr;
  if (std::string_view(status) == "incomplete") {
    response["incomplete_details"] = {{"reason", "max_output_tokens"}};
  }
  response["instructions"] = repeated("instructions", nullptr);
  response["max_output_tokens"] = repeated("max_output_tokens", nullptr);
  response["model"] = options_.model;
  response["output"] = std::move(output);
  response["parallel_tool_calls"] = repeated("parallel_tool_calls", true);
  response["previous_response_id"] = nullptr;
  response["reasoning"] = repeated("reasoning", {{"effort", nullptr}, {"summary", nullptr}});
  response["store"] = false;
  response["temperature"] = repeated("temperature", nullptr);
  response["text"] = repeated("text", {{"format", {{"type", "text"}}}});
  response["tool_choice"] = repeated("tool_choice", "auto");
  response["tools"] = repeated("tools", Json::array());
  response["top_p"] = repeated("top_p", nullptr);
  response["truncation"] = "disabled";
  response["usage"] = nullptr;
  response["metadata"] = repeated("metadata", Json::object());
  if (!done()) return response;
  const UsageTotals totals = Usage();
  Json& usage = response["usage"] = Json::object();
  usage["input_tokens"] = totals.prompt_tokens;
  usage["input_tokens_details"]["cached_tokens"] = totals.cached_tokens;
  usage["output_tokens"] = totals.completion_tokens;
  usage["output_tokens_details"]["reasoning_tokens"] = totals.reasoning_tokens;
  usage["total_tokens"] = totals.prompt_tokens + totals.completion_tokens;
  return response;
}

std::string ResponsesWriter::FullBody() {
  const ChoiceAnswer& answer = choices()[0];
  // NewItem numbers items by what is there already.
  if (!answer.reasoning.empty()) {
    items_.push_back(NewItem(Kind::kReasoning, {}, answer.reasoning, "completed"));
  }
  if (!answer.content.empty() || answer.tool_calls.empty()) {
    items_.push_back(NewItem(Kind::kContent, {}, answer.content, FinalStatus()));
  }
  for (const ToolCall& call : answer.tool_calls) {
    const OutputDelta head{.kind = Kind::kToolCall, .text = {}, .name = call.name, .id = call.id};
    items_.push_back(NewItem(Kind::kToolCall, head, call.arguments, "completed"));
  }
  return DumpJson(Response(FinalStatus(), items_));
}

}  // namespace moraine
