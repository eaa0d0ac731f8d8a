#include "model/template/tool_calls.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace moraine {
namespace {

using nlohmann::ordered_json;

// What a template makes of a call with these arguments; empty if it refuses.
std::string Probe(const ChatTemplate& chat_template, const ordered_json& arguments) {
  const ordered_json call = {
      {"id", "call_1"},
      {"type", "function"},
      {"function", {{"name", "probe"}, {"arguments", arguments}}}};
  const ordered_json tool = {
      {"type", "function"},
      {"function",
       {{"name", "probe"},
        {"description", "probe"},
        {"parameters", {{"type", "object"}, {"properties", ordered_json::object()}}}}}};
  const ordered_json context = {
      {"messages",
       {{{"role", "user"}, {"content", "a"}},
        {{"role", "assistant"}, {"content", ""}, {"tool_calls", ordered_json::array({call})}},
        {{"role", "tool"}, {"content", "b"}, {"tool_call_id", "call_1"}, {"name", "probe"}}}},
      {"tools", ordered_json::array({tool})},
      {"add_generation_prompt", true},
      {"bos_token", ""},
      {"eos_token", ""}};
  const Result<RenderedPrompt> prompt = chat_template.Render(context);
  return prompt.ok() ? prompt->text() : std::string();
}

void SortKeys(ordered_json& json) {
  for (ordered_json& child : json) {
    if (child.is_structured()) SortKeys(child);
  }
  if (!json.is_object()) return;
  auto& members = json.get_ref<ordered_json::object_t&>();
  std::vector<std::pair<std::string, ordered_json>> sorted;
  for (auto& [key, value] : members) sorted.emplace_back(key, std::move(value));
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  ordered_json result = ordered_json::object();
  for (auto& [key, value] : sorted) result[key] = std::move(value);
  json = std::move(result);
}

}  // namespace

ArgumentsForm ProbeArgumentsForm(const ChatTemplate& chat_template) {
  const ordered_json arguments = {{"needle", "thread"}};
  const auto shows = [](const std::string& text, const char* what) {
    return text.find(what) != std::string::npos;
  };
  const std::string of_object = Probe(chat_template, arguments);
  // A template that writes the object as it is makes Python's spelling of it, which no model has seen.
  if (shows(of_object, "needle") && !shows(of_object, "{'needle'")) return ArgumentsForm::kObject;
  const std::string of_string = Probe(chat_template, arguments.dump());
  return shows(of_string, "needle") ? ArgumentsForm::kString : ArgumentsForm::kObject;
}

void ConvertArguments(ArgumentsForm form, ordered_json& context) {
  const auto messages = context.find("messages");
  if (messages == context.end() || !messages->is_array()) return;
  for (ordered_json& message : *messages) {
    if (!message.is_object() || !message.contains("tool_calls")) continue;
    for (ordered_json& call : message["tool_calls"]) {
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      const auto arguments = call["function"].find("arguments");
      if (arguments == call["function"].end()) continue;
      if (form == ArgumentsForm::kString && arguments->is_object()) {
        *arguments = arguments->dump(-1, ' ', false, ordered_json::error_handler_t::replace);
      } else if (form == ArgumentsForm::kObject && arguments->is_string()) {
        ordered_json parsed = ordered_json::parse(arguments->get_ref<const std::string&>(), nullptr,
                                                  /*allow_exceptions=*/false);
        if (parsed.is_object()) *arguments = std::move(parsed);
      }
    }
  }
}

void SortToolKeys(ordered_json& context) {
  const auto tools = context.find("tools");
  if (tools != context.end() && tools->is_array()) SortKeys(*tools);
}

}  // namespace moraine
