// Filters on text and single values: x | name(...). Those on sequences are in sequence_filters.cc.
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "model/template/interpreter.h"
#include "model/template/string_methods.h"
#include "model/template/text_operations.h"
#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

using I = Interpreter;
using V = Value;
using A = Arguments;

V Center(I& interpreter, const V& value, const A& arguments) {
  A width = arguments;
  if (width.Find(0, "width") == nullptr) width.positional.push_back(V::Int(80));
  return FindStringMethod("center")(interpreter, V::String(interpreter.ToText(value)), width);
}

// Shorter than `length` characters, `end` among them; a text that is hardly longer stays whole.
V Truncate(I& interpreter, const V& value, const A& arguments) {
  const TextPtr text = interpreter.ToText(value);
  const int64_t length = arguments.GetInt(0, "length", 255);
  const V* given = arguments.Find(2, "end");
  const TextPtr end = given != nullptr ? interpreter.ToText(*given) : V::Constant("...").text;
  const auto end_length = static_cast<int64_t>(CharacterCount(end->bytes));
  const int64_t leeway = arguments.GetInt(3, "leeway", 5);
  if (length < end_length) Fail("truncate: the length is less than that of its end");
  if (leeway < 0) Fail("truncate: the leeway must not be negative");
  const std::vector<size_t> offsets = CharacterOffsets(interpreter.meter(), text->bytes);
  const auto count = static_cast<int64_t>(offsets.size()) - 1;
  if (count <= length || count - length <= leeway) return V::String(text);
  size_t keep = offsets[static_cast<size_t>(length - end_length)];
  if (!arguments.GetBool(1, "killwords", false)) {
    const size_t blank = std::string_view(text->bytes).substr(0, keep).rfind(' ');
    if (blank != std::string_view::npos) keep = blank;
  }
  TextBuilder out(interpreter.meter());
  out.Append(*text, 0, keep);
  out.Append(*end);
  return V::String(out.Build());
}

V Default(I&, const V& value, const A& arguments) {
  const bool replaces =
      value.is_undefined() || (arguments.GetBool(1, "boolean", false) && !IsTrue(value));
  if (!replaces) return value;
  const V* fallback = arguments.Find(0, "default_value");
  return fallback != nullptr ? *fallback : V::Constant("");
}

// The marks would be lost on them.
void CheckIsOfTheTemplate(const TextPtr& text) {
  if (!text->untrusted.empty()) Fail("tojson: indent and separators must not come from the request");
}

V ToJson(I& interpreter, const V& value, const A& arguments) {
  JsonStyle style;
  style.ensure_ascii = arguments.GetBool(0, "ensure_ascii", false);
  if (const V* indent = arguments.Find(1, "indent"); indent != nullptr && !indent->is(Kind::kNone)) {
    if (indent->is_string()) {
      CheckIsOfTheTemplate(indent->text);
      style.indent = indent->text->bytes;
    } else if (indent->is_integer()) {
      style.indent.emplace(static_cast<size_t>(std::clamp<int64_t>(indent->as_int(), 0, 64)), ' ');
    } else {
      Fail("tojson: indent must be an integer or a string");
    }
    style.item_separator.assign(1, ',');
  }
  if (const V* separators = arguments.Find(2, "separators");
      separators != nullptr && !separators->is(Kind::kNone)) {
    const std::vector<V> both = interpreter.Iterate(*separators);
    if (both.size() != 2) Fail("tojson: separators must be a pair");
    const TextPtr item = interpreter.ToText(both[0]), key = interpreter.ToText(both[1]);
    CheckIsOfTheTemplate(item);
    CheckIsOfTheTemplate(key);
    style.item_separator = item->bytes;
    style.key_separator = key->bytes;
  }
  style.sort_keys = arguments.GetBool(3, "sort_keys", false);
  TextBuilder out(interpreter.meter());
  AppendJson(out, interpreter.meter(), value, style);
  return V::String(out.Build());
}

V Trim(I& interpreter, const V& value, const A& arguments) {
  const V* characters = arguments.Find(0, "chars");
  return V::String(Strip(interpreter.heap(), interpreter.ToText(value), characters, true, true));
}

V Replace(I& interpreter, const V& value, const A& arguments) {
  const TextPtr from = interpreter.ToText(arguments.Get(0, "old"));
  const TextPtr to = interpreter.ToText(arguments.Get(1, "new"));
  const V* count = arguments.Find(2, "count");
  const int64_t limit = count == nullptr || count->is(Kind::kNone) ? -1 : arguments.GetInt(2, "count", -1);
  return V::String(ReplaceText(interpreter.heap(), *interpreter.ToText(value), *from, *to, limit));
}

// "hello (world)" -> "Hello (World)": words begin at blanks, dashes and opening brackets.
V Title(I& interpreter, const V& value, const A&) {
  return V::String(MapCase(interpreter.heap(), *interpreter.ToText(value), [previous = ' '](
                                                                               uint32_t c) mutable {
    const bool begins = previous == '-' || previous == '(' || previous == '{' || previous == '[' ||
                        previous == '<' || IsPythonSpace(static_cast<uint32_t>(previous));
    previous = static_cast<char32_t>(c) < 0x80 ? static_cast<char>(c) : 'x';
    if (IsPythonSpace(c)) previous = ' ';
    return begins ? LetterCase::kUpper : LetterCase::kLower;
  }));
}

V ToInt(I& interpreter, const V& value, const A& arguments) {
  const V* given = arguments.Find(0, "default");
  const V fallback = given != nullptr ? *given : V::Int(0);
  const int64_t base = arguments.GetInt(1, "base", 10);
  if (value.is_integer()) return V::Int(value.as_int());
  if (value.is(Kind::kFloat)) {
    if (!std::isfinite(value.number)) return fallback;
    if (std::fabs(value.number) >= 9.2e18) Fail("int: the number does not fit into 64 bits");
    return V::Int(static_cast<int64_t>(value.number));
  }
  if (!value.is_string()) return fallback;
  const std::string text = Strip(interpreter.heap(), value.text, nullptr, true, true)->bytes;
  int64_t number = 0;
  std::string digits;
  for (const char c : text) {
    if (c != '_') digits += c;
  }
  size_t from = digits.starts_with('+') ? 1 : 0;
  if (base == 16 && (digits.starts_with("0x") || digits.starts_with("0X"))) from = 2;
  if (base < 2 || base > 36) return fallback;
  const char* const end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data() + from, end, number, static_cast<int>(base));
  if (parsed.ec == std::errc() && parsed.ptr == end && from < digits.size()) return V::Int(number);
  double real = 0;
  const auto as_double = std::from_chars(digits.data() + from, end, real);
  if (as_double.ec != std::errc() || as_double.ptr != end || from >= digits.size() ||
      !(std::fabs(real) < 9.2e18)) {
    return fallback;
  }
  return V::Int(static_cast<int64_t>(real));
}

V ToFloat(I& interpreter, const V& value, const A& arguments) {
  const V* given = arguments.Find(0, "default");
  if (value.is_number()) return V::Float(value.as_double());
  if (value.is_string()) {
    const std::string text = Strip(interpreter.heap(), value.text, nullptr, true, true)->bytes;
    const size_t from = text.starts_with('+') ? 1 : 0;
    double number = 0;
    const char* const end = text.data() + text.size();
    const auto parsed = std::from_chars(text.data() + from, end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end && from < text.size()) return V::Float(number);
  }
  return given != nullptr ? *given : V::Float(0);
}

V Abs(I&, const V& value, const A&) {
  if (value.is(Kind::kFloat)) return V::Float(std::fabs(value.number));
  if (!value.is_integer()) Fail(std::string("bad operand type for abs(): ") + TypeName(value));
  if (value.as_int() == INT64_MIN) Fail("an integer exceeds 64 bits");
  return V::Int(std::abs(value.as_int()));
}

V Round(I&, const V& value, const A& arguments) {
  if (!value.is_number()) Fail(std::string("type ") + TypeName(value) + " cannot be rounded");
  const int64_t precision = arguments.GetInt(0, "precision", 0);
  const std::string_view method = arguments.GetString(1, "method", "common");
  const double number = value.as_double();
  if (method == "ceil" || method == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    return V::Float((method == "ceil" ? std::ceil(number * scale) : std::floor(number * scale)) / scale);
  }
  if (method != "common") Fail("method must be common, ceil or floor");
  if (value.is_integer() && precision >= 0) return V::Int(value.as_int());
  if (precision < 0) {
    const double scale = std::pow(10.0, static_cast<double>(std::min<int64_t>(-precision, 400)));
    const double rounded = std::nearbyint(number / scale) * scale;
    return value.is_integer() ? V::Int(static_cast<int64_t>(rounded)) : V::Float(rounded);
  }
  if (precision > 300 || !std::isfinite(number)) return V::Float(number);
  // Correctly rounded decimal digits, half to even of the exact binary value, as Python does.
  char buffer[1024];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::fixed,
                                 static_cast<int>(precision));
  double rounded = 0;
  std::from_chars(buffer, end.ptr, rounded);
  return V::Float(rounded);
}

V Indent(I& interpreter, const V& value, const A& arguments) {
  TextPtr unit;
  const V* width = arguments.Find(0, "width");
  if (width != nullptr && width->is_string()) {
    unit = width->text;
  } else {
    const int64_t count = std::clamp<int64_t>(arguments.GetInt(0, "width", 4), 0, 1000);
    unit = interpreter.heap().NewString(std::string(static_cast<size_t>(count), ' ')).text;
  }
  const bool first = arguments.GetBool(1, "first", false);
  const bool blank = arguments.GetBool(2, "blank", false);
  const TextPtr text = interpreter.ToText(value);
  TextBuilder out(interpreter.meter());
  std::string with_end = text->bytes;
  with_end.push_back('\n');  // an empty last line counts
  const std::vector<ByteSpan> lines = SplitLines(with_end, /*keep_ends=*/false);
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool is_empty = lines[i].begin == lines[i].end;
    if (i > 0) out.Append("\n");
    if (i == 0 ? first : blank || !is_empty) out.Append(*unit);
    out.Append(*text, lines[i].begin, std::min(lines[i].end, text->bytes.size()));
  }
  return V::String(out.Build());
}

V Escape(I& interpreter, const V& value, const A&) {
  const TextPtr text = interpreter.ToText(value);
  TextBuilder out(interpreter.meter());
  for (size_t at = 0; at < text->bytes.size();) {
    const size_t next = std::min(text->bytes.find_first_of("&<>'\"", at), text->bytes.size());
    out.Append(*text, at, next);
    if (next == text->bytes.size()) break;
    const char c = text->bytes[next];
    out.Append(c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&#34;" : "&#39;");
    at = next + 1;
  }
  return V::String(out.Build());
}

V Format(I& interpreter, const V& value, const A& arguments) {
  const TextPtr text = interpreter.ToText(value);
  if (!arguments.named.empty()) {
    if (!arguments.positional.empty()) Fail("format takes positional or named arguments, not both");
    Dict* dict = nullptr;
    const V named = interpreter.heap().NewDict(&dict);
    for (const auto& [name, item] : arguments.named) {
      interpreter.heap().Set(*dict, name, item);
    }
    return interpreter.PercentFormat(*text, named);
  }
  return interpreter.PercentFormat(
      *text, interpreter.heap().NewList(arguments.positional, Kind::kTuple));
}

V WordCount(I& interpreter, const V& value, const A&) {
  const TextPtr text = interpreter.ToText(value);
  int64_t count = 0;
  bool in_word = false;
  interpreter.meter().StepForBytes(text->bytes.size());
  for (size_t at = 0; at < text->bytes.size();) {
    const Utf8Step step = NextUtf8(std::string_view(text->bytes).substr(at));
    const bool is_word = step.codepoint == '_' || IsAlphanumeric(step.codepoint);
    count += is_word && !in_word;
    in_word = is_word;
    at += step.length;
  }
  return V::Int(count);
}

}  // namespace

Filter FindFilter(std::string_view name) {
  static const Filter length = [](I& i, const V& v, const A&) { return V::Int(i.Length(v)); };
  static const Filter as_string = [](I& i, const V& v, const A&) { return V::String(i.ToText(v)); };
  static const Filter upper = [](I& i, const V& v, const A&) {
    return V::String(MapCase(i.heap(), *i.ToText(v), [](uint32_t) { return LetterCase::kUpper; }));
  };
  static const Filter lower = [](I& i, const V& v, const A&) {
    return V::String(MapCase(i.heap(), *i.ToText(v), [](uint32_t) { return LetterCase::kLower; }));
  };
  static const Filter capitalize = [](I& i, const V& v, const A&) {
    return V::String(MapCase(i.heap(), *i.ToText(v), [first = true](uint32_t) mutable {
      return std::exchange(first, false) ? LetterCase::kUpper : LetterCase::kLower;
    }));
  };
  static const std::unordered_map<std::string_view, Filter> filters = {
      {"default", Default}, {"d", Default}, {"tojson", ToJson}, {"trim", Trim},
      {"replace", Replace}, {"title", Title}, {"int", ToInt}, {"float", ToFloat}, {"abs", Abs},
      {"round", Round}, {"indent", Indent}, {"center", Center}, {"truncate", Truncate}, {"escape", Escape}, {"e", Escape},
      {"forceescape", Escape}, {"format", Format}, {"wordcount", WordCount}, {"length", length},
      {"count", length}, {"string", as_string}, {"safe", as_string}, {"upper", upper},
      {"lower", lower}, {"capitalize", capitalize},
  };
  const auto found = filters.find(name);
  return found == filters.end() ? nullptr : found->second;
}

Value Interpreter::ApplyFilter(const std::string& name, const Value& input,
                               const Arguments& arguments) {
  Filter filter = FindFilter(name);
  if (filter == nullptr) filter = FindSequenceFilter(name);
  if (filter == nullptr) Fail("there is no filter named '" + name + "'");
  return filter(*this, input, arguments);
}

}  // namespace moraine::jinja
