#include "model/template/typescript_tools.h"

#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "model/template/value.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

constexpr int kMaxDepth = 64;
constexpr const char* kIndent = "  ";
constexpr const char* kRootInterface = "parameters";

const ordered_json* Find(const ordered_json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &*found;
}

// Python's json.dumps(value, ensure_ascii=False).
std::string Json(const ordered_json& value) {
  if (!value.is_structured()) {
    if (value.is_number_float()) return jinja::FloatRepr(value.get<double>());
    return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  }
  std::string text;
  for (const auto& [key, child] : value.items()) {
    if (!text.empty()) text += ", ";
    if (value.is_object()) text += Json(key) + ": ";
    text += Json(child);
  }
  return value.is_object() ? "{" + text + "}" : "[" + text + "]";
}

// Python's str(value) of a scalar.
std::string Str(const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_null()) return "None";
  return Json(value);
}

// Each line behind "// "; empty lines stay empty.
std::string Comment(const std::string& text, const std::string& indent) {
  std::string comment;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (at > 0) comment += '\n';
    if (end > at) comment += indent + "// " + text.substr(at, end - at);
    at = end + 1;
  }
  return comment;
}

std::string DescriptionOf(const ordered_json& schema) {
  const ordered_json* description = Find(schema, "description");
  return description != nullptr && description->is_string() ? description->get<std::string>() : "";
}

std::string Joined(const std::vector<std::string>& parts, const char* separator) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

// One function. What cannot be declared sets `failed_`; what is returned then means nothing.
class Declaration {
 public:
  std::optional<std::string> Declare(const ordered_json& function) {
    static const ordered_json kEmpty = ordered_json::object();
    const ordered_json* parameters = Find(function, "parameters");
    if (parameters == nullptr || !parameters->is_object()) parameters = &kEmpty;
    std::string type = Object(*parameters, "", 0);
    std::vector<std::string> interfaces;
    if (refers_to_root_) {
      std::vector<std::string> fields;
      if (const ordered_json* properties = Find(*parameters, "properties")) {
        for (const auto& [name, schema] : properties->items()) {
          fields.push_back(Field(*parameters, name, schema, kIndent, 1));
        }
      }
      const std::string all = Joined(fields, ",\n");
      interfaces.push_back(std::string("interface ") + kRootInterface + " {" +
                           (all.empty() ? "" : "\n" + all + "\n") + "}");
      type = kRootInterface;
    }
    const auto definitions = definitions_;  // declaring one may find more, which are left out
    for (const auto& [name, schema] : definitions) {
      if (!schema.is_object()) Fail();
      const std::string description = DescriptionOf(schema);
      interfaces.push_back((description.empty() ? "" : Comment(description, "") + "\n") +
                           "interface " + name + " " + Type(schema, "", 0));
    }
    const ordered_json* given = Find(function, "name");
    const std::string name = given != nullptr && given->is_string() ? given->get<std::string>()
                                                                    : "function";
    std::vector<std::string> parts = std::move(interfaces);
    const std::string description = DescriptionOf(function);
    if (!description.empty()) parts.push_back(Comment(description, ""));
    parts.push_back("type " + name + " = (_: " + type + ") => any;");
    if (failed_) return std::nullopt;
    return Joined(parts, "\n");
  }

 private:
  std::string Fail() {
    failed_ = true;
    return "";
  }

  std::string Type(const ordered_json& schema, const std::string& indent, int depth) {
    if (depth > kMaxDepth) return Fail();
    if (schema.is_boolean()) return schema.get<bool>() ? "any" : "null";
    if (!schema.is_object()) return Fail();
    if (schema.empty()) return "any";
    if (const ordered_json* ref = Find(schema, "$ref")) return Reference(*ref);
    if (const ordered_json* types = Find(schema, "anyOf")) return AnyOf(*types, indent, depth);
    if (const ordered_json* values = Find(schema, "enum")) return Enum(schema, *values);
    const ordered_json* type = Find(schema, "type");
    if (type == nullptr) return Fail();
    if (type->is_array()) return Union(*type);
    if (!type->is_string()) return Fail();
    if (*type == "object") return Object(schema, indent, depth);
    if (*type == "array") return Array(schema, indent, depth);
    return *type == "integer" ? "number" : type->get<std::string>();
  }

  std::string Reference(const ordered_json& ref) {
    if (!ref.is_string()) return Fail();
    const std::string target = ref.get<std::string>();
    if (target == "#") {
      refers_to_root_ = true;
      return kRootInterface;
    }
    if (!target.starts_with("#/$defs/")) return Fail();
    const std::string name = target.substr(target.rfind('/') + 1);
    const bool known = std::any_of(definitions_.begin(), definitions_.end(),
                                   [&](const auto& definition) { return definition.first == name; });
    return known ? name : Fail();
  }

  std::string AnyOf(const ordered_json& types, const std::string& indent, int depth) {
    if (!types.is_array()) return Fail();
    std::vector<std::string> parts;
    for (const ordered_json& type : types) parts.push_back(Type(type, indent, depth + 1));
    return Joined(parts, " | ");
  }

  std::string Union(const ordered_json& types) {
    static const std::pair<const char*, const char*> kTypes[] = {
        {"string", "string"}, {"number", "number"}, {"integer", "number"}, {"boolean", "boolean"},
        {"null", "null"},     {"object", "{}"},     {"array", "Array<any>"}};
    std::vector<std::string> parts;
    for (const ordered_json& type : types) {
      const auto found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                      [&](const auto& known) { return type == known.first; });
      if (found == std::end(kTypes)) return Fail();
      parts.push_back(found->second);
    }
    return Joined(parts, " | ");
  }

  static bool IsOfType(const ordered_json& value, const std::string& type) {
    if (value.is_null()) return true;
    if (type == "string") return value.is_string();
    // To Python a bool is an int.
    if (type == "number") return value.is_number() || value.is_boolean();
    if (type == "integer") return value.is_number_integer() || value.is_boolean();
    if (type == "boolean") return value.is_boolean();
    return true;
  }

  std::string Enum(const ordered_json& schema, const ordered_json& values) {
    if (!values.is_array()) return Fail();
    const ordered_json* type = Find(schema, "type");
    if (type != nullptr && type->is_array()) {
      if (type->size() == 2 && (*type)[0] != "null" && (*type)[1] != "null") return Fail();
      if (type->empty() || type->size() > 2) return Fail();
      type = &(*type)[type->size() == 2 && (*type)[0] == "null" ? 1 : 0];
    }
    std::vector<std::string> parts;
    for (const ordered_json& value : values) {
      if (value.is_structured()) return Fail();
      if (type != nullptr && type->is_string() && !IsOfType(value, type->get<std::string>())) {
        return Fail();
      }
      parts.push_back(value.is_string() ? "\"" + Str(value) + "\"" : Str(value));
    }
    return Joined(parts, " | ");
  }

  std::string Array(const ordered_json& schema, const std::string& indent, int depth) {
    const ordered_json* items = Find(schema, "items");
    const bool any = items == nullptr || items->is_null() || *items == false ||
                     (items->is_structured() && items->empty());
    if (any) return "Array<any>";
    const std::string inner = indent + kIndent;
    const std::string documentation = Documentation(*items, inner);
    if (documentation.empty()) return "Array<" + Type(*items, indent, depth + 1) + ">";
    return "Array<\n" + documentation + inner + Type(*items, inner, depth + 1) + "\n" + indent + ">";
  }

  // The comment lines above a field: its description and its limits.
  std::string Documentation(const ordered_json& schema, const std::string& indent) {
    if (!schema.is_object()) return "";
    std::string lines;
    const std::string description = DescriptionOf(schema);
    if (!description.empty()) lines += Comment(description, indent) + "\n";
    std::vector<std::string> limits;
    for (const char* key : LimitsOf(schema)) {
      if (const ordered_json* limit = Find(schema, key)) {
        limits.push_back(std::string(key) + ": " + Str(*limit));
      }
    }
    if (!limits.empty()) lines += indent + "// " + Joined(limits, ", ") + "\n";
    return lines;
  }

  // In alphabetical order.
  static std::initializer_list<const char*> LimitsOf(const ordered_json& schema) {
    static const std::initializer_list<const char*> kNone = {},
                                                    kText = {"maxLength", "minLength", "pattern"},
                                                    kNumber = {"maximum", "minimum"},
                                                    kList = {"maxItems", "minItems"};
    for (const char* other : {"$ref", "anyOf", "enum"}) {
      if (schema.contains(other)) return kNone;
    }
    const ordered_json* type = Find(schema, "type");
    if (type == nullptr || !type->is_string()) return kNone;
    if (*type == "string") return kText;
    if (*type == "number" || *type == "integer") return kNumber;
    return *type == "array" ? kList : kNone;
  }

  static bool IsRequired(const ordered_json& object, const std::string& name) {
    const ordered_json* required = Find(object, "required");
    return required != nullptr && required->is_array() &&
           std::find(required->begin(), required->end(), name) != required->end();
  }

  std::string Field(const ordered_json& object, const std::string& name, const ordered_json& schema,
                    const std::string& indent, int depth) {
    std::string text = Documentation(schema, indent);
    if (const ordered_json* value = Find(schema, "default"); value != nullptr && !value->is_null()) {
      text += indent + "// Default: " + (value->is_boolean() ? Str(*value) : Json(*value)) + "\n";
    }
    return text + indent + name + (IsRequired(object, name) ? "" : "?") + ": " +
           Type(schema, indent, depth + 1);
  }

  std::string Object(const ordered_json& schema, const std::string& indent, int depth) {
    if (const ordered_json* definitions = Find(schema, "$defs")) {
      if (!definitions->is_object()) return Fail();
      for (const auto& [name, definition] : definitions->items()) {
        definitions_.emplace_back(name, definition);
      }
    }
    const std::string inner = indent + kIndent;
    std::vector<std::pair<std::string, std::string>> required, optional;  // by name
    if (const ordered_json* properties = Find(schema, "properties")) {
      if (!properties->is_object()) return Fail();
      for (const auto& [name, property] : properties->items()) {
        (IsRequired(schema, name) ? required : optional)
            .emplace_back(name, Field(schema, name, property, inner, depth));
      }
    }
    std::vector<std::string> fields;
    for (auto* group : {&required, &optional}) {
      std::stable_sort(group->begin(), group->end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
      for (auto& [name, field] : *group) fields.push_back(std::move(field));
    }
    if (const ordered_json* more = Find(schema, "additionalProperties");
        more != nullptr && !more->is_null()) {
      const std::string type = !more->is_boolean()    ? Type(*more, inner, depth + 1)
                               : more->get<bool>() ? "any"
                                                   : "never";
      fields.push_back(inner + "[k: string]: " + type);
    }
    if (fields.empty()) return "{}";
    return "{\n" + Joined(fields, ",\n") + "\n" + indent + "}";
  }

  std::vector<std::pair<std::string, ordered_json>> definitions_;
  bool refers_to_root_ = false;
  bool failed_ = false;
};

}  // namespace

std::optional<std::string> TypeScriptOfTools(const ordered_json& tools) {
  std::string functions;
  for (const ordered_json& tool : tools) {
    const ordered_json* type = Find(tool, "type");
    const ordered_json* function = Find(tool, "function");
    if (type == nullptr || *type != "function" || function == nullptr) continue;
    if (!function->is_object() || function->empty()) continue;
    std::optional<std::string> declared = Declaration().Declare(*function);
    if (!declared.has_value()) return std::nullopt;
    functions += *declared + "\n";
  }
  if (functions.empty()) return "";
  return "# Tools\n\n## functions\nnamespace functions {\n" + functions + "}\n";
}

}  // namespace moraine
