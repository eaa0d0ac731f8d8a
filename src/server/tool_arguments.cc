#include "server/tool_arguments.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// Null if the tools say nothing of it.
const Json* SchemaOf(std::span<const ToolDefinition> tools, std::string_view tool,
                     const std::string& key) {
  for (const ToolDefinition& definition : tools) {
    if (definition.name != tool || !definition.parameters.is_object()) continue;
    const auto properties = definition.parameters.find("properties");
    if (properties == definition.parameters.end() || !properties->is_object()) return nullptr;
    const auto found = properties->find(key);
    return found == properties->end() || !found->is_object() ? nullptr : &*found;
  }
  return nullptr;
}

bool IsOnlyString(const Json* schema) {
  if (schema == nullptr) return false;
  const auto type = schema->find("type");
  if (type != schema->end()) return *type == "string" || *type == Json::array({"string"});
  const auto choices = schema->find("enum");
  if (choices == schema->end() || !choices->is_array() || choices->empty()) return false;
  for (const Json& choice : *choices) {
    if (!choice.is_string()) return false;
  }
  return true;
}

std::string Dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

std::string ArgumentMember(std::span<const ToolDefinition> tools, std::string_view tool,
                           const std::string& key, std::string_view text, bool first) {
  if (text.starts_with('\n')) text.remove_prefix(1);
  if (text.ends_with('\n')) text.remove_suffix(1);
  const bool as_json = !IsOnlyString(SchemaOf(tools, tool, key)) && Json::accept(text);
  return (first ? "{" : ", ") + Dump(key) + ": " +
         (as_json ? std::string(text) : Dump(std::string(text)));
}

}  // namespace moraine
