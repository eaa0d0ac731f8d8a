#include "model/constraint/json_grammar.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "model/constraint/number_range.h"
#include "model/constraint/pattern.h"
#include "model/constraint/unique_items.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// Schemas within schemas; bounds the C++ stack.
constexpr int kMaxSchemaDepth = 64;
// Of a count: one state an element. Longer lists than this no model writes.
constexpr uint32_t kMaxCount = 100'000;
constexpr size_t kMaxSchemaBytes = size_t{1} << 20;
// Each that may come next is a way to be followed: more than TokenConstraint follows, and some would
// never be written.
constexpr size_t kMaxProperties = 512;
constexpr size_t kMaxEnumValues = 1000;
// An expression nests twice for a property that may be left out, once for a character of a key that
// others must differ from, once for an item with a place of its own; and compiling it takes about 1 KiB
// of C++ stack a level.
constexpr uint32_t kMaxExpressionDepth = 1500;
constexpr size_t kMaxKeyBytes = 256;
constexpr size_t kMaxPrefixItems = 256;

ByteSet SetOf(std::string_view bytes) {
  ByteSet set;
  for (const char c : bytes) set.set(static_cast<uint8_t>(c));
  return set;
}
Expression AnyOf(std::string_view bytes) { return OneOf(SetOf(bytes)); }

constexpr std::string_view kHexDigits = "0123456789abcdefABCDEF";

// \uXXXX, surrogates only in pairs: nothing else is text.
Expression UnicodeEscape() {
  const Expression hex = AnyOf(kHexDigits);
  const Expression begin = Literal("\\u");
  return Choice({Sequence({begin, AnyOf("0123456789abcABCefEF"), hex, hex, hex}),
                 Sequence({begin, AnyOf("dD"), AnyOf("01234567"), hex, hex}),
                 Sequence({begin, AnyOf("dD"), AnyOf("89abAB"), hex, hex, begin, AnyOf("dD"),
                           AnyOf("cdefCDEF"), hex, hex})});
}

const CodePointSet kEscaped = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};

Expression Quoted(Expression inside) {
  return Sequence({Literal("\""), std::move(inside), Literal("\"")});
}

std::string DumpValue(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Expression Word(const char* text) { return Literal(text); }

const std::set<std::string>& KnownKeywords() {
  static const std::set<std::string> kKnown = {
      "type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "definitions",
      "properties", "required", "additionalProperties", "items", "prefixItems", "minItems",
      "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum",
      "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems",
      // Only describe.
      "title", "description", "default", "examples", "example", "$schema", "$id", "id", "$comment",
      "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "strict"};
  return kKnown;
}

const char* FormatPattern(const std::string& format) {
  static const std::map<std::string, const char*> kFormats = {
      {"date", R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$)"},
      {"time", R"(^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
      {"date-time",
       R"(^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?)"
       R"((Z|[+-]([01]\d|2[0-3]):[0-5]\d)$)"},
      {"uuid", R"(^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$)"},
      {"email", R"(^[A-Za-z0-9_%+-]+(\.[A-Za-z0-9_%+-]+)*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$)"},
      {"hostname", R"(^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$)"},
      {"ipv4", R"(^((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$)"},
      {"uri", R"(^[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?#@!$&'()*+,;=%\[\]-]+$)"},
  };
  const auto found = kFormats.find(format);
  return found == kFormats.end() ? nullptr : found->second;
}

Status At(const std::string& path, std::string_view keyword, std::string_view what) {
  return InvalidArgument(fmt::format("{}.{}: expected {}", path, keyword, what));
}

}  // namespace

Expression JsonStringCharacterOf(const CodePointSet& set) {
  std::vector<Expression> choices;
  CodePointSet plain;
  // What need not be escaped: the set without kEscaped.
  CodePointSet others = ComplementOf(set);
  others.insert(others.end(), kEscaped.begin(), kEscaped.end());
  plain = ComplementOf(NormalizedSet(std::move(others)));
  if (!plain.empty()) choices.push_back(CharacterOf(plain));
  for (const CodePointRange& range : kEscaped) {
    for (uint32_t c = range.first; c <= range.last; ++c) {
      if (!Contains(set, c)) continue;
      const std::string dumped = Json(std::string(1, static_cast<char>(c))).dump();
      choices.push_back(Literal(std::string_view(dumped).substr(1, dumped.size() - 2)));
    }
  }
  return Choice(std::move(choices));
}

Expression JsonStringCharacter() {
  static const Expression kCharacter =
      Choice({CharacterOf(ComplementOf(kEscaped)),
              Sequence({Literal("\\"), AnyOf("\"\\/bfnrt")}), UnicodeEscape()});
  return kCharacter;
}

JsonGrammar::JsonGrammar() {
  rules_.resize(kBlanksRule + 1);
  const Expression blanks = CallRule(kBlanksRule);
  const Expression value = CallRule(kValueRule);
  const Expression comma = Sequence({Literal(","), blanks});
  const Expression pair = Sequence({CallRule(kStringRule), Literal(":"), blanks, value});
  const auto list = [&](const char* begin, const Expression& item, const char* end) {
    const Expression items = Sequence({item, Repeat(Sequence({comma, item}), 0, kUnbounded)});
    return Sequence({Literal(begin), blanks, Optional(Sequence({items, blanks})), Literal(end)});
  };
  const Expression digit = AnyOf("0123456789");
  rules_[kBlanksRule] = Optional(Choice({Literal(" "), Sequence({Literal("\n"), Repeat(AnyOf(" \t"), 0, 20)})}));
  rules_[kStringRule] = Quoted(Repeat(JsonStringCharacter(), 0, kUnbounded));
  rules_[kNumberRule] = Sequence(
      {Optional(Literal("-")),
       Choice({Literal("0"), Sequence({AnyOf("123456789"), Repeat(digit, 0, 15)})}),
       Optional(Sequence({Literal("."), Repeat(digit, 1, 16)})),
       Optional(Sequence({AnyOf("eE"), Optional(AnyOf("+-")), Repeat(digit, 1, 2)}))});
  rules_[kObjectRule] = list("{", pair, "}");
  rules_[kArrayRule] = list("[", value, "]");
  rules_[kValueRule] = Choice({CallRule(kObjectRule), CallRule(kArrayRule), CallRule(kStringRule),
                               CallRule(kNumberRule), Word("true"), Word("false"), Word("null")});
}

Result<Grammar> JsonGrammar::Build(const Expression& root) && {
  rules_.push_back(root);
  return Grammar::Build(rules_, static_cast<RuleId>(rules_.size() - 1));
}

Result<Expression> JsonGrammar::Schema(const Json& schema, const std::string& path) {
  schema_bytes_ += DumpValue(schema).size();
  if (schema_bytes_ > kMaxSchemaBytes) {
    return Unsupported(fmt::format("{}: schemas of more than {} bytes", path, kMaxSchemaBytes));
  }
  document_ = &schema;
  document_path_ = path;
  refs_.clear();
  open_refs_.clear();
  depth_ = 0;
  return Compile(schema, path);
}

Result<Expression> JsonGrammar::Compile(const Json& schema, const std::string& path) {
  if (schema.is_boolean() && schema.get<bool>()) return AnyValue();
  if (!schema.is_object()) {
    return InvalidArgument(path + ": expected a schema, which is an object or true");
  }
  for (const auto& [key, value] : schema.items()) {
    if (KnownKeywords().count(key) == 0) {
      return Unsupported(fmt::format("{}.{}: this keyword is not supported", path, key));
    }
  }
  if (depth_ >= kMaxSchemaDepth) return Unsupported(path + ": nested too deeply");
  ++depth_;
  const auto compile = [&]() -> Result<Expression> {
    if (schema.contains("$ref")) return CompileRef(schema, path);
    if (schema.contains("const")) return Literal(DumpValue(schema["const"]));
    if (schema.contains("enum")) return CompileEnum(schema["enum"], path + ".enum");
    for (const char* name : {"anyOf", "oneOf", "allOf"}) {
      if (!schema.contains(name)) continue;
      for (const char* beside : {"properties", "items", "pattern", "minimum", "maximum", "multipleOf",
                                 "uniqueItems"}) {
        if (schema.contains(beside)) {
          return Unsupported(fmt::format("{}.{}: not supported beside {}", path, name, beside));
        }
      }
      if (std::string_view(name) == "allOf" && schema[name].size() != 1) {
        return Unsupported(fmt::format("{}.allOf: only of one schema", path));
      }
      return CompileChoice(schema[name], path + "." + name);
    }
    const auto type = schema.find("type");
    if (type != schema.end() && type->is_array()) {
      std::vector<Expression> choices;
      for (const Json& name : *type) {
        if (!name.is_string()) return At(path, "type", "names of types");
        ASSIGN_OR_RETURN(Expression choice, CompileType(schema, name.get<std::string>(), path));
        choices.push_back(std::move(choice));
      }
      if (choices.empty()) return At(path, "type", "at least one type");
      return Choice(std::move(choices));
    }
    if (type != schema.end() && !type->is_string()) return At(path, "type", "a name or an array");
    return CompileType(schema, type == schema.end() ? "" : type->get<std::string>(), path);
  };
  Result<Expression> result = compile();
  --depth_;
  if (result.ok() && result->node().depth > kMaxExpressionDepth) {
    return Unsupported(path + ": too many properties or items within each other");
  }
  return result;
}

Result<Expression> JsonGrammar::CompileRef(const Json& schema, const std::string& path) {
  const Json& ref = schema["$ref"];
  if (!ref.is_string()) return At(path, "$ref", "a string");
  const std::string target = ref.get<std::string>();
  if (!target.starts_with('#')) {
    return Unsupported(fmt::format("{}.$ref: only within the document (#/...), found \"{}\"", path, target));
  }
  if (open_refs_.count(target) > 0) {
    return InvalidArgument(fmt::format("{}.$ref: {} is nothing but itself", path, target));
  }
  if (const auto found = refs_.find(target); found != refs_.end()) return CallRule(found->second);
  const Json* found = nullptr;
  try {
    const Json::json_pointer pointer(target.substr(1));
    if (document_->contains(pointer)) found = &document_->at(pointer);
  } catch (const nlohmann::json::exception&) {  // not a pointer
  }
  if (found == nullptr) {
    return InvalidArgument(fmt::format("{}.$ref: there is no {}", path, target));
  }
  const RuleId rule = static_cast<RuleId>(rules_.size());
  rules_.emplace_back();
  refs_[target] = rule;
  open_refs_.insert(target);
  Result<Expression> body = Compile(*found, document_path_ + target.substr(1));
  open_refs_.erase(target);
  if (!body.ok()) return body;
  rules_[rule] = std::move(*body);
  return CallRule(rule);
}

Result<Expression> JsonGrammar::CompileChoice(const Json& list, const std::string& path) {
  if (!list.is_array() || list.empty()) {
    return InvalidArgument(path + ": expected an array of at least one schema");
  }
  std::vector<Expression> choices;
  for (size_t i = 0; i < list.size(); ++i) {
    ASSIGN_OR_RETURN(Expression choice, Compile(list[i], fmt::format("{}[{}]", path, i)));
    choices.push_back(std::move(choice));
  }
  return Choice(std::move(choices));
}

Result<Expression> JsonGrammar::CompileEnum(const Json& list, const std::string& path) {
  if (!list.is_array() || list.empty()) {
    return InvalidArgument(path + ": expected an array of at least one value");
  }
  if (list.size() > kMaxEnumValues) {
    return Unsupported(fmt::format("{}: more than {} values, found {}", path, kMaxEnumValues, list.size()));
  }
  std::vector<Expression> choices;
  for (const Json& value : list) choices.push_back(Literal(DumpValue(value)));
  return Choice(std::move(choices));
}

Result<Expression> JsonGrammar::CompileType(const Json& schema, const std::string& type,
                                            const std::string& path) {
  const auto has = [&](const char* name) { return schema.contains(name); };
  if (type == "object" || (type.empty() && (has("properties") || has("additionalProperties")))) {
    return CompileObject(schema, path);
  }
  const bool list = has("items") || has("prefixItems") || has("uniqueItems");
  if (type == "array" || (type.empty() && list)) {
    return CompileArray(schema, path);
  }
  const bool text = has("pattern") || has("minLength") || has("maxLength") || has("format");
  if (type == "string" || (type.empty() && text)) return CompileString(schema, path);
  const bool number = has("minimum") || has("maximum") || has("exclusiveMinimum") ||
                      has("exclusiveMaximum") || has("multipleOf");
  if (type == "integer") return CompileNumber(schema, path, /*integer=*/true);
  if (type == "number" || (type.empty() && number)) return CompileNumber(schema, path, false);
  if (type == "boolean") return Choice({Word("true"), Word("false")});
  if (type == "null") return Word("null");
  if (type.empty()) return AnyValue();
  return At(path, "type", "object, array, string, number, integer, boolean or null");
}

namespace {

// A count of a schema into *out.
Status ReadCount(const Json& schema, const char* name, const std::string& path, uint32_t* out) {
  const auto found = schema.find(name);
  if (found == schema.end()) return OkStatus();
  if (!found->is_number_unsigned()) return At(path, name, "a count");
  if (found->get<uint64_t>() > kMaxCount) {
    return Unsupported(fmt::format("{}.{}: not above {}", path, name, kMaxCount));
  }
  *out = found->get<uint32_t>();
  return OkStatus();
}

Status ReadCounts(const Json& schema, const char* min_name, const char* max_name,
                  const std::string& path, uint32_t* min, uint32_t* max) {
  RETURN_IF_ERROR(ReadCount(schema, min_name, path, min));
  RETURN_IF_ERROR(ReadCount(schema, max_name, path, max));
  if (*min > *max) return At(path, max_name, fmt::format("at least {}", min_name));
  return OkStatus();
}

Result<bool> HasUniqueItems(const Json& schema, const std::string& path) {
  const auto found = schema.find("uniqueItems");
  if (found == schema.end()) return false;
  if (!found->is_boolean()) return At(path, "uniqueItems", "true or false");
  return found->get<bool>();
}

// The rest of a key, and its closing quote, that makes it none of `names` (the rests of names that agree
// with it so far). Escapes are left out: with them a name could be spelled in another way.
Expression RestOfOtherKey(const std::vector<std::string_view>& names) {
  static const Expression kPlain = CharacterOf(ComplementOf(kEscaped));
  std::map<uint32_t, std::vector<std::string_view>> next;
  bool complete = false;
  for (const std::string_view name : names) {
    if (name.empty()) {
      complete = true;
      continue;
    }
    const Utf8Step step = NextUtf8(name);
    next[step.codepoint].push_back(name.substr(static_cast<size_t>(step.length)));
  }
  std::vector<Expression> choices;
  CodePointSet taken = kEscaped;
  for (const auto& [c, rests] : next) {
    taken.push_back({c, c});
    if (Contains(kEscaped, c)) continue;
    choices.push_back(Sequence({CharacterOf({{c, c}}), RestOfOtherKey(rests)}));
  }
  choices.push_back(Sequence({CharacterOf(ComplementOf(NormalizedSet(taken))),
                              Repeat(kPlain, 0, kUnbounded), Literal("\"")}));
  if (!complete) choices.push_back(Literal("\""));
  return Choice(std::move(choices));
}

}  // namespace

Result<Expression> JsonGrammar::CompileObject(const Json& schema, const std::string& path) {
  const Json properties = schema.value("properties", Json::object());
  if (!properties.is_object()) return At(path, "properties", "an object");
  if (properties.size() > kMaxProperties) {
    return Unsupported(fmt::format("{}.properties: more than {}, found {}", path, kMaxProperties,
                                   properties.size()));
  }
  std::set<std::string> required;
  for (const Json& name : schema.value("required", Json::array())) {
    if (!name.is_string()) return At(path, "required", "names of properties");
    required.insert(name.get<std::string>());
    if (!properties.contains(name.get<std::string>())) {
      return Unsupported(fmt::format("{}.required: \"{}\" is not among the properties", path,
                                     name.get<std::string>()));
    }
  }
  const std::set<std::string> open = std::exchange(open_refs_, {});
  const Expression blanks = CallRule(kBlanksRule);
  const Expression comma = Sequence({Literal(","), blanks});
  const auto pair = [&](Expression key, Expression value) {
    return Sequence({std::move(key), Literal(":"), blanks, std::move(value)});
  };
  // What may follow when members were written already, and when none was; from the last to the first.
  Expression after_some, after_none;
  const auto additional = schema.find("additionalProperties");
  const bool any_more = additional == schema.end() ? properties.empty() : *additional != false;
  if (any_more) {
    Expression value = AnyValue();
    if (additional != schema.end()) {
      ASSIGN_OR_RETURN(value, Compile(*additional, path + ".additionalProperties"));
    }
    std::vector<std::string_view> names;
    for (const auto& [name, ignored] : properties.items()) {
      if (name.size() > kMaxKeyBytes) {
        return Unsupported(fmt::format("{}.properties: names above {} bytes", path, kMaxKeyBytes));
      }
      names.push_back(name);
    }
    const Expression key = names.empty() ? CallRule(kStringRule)
                                         : Sequence({Literal("\""), RestOfOtherKey(names)});
    const Expression other = pair(key, value);
    after_some = Repeat(Sequence({comma, other}), 0, kUnbounded);
    after_none = Optional(Sequence({other, after_some}));
  }
  std::vector<std::pair<Expression, bool>> members;
  for (const auto& [name, property] : properties.items()) {
    ASSIGN_OR_RETURN(Expression value, Compile(property, path + ".properties." + name));
    members.emplace_back(pair(Literal(DumpValue(name)), std::move(value)), required.count(name) > 0);
  }
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    const Expression with_comma = Sequence({comma, member->first, after_some});
    const Expression first = Sequence({member->first, after_some});
    after_none = member->second ? first : Choice({first, after_none});
    after_some = member->second ? with_comma : Choice({with_comma, after_some});
  }
  open_refs_ = open;
  return Sequence({Literal("{"), blanks, after_none, blanks, Literal("}")});
}

Result<Expression> JsonGrammar::CompileArray(const Json& schema, const std::string& path) {
  uint32_t min = 0, max = kUnbounded;
  RETURN_IF_ERROR(ReadCounts(schema, "minItems", "maxItems", path, &min, &max));
  const std::set<std::string> open = std::exchange(open_refs_, {});
  const Expression blanks = CallRule(kBlanksRule);
  const Expression comma = Sequence({Literal(","), blanks});
  const Json prefix = schema.value("prefixItems", Json::array());
  if (!prefix.is_array()) return At(path, "prefixItems", "an array of schemas");
  if (prefix.size() > kMaxPrefixItems) {
    return Unsupported(fmt::format("{}.prefixItems: more than {}", path, kMaxPrefixItems));
  }
  const auto items = schema.find("items");
  const uint32_t prefix_count = static_cast<uint32_t>(prefix.size());
  if (items != schema.end() && *items == false) max = std::min(max, prefix_count);
  if (min > max) return At(path, "minItems", "no more than prefixItems has");
  Expression item = AnyValue();
  if (items != schema.end() && *items != false) {
    ASSIGN_OR_RETURN(item, Compile(*items, path + ".items"));
  }
  ASSIGN_OR_RETURN(const bool unique, HasUniqueItems(schema, path));
  if (unique && max > 1) {
    const auto values =
        items == schema.end() || prefix_count > 0 ? std::nullopt : ListValues(*items, *document_);
    if (!values) {
      return Unsupported(path + ".uniqueItems: only beside items that are an enum, const, boolean or "
                                "null, or lists of one item");
    }
    ASSIGN_OR_RETURN(const Expression all,
                     ListOfUnique({*values, min, max, comma}, path, &choices_left_));
    open_refs_ = open;
    return Sequence({Literal("["), blanks, all, blanks, Literal("]")});
  }
  // From the last to the first: what may follow after i items.
  Expression rest;
  if (max > prefix_count) {
    const uint32_t fewest = min > prefix_count ? min - prefix_count : 0;
    const uint32_t most = max == kUnbounded ? kUnbounded : max - prefix_count;
    rest = Repeat(Sequence({comma, item}), fewest, most);
    if (prefix_count == 0) {
      const Expression more = Repeat(Sequence({comma, item}), fewest > 0 ? fewest - 1 : 0,
                                     most == kUnbounded ? kUnbounded : most - 1);
      rest = Sequence({item, more});
      if (min == 0) rest = Optional(rest);
    }
  }
  for (uint32_t i = std::min(prefix_count, max); i-- > 0;) {
    ASSIGN_OR_RETURN(Expression part, Compile(prefix[i], fmt::format("{}.prefixItems[{}]", path, i)));
    rest = Sequence({i > 0 ? comma : Expression(), part, rest});
    if (min <= i) rest = Optional(rest);
  }
  open_refs_ = open;
  return Sequence({Literal("["), blanks, rest, blanks, Literal("]")});
}

Result<Expression> JsonGrammar::CompileString(const Json& schema, const std::string& path) {
  const auto format = schema.find("format");
  const auto pattern = schema.find("pattern");
  const bool counted = schema.contains("minLength") || schema.contains("maxLength");
  const char* format_pattern = nullptr;
  if (format != schema.end()) {
    if (!format->is_string()) return At(path, "format", "a string");
    format_pattern = FormatPattern(format->get<std::string>());
    if (format_pattern == nullptr) {
      return Unsupported(fmt::format("{}.format: \"{}\" is not supported", path, format->get<std::string>()));
    }
  }
  if (pattern != schema.end() && !pattern->is_string()) return At(path, "pattern", "a string");
  if ((pattern != schema.end() || format_pattern != nullptr) && counted) {
    return Unsupported(path + ".minLength, maxLength: not supported beside pattern or format");
  }
  if (pattern != schema.end()) {
    Result<Expression> inside = CompilePattern(pattern->get<std::string>());
    if (inside.ok()) return Quoted(std::move(*inside));
    // Libraries send both, and a pattern for a format is often more than regular.
    const bool by_format =
        format_pattern != nullptr && inside.status().code() == StatusCode::kUnsupported;
    if (!by_format) return inside.status().WithContext(path + ".pattern");
  }
  if (format_pattern != nullptr) {
    ASSIGN_OR_RETURN(Expression inside, CompilePattern(format_pattern));
    return Quoted(std::move(inside));
  }
  if (!counted) return CallRule(kStringRule);
  uint32_t min = 0, max = kUnbounded;
  RETURN_IF_ERROR(ReadCounts(schema, "minLength", "maxLength", path, &min, &max));
  return Quoted(Repeat(JsonStringCharacter(), min, max));
}

Result<Expression> JsonGrammar::CompileNumber(const Json& schema, const std::string& path,
                                              bool integer) {
  NumberRange range;
  range.integer = integer;
  struct Keyword {
    const char* name;
    std::optional<NumberBound>* bound;
    bool open;
    int sign;  // a bound is tighter if it is greater (1) or less (-1)
  };
  const Keyword all[] = {{"minimum", &range.low, false, 1},
                         {"exclusiveMinimum", &range.low, true, 1},
                         {"maximum", &range.high, false, -1},
                         {"exclusiveMaximum", &range.high, true, -1}};
  for (const auto& [name, bound, open, sign] : all) {
    const auto found = schema.find(name);
    if (found == schema.end()) continue;
    if (!found->is_number()) return At(path, name, "a number");
    // The decimal that was written: the shortest one that is read as the same double.
    NumberBound candidate{ParseDecimal(DumpValue(*found)), open};
    const int order = *bound ? sign * Compare(candidate.value, (*bound)->value) : 1;
    if (order > 0 || (order == 0 && open)) *bound = std::move(candidate);
  }
  if (const auto step = schema.find("multipleOf"); step != schema.end()) {
    if (!step->is_number() || *step <= 0) return At(path, "multipleOf", "a number above 0");
    range.step = ParseDecimal(DumpValue(*step));
  }
  if (!integer && !range.low && !range.high && !range.step) return CallRule(kNumberRule);
  return NumberIn(range, path, &choices_left_);
}

}  // namespace moraine
