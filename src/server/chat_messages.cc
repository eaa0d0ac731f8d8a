#include "server/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace moraine {
namespace {

// A message's content as one string. Text parts are joined by line breaks, as vLLM and llama.cpp do.
std::optional<ApiError> ReadContent(const Json& message, const std::string& where, std::string* text) {
  const auto found = message.find("content");
  const std::string name = where + ".content";
  if (found == message.end() || found->is_null()) {
    // Assistant messages may have none (a refusal, a tool call); for the others it is a mistake.
    if (message["role"] == "assistant") return std::nullopt;
    return InvalidRequest(name + ": expected a string or an array of text parts, found nothing", name);
  }
  if (found->is_string()) {
    *text = found->get_ref<const std::string&>();
    return std::nullopt;
  }
  if (!found->is_array()) {
    return InvalidRequest(
        name + ": expected a string or an array of text parts, found " + DescribeJson(*found), name);
  }
  for (size_t i = 0; i < found->size(); ++i) {
    const Json& part = (*found)[i];
    const std::string part_name = fmt::format("{}[{}]", name, i);
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string()) {
      return InvalidRequest(
          part_name + ": expected an object with a type, found " + DescribeJson(part), part_name);
    }
    if (part["type"] != "text") {
      return UnsupportedField(part_name + ".type", "text only, found " + DescribeJson(part["type"]));
    }
    if (!part.contains("text") || !part["text"].is_string()) {
      return InvalidRequest(part_name + ".text: expected a string, found " +
                                (part.contains("text") ? DescribeJson(part["text"]) : "nothing"),
                            part_name + ".text");
    }
    if (i > 0) *text += '\n';
    *text += part["text"].get_ref<const std::string&>();
  }
  return std::nullopt;
}

std::optional<ApiError> Expected(const std::string& where, std::string_view what, const Json& found) {
  return InvalidRequest(fmt::format("{}: expected {}, found {}", where, what, DescribeJson(found)),
                        where);
}

// Into normal form: {"id","type":"function","function":{"name","arguments":{...}}}.
std::optional<ApiError> ReadToolCalls(const Json& calls, const std::string& where, Json* out,
                                      std::vector<std::string>* arguments) {
  if (!calls.is_array()) return Expected(where, "an array", calls);
  *out = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const std::string at = fmt::format("{}[{}]", where, i);
    const Json function = calls[i].is_object() ? calls[i].value("function", Json()) : Json();
    const Json name = function.is_object() ? function.value("name", Json()) : Json();
    if (!name.is_string()) return Expected(at + ".function.name", "a string", name);
    const Json text = function.value("arguments", Json("{}"));
    if (!text.is_string()) {
      return Expected(at + ".function.arguments", "a string of JSON", text);
    }
    Json call;
    call["id"] = calls[i].value("id", Json());
    if (!call["id"].is_string()) return Expected(at + ".id", "a string", call["id"]);
    call["type"] = "function";
    call["function"]["name"] = name;
    // What a model wrote may be broken; then the template gets the text.
    Json parsed;
    const bool is_object =
        ParseJsonText(text.get_ref<const std::string&>(), &parsed) && parsed.is_object();
    call["function"]["arguments"] = is_object ? std::move(parsed) : text;
    arguments->push_back(text);
    out->push_back(std::move(call));
  }
  return std::nullopt;
}

std::optional<ApiError> ReadMessage(const Json& message, const std::string& where, Json* out,
                                    std::vector<std::string>* arguments) {
  static const std::set<std::string> kRoles = {"system", "developer", "user", "assistant", "tool"};
  if (!message.is_object()) {
    return InvalidRequest(where + ": expected an object, found " + DescribeJson(message), where);
  }
  const Json role = message.value("role", Json());
  const std::string* role_name = role.get_ptr<const std::string*>();
  if (role_name == nullptr || kRoles.count(*role_name) == 0) {
    return InvalidRequest(where +
                              ".role: expected system, developer, user, assistant or tool, found " +
                              DescribeJson(role),
                          where + ".role");
  }
  for (const char* name : {"function_call", "audio"}) {
    const auto found = message.find(name);
    if (found != message.end() && AsksForSomething(&*found)) {
      return UnsupportedField(where + "." + name, "messages have text and tool_calls");
    }
  }
  std::string text;
  if (std::optional<ApiError> error = ReadContent(message, where, &text)) return error;
  // OpenAI's newer name for the same thing; templates know only the older one.
  (*out)["role"] = *role_name == "developer" ? "system" : *role_name;
  (*out)["content"] = std::move(text);
  for (const char* name : {"name", "tool_call_id", "reasoning_content"}) {
    const auto found = message.find(name);
    if (found == message.end() || found->is_null()) continue;
    if (!found->is_string()) {
      return InvalidRequest(
          fmt::format("{}.{}: expected a string, found {}", where, name, DescribeJson(*found)),
          fmt::format("{}.{}", where, name));
    }
    (*out)[name] = *found;
  }
  const auto calls = message.find("tool_calls");
  if (calls == message.end() || !AsksForSomething(&*calls)) return std::nullopt;
  return ReadToolCalls(*calls, where + ".tool_calls", &(*out)["tool_calls"], arguments);
}

}  // namespace

bool AsksForSomething(const Json* value) {
  if (value == nullptr || value->is_null()) return false;
  if (value->is_boolean()) return value->get<bool>();
  if (value->is_structured()) return !value->empty();
  return true;
}

void ReadMessages(FieldReader& fields, ApiRequest* out) {
  if (fields.failed()) return;
  const Json* messages = fields.Get("messages");
  if (messages == nullptr) {
    return fields.Fail(InvalidRequest("messages: expected an array, found nothing", "messages"));
  }
  if (!messages->is_array() || messages->empty()) {
    return fields.Fail("messages", "an array of at least one message", *messages);
  }
  Json& list = out->template_context["messages"] = Json::array();
  for (size_t i = 0; i < messages->size(); ++i) {
    Json message = Json::object();
    std::optional<ApiError> error =
        ReadMessage((*messages)[i], fmt::format("messages[{}]", i), &message, &out->tool_arguments);
    if (error) return fields.Fail(std::move(*error));
    list.push_back(std::move(message));
  }
}

namespace {

bool IsToolName(const std::string& name) {
  return !name.empty() && name.size() <= 128 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '_' || c == '-' || c == '.';
         });
}

void ReadTool(FieldReader& fields, const Json& tool, const std::string& where,
              std::vector<ToolDefinition>* tools) {
  if (!tool.is_object()) return fields.Fail(where, "an object", tool);
  const Json type = tool.value("type", Json());
  if (type != "function") {
    return fields.Fail(UnsupportedField(where + ".type", "function only, found " + DescribeJson(type)));
  }
  const Json function = tool.value("function", Json());
  if (!function.is_object()) return fields.Fail(where + ".function", "an object", function);
  const Json name = function.value("name", Json());
  if (!name.is_string() || !IsToolName(name.get_ref<const std::string&>())) {
    return fields.Fail(where + ".function.name", "1 to 128 of a-z, A-Z, 0-9, _, - and .", name);
  }
  Json parameters = function.value("parameters", Json());
  if (parameters.is_null()) parameters = Json::parse(R"({"type":"object"})");
  if (!parameters.is_object()) {
    return fields.Fail(where + ".function.parameters", "a JSON schema", parameters);
  }
  const bool strict = function.value("strict", Json()) == true;
  tools->push_back({name.get<std::string>(), std::move(parameters), strict});
}

void ReadToolChoice(FieldReader& fields, const std::vector<ToolDefinition>& tools, ToolChoice* out) {
  const Json* choice = fields.Get("tool_choice");
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") {
    out->kind = ToolChoice::Kind::kNone;
    return;
  }
  if (*choice == "required") {
    out->kind = ToolChoice::Kind::kRequired;
  } else {
    const Json function = choice->is_object() ? choice->value("function", Json()) : Json();
    const Json name = function.is_object() ? function.value("name", Json()) : Json();
    if (!name.is_string()) {
      return fields.Fail("tool_choice",
                         "\"none\", \"auto\", \"required\" or a function's name", *choice);
    }
    out->kind = ToolChoice::Kind::kNamed;
    out->name = name.get<std::string>();
  }
  const bool known = std::any_of(tools.begin(), tools.end(), [&](const ToolDefinition& tool) {
    return out->kind == ToolChoice::Kind::kRequired || tool.name == out->name;
  });
  if (!known) fields.Fail("tool_choice", "one of the tools", *choice);
}

}  // namespace

void ReadTools(FieldReader& fields, ApiRequest* out) {
  const Json* tools = fields.Get("tools");
  if (tools != nullptr && !tools->is_array()) return fields.Fail("tools", "an array", *tools);
  for (size_t i = 0; tools != nullptr && i < tools->size() && !fields.failed(); ++i) {
    ReadTool(fields, (*tools)[i], fmt::format("tools[{}]", i), &out->tools);
  }
  ReadToolChoice(fields, out->tools, &out->tool_choice);
  fields.Bool("parallel_tool_calls", &out->parallel_tool_calls);
  if (out->tool_choice.kind == ToolChoice::Kind::kNone) out->tools.clear();
  if (!out->tools.empty()) out->template_context["tools"] = *tools;
}

void UseArgumentText(ApiRequest* request) {
  size_t next = 0;
  for (Json& message : request->template_context["messages"]) {
    const auto calls = message.find("tool_calls");
    if (calls == message.end()) continue;
    for (Json& call : *calls) call["function"]["arguments"] = request->tool_arguments.at(next++);
  }
}

}  // namespace moraine
