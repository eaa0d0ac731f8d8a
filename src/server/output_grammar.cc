#include "server/output_grammar.h"

#include <fmt/format.h>

#include <set>

#include "model/constraint/json_grammar.h"

namespace moraine {
namespace {

using Arguments = OutputFormat::Arguments;
using Json = nlohmann::ordered_json;

Expression OptionalLineBreak() { return Optional(Literal("\n")); }

// Marks in <...> may be special tokens or plain text, as the vocabulary has it.
Expression Mark(const OutputFormat& format, std::string_view text) {
  if (!format.special_marks) return Literal(text);
  std::vector<Expression> parts;
  while (!text.empty()) {
    const size_t begin = text.find('<');
    if (begin != 0) {
      const size_t length = std::min(begin, text.size());
      parts.push_back(Literal(text.substr(0, length)));
      text.remove_prefix(length);
      continue;
    }
    const size_t length = std::min(text.find('>'), text.size() - 1) + 1;
    const std::string_view mark = text.substr(0, length);
    parts.push_back(Choice({Literal(std::string(1, kSpecialTokenByte) + std::string(mark)),
                            Literal(mark)}));
    text.remove_prefix(length);
  }
  return Sequence(std::move(parts));
}

std::string JsonText(const std::string& text) { return Json(text).dump(); }

class OutputGrammarBuilder {
 public:
  OutputGrammarBuilder(const ApiRequest& request, const OutputGrammarOptions& options)
      : request_(request), options_(options), format_(*options.format) {}

  std::optional<ApiError> Run(std::shared_ptr<const Grammar>* out) {
    const bool must_call = request_.tool_choice.kind == ToolChoice::Kind::kRequired ||
                           request_.tool_choice.kind == ToolChoice::Kind::kNamed;
    const bool has_form = request_.response_format != ResponseFormat::kText;
    if (!must_call && !has_form) return std::nullopt;
    std::vector<Expression> choices;
    if (!request_.tools.empty()) {
      Expression calls;
      if (auto error = Calls(&calls)) return error;
      choices.push_back(std::move(calls));
    }
    if (!must_call) {
      Expression value;
      if (auto error = Form(&value)) return error;
      choices.push_back(std::move(value));
    }
    const Expression root = Sequence({Reasoning(), Choice(std::move(choices))});
    Result<Grammar> grammar = std::move(json_).Build(root);
    if (!grammar.ok()) return InvalidRequest(grammar.status().message(), Param());
    *out = std::make_shared<const Grammar>(std::move(*grammar));
    return std::nullopt;
  }

 private:
  bool harmony() const { return format_.arguments == Arguments::kHarmony; }
  const char* Param() const {
    return request_.response_format != ResponseFormat::kText ? "response_format" : "tools";
  }

  static ApiError ErrorOf(const Status& status, const char* param) {
    ApiError error = InvalidRequest(status.message(), param);
    if (status.code() == StatusCode::kUnsupported) error.code = "unsupported";
    return error;
  }

  // What may come first.
  Expression Reasoning() const {
    if (!options_.may_reason) return Expression();
    if (harmony()) {
      return Optional(Sequence({Mark(format_, "<|channel|>analysis<|message|>"), HarmonyText(),
                                Mark(format_, "<|end|><|start|>assistant")}));
    }
    const Expression blanks = Repeat(Literal("\n"), 0, 3);
    const Expression rest = Sequence({Until(kThinkEnd), blanks});
    if (options_.begins_in_reasoning) return rest;
    return Optional(Sequence({Optional(Literal("\n")), Literal(kThinkBegin), rest}));
  }
  // Anything but a special token; the one that follows ends it.
  static Expression HarmonyText() {
    return Repeat(CharacterOf(ComplementOf({})), 0, kUnbounded);
  }

  std::optional<ApiError> Form(Expression* out) {
    *out = json_.AnyObject();
    if (request_.response_format == ResponseFormat::kJsonSchema) {
      Result<Expression> value =
          json_.Schema(request_.response_schema, "response_format.json_schema.schema");
      if (!value.ok()) return ErrorOf(value.status(), "response_format");
      *out = std::move(*value);
    }
    if (harmony()) {
      *out = Sequence({Mark(format_, "<|channel|>final"),
                       Optional(Mark(format_, " <|constrain|>json")), Mark(format_, "<|message|>"),
                       std::move(*out)});
    }
    return std::nullopt;
  }

  std::optional<ApiError> Calls(Expression* out) {
    std::vector<Expression> choices;
    for (size_t i = 0; i < request_.tools.size(); ++i) {
      const ToolDefinition& tool = request_.tools[i];
      const bool named = request_.tool_choice.kind == ToolChoice::Kind::kNamed;
      if (named && tool.name != request_.tool_choice.name) continue;
      Expression call;
      if (auto error = Call(tool, fmt::format("tools[{}].function.parameters", i), &call)) {
        return error;
      }
      choices.push_back(std::move(call));
    }
    const bool several = request_.parallel_tool_calls && !harmony() &&
                         request_.tool_choice.kind != ToolChoice::Kind::kNamed;
    const Expression call = Choice(std::move(choices));
    const Expression more =
        Repeat(Sequence({OptionalLineBreak(), call}), 0, several ? kUnbounded : 0);
    *out = Sequence({call, more});
    if (format_.section_begin.empty()) return std::nullopt;
    *out = Sequence({Mark(format_, format_.section_begin), OptionalLineBreak(), std::move(*out),
                     OptionalLineBreak(), Mark(format_, format_.section_end)});
    return std::nullopt;
  }

  std::optional<ApiError> Call(const ToolDefinition& tool, const std::string& path, Expression* out) {
    if (format_.arguments == Arguments::kParameters) return ParametersCall(tool, path, out);
    Expression arguments;
    if (auto error = Schema(tool, tool.parameters, path, &arguments)) return error;
    switch (format_.arguments) {
      case Arguments::kHarmony:
        *out = Sequence({Mark(format_, "<|channel|>commentary to=functions." + tool.name + " "),
                         Optional(Mark(format_, "<|constrain|>")), Literal("json"),
                         Mark(format_, "<|message|>"), arguments});
        break;
      case Arguments::kJsonCall:
        *out = Sequence({Literal(format_.call_begin), OptionalLineBreak(),
                         Literal("{\"name\": " + JsonText(tool.name) + ", \"arguments\": "),
                         arguments, Literal("}"), OptionalLineBreak(), Literal(format_.call_end)});
        break;
      default: {
        std::vector<Expression> parts = {Mark(format_, format_.call_begin)};
        const Expression digit = OneOf(ByteSet(0x3FF) << '0');
        if (format_.name_is_id) parts.push_back(Literal("functions."));
        parts.push_back(Literal(tool.name));
        if (format_.name_is_id) parts.push_back(Sequence({Literal(":"), Repeat(digit, 1, 3)}));
        parts.push_back(Mark(format_, format_.name_end));
        parts.push_back(arguments);
        if (format_.name_end.ends_with("```json\n")) parts.push_back(Literal("\n```"));
        parts.push_back(Mark(format_, format_.call_end));
        *out = Sequence(std::move(parts));
      }
    }
    return std::nullopt;
  }

  // A tool's schema may say more than can be enforced; then its arguments are any object, unless the
  // tool is strict.
  std::optional<ApiError> Schema(const ToolDefinition& tool, const Json& schema,
                                 const std::string& path, Expression* out) {
    Result<Expression> value = json_.Schema(schema, path);
    if (value.ok()) {
      *out = std::move(*value);
      return std::nullopt;
    }
    if (tool.strict) return ErrorOf(value.status(), "tools");
    *out = &schema == &tool.parameters ? json_.AnyObject() : json_.AnyValue();
    return std::nullopt;
  }

  static bool IsText(const Json& schema) {
    return schema.is_object() && schema.value("type", Json()) == "string" &&
           !schema.contains("enum") && !schema.contains("const") && !schema.contains("pattern");
  }

  std::optional<ApiError> ParametersCall(const ToolDefinition& tool, const std::string& path,
                                         Expression* out) {
    std::vector<Expression> parts = {Literal(format_.call_begin), Literal(tool.name),
                                     format_.name_end == "\n" ? OptionalLineBreak()
                                                              : Literal(format_.name_end),
                                     OptionalLineBreak()};
    const Json properties = tool.parameters.value("properties", Json::object());
    std::set<std::string> required;
    for (const Json& name : tool.parameters.value("required", Json::array())) {
      if (name.is_string()) required.insert(name.get<std::string>());
    }
    for (const auto& [name, property] : properties.items()) {
      Expression value = Until(format_.value_end);
      if (property.is_object() && property.contains("enum") && AllText(property["enum"])) {
        std::vector<Expression> texts;
        for (const Json& text : property["enum"]) texts.push_back(Literal(text.get<std::string>()));
        value = EndedValue(Choice(std::move(texts)));
      } else if (!IsText(property)) {
        Expression json;
        if (auto error = Schema(tool, property, path + ".properties." + name, &json)) return error;
        value = EndedValue(json);
      }
      const Expression parameter =
          Sequence({Literal(format_.parameter_begin), Literal(name), Literal(format_.key_end),
                    OptionalLineBreak(), Literal(format_.value_begin), value, OptionalLineBreak()});
      parts.push_back(required.count(name) > 0 ? parameter : Optional(parameter));
    }
    if (properties.empty()) {
      parts.push_back(Repeat(Sequence({Literal(format_.parameter_begin), Until(format_.key_end),
                                       OptionalLineBreak(), Literal(format_.value_begin),
                                       Until(format_.value_end), OptionalLineBreak()}),
                             0, kUnbounded));
    }
    parts.push_back(Literal(format_.call_end));
    *out = Sequence(std::move(parts));
    return std::nullopt;
  }
  static bool AllText(const Json& list) {
    if (!list.is_array() || list.empty()) return false;
    for (const Json& item : list) {
      if (!item.is_string()) return false;
    }
    return true;
  }
  Expression EndedValue(const Expression& value) const {
    return Sequence(
        {OptionalLineBreak(), value, OptionalLineBreak(), Literal(format_.value_end)});
  }

  const ApiRequest& request_;
  const OutputGrammarOptions& options_;
  const OutputFormat& format_;
  JsonGrammar json_;
};

}  // namespace

std::optional<ApiError> MakeOutputGrammar(const ApiRequest& request,
                                          const OutputGrammarOptions& options,
                                          std::shared_ptr<const Grammar>* out) {
  return OutputGrammarBuilder(request, options).Run(out);
}

}  // namespace moraine
