// "%s %d" % x and "{} {name}".format(...).
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "model/template/string_methods.h"

namespace moraine::jinja {
namespace {

// Wider than any table in a prompt; a padding without limit would be an attack.
constexpr int64_t kMaxWidth = 10'000;

struct Conversion {
  char type = 0;  // 0: none given
  int64_t width = 0, precision = -1;
  char align = 0;  // '<', '>', '^'; 0: by type
  std::string fill = " ";
  bool plus = false, space = false, alternate = false, comma = false;
};

int64_t ReadNumber(std::string_view text, size_t& at) {
  int64_t number = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    number = number * 10 + (text[at++] - '0');
    if (number > kMaxWidth) Fail("a format is too wide");
  }
  return number;
}

std::string FormatNumber(const Value& value, const Conversion& conversion) {
  std::string digits;
  char buffer[kMaxWidth + 400];
  const char type = conversion.type;
  const bool is_real = type == 'f' || type == 'F' || type == 'e' || type == 'g' || type == 'G' || type == 'E' || type == '%';
  if (is_real || (type == 0 && value.is(Kind::kFloat))) {
    if (!value.is_number()) Fail(std::string("a real number is required, not ") + TypeName(value));
    const double number = type == '%' ? value.as_double() * 100 : value.as_double();
    if (type == 0 && conversion.precision < 0) {
      digits = FloatRepr(number);
    } else {
      const char code[] = {'%', '.', '*', type == 0 ? 'g' : type == '%' ? 'f' : type, 0};
      const auto precision = static_cast<int>(conversion.precision < 0 ? 6 : conversion.precision);
      std::snprintf(buffer, sizeof(buffer), code, precision, number);
      digits = buffer;
    }
    if (type == '%') digits += '%';
  } else {
    int64_t number = 0;
    if (value.is_integer()) {
      number = value.as_int();
    } else if (value.is(Kind::kFloat) && std::fabs(value.number) < 9.2e18) {
      number = static_cast<int64_t>(value.number);
    } else {
      Fail(std::string("a number is required, not ") + TypeName(value));
    }
    const int base = type == 'x' || type == 'X' ? 16 : type == 'o' ? 8 : type == 'b' ? 2 : 10;
    digits.assign(buffer, std::to_chars(buffer, buffer + 80, number, base).ptr);
    if (type == 'X') std::transform(digits.begin(), digits.end(), digits.begin(), ::toupper);
  }
  if (conversion.comma) {
    const size_t begin = digits.starts_with('-') ? 1 : 0;
    for (size_t at = std::min(digits.find('.'), digits.size()); at > begin + 3;) {
      digits.insert(at -= 3, ",");
    }
  }
  if (digits.starts_with('-')) return digits;
  return conversion.plus ? "+" + digits : conversion.space ? " " + digits : digits;
}

void AppendPadded(TextBuilder& out, const Text& text, size_t end, const Conversion& conversion,
                  char default_align) {
  const char align = conversion.align != 0 ? conversion.align : default_align;
  const auto length = static_cast<int64_t>(CharacterCount(std::string_view(text.bytes).substr(0, end)));
  const int64_t missing = std::max<int64_t>(0, conversion.width - length);
  const int64_t before = align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  for (int64_t i = 0; i < before; ++i) out.Append(conversion.fill);
  out.Append(text, 0, end);
  for (int64_t i = before; i < missing; ++i) out.Append(conversion.fill);
}

void AppendText(TextBuilder& out, Meter& meter, const Text& text, const Conversion& conversion,
                char default_align) {
  size_t end = text.bytes.size();
  if (conversion.precision >= 0) {
    const std::vector<size_t> offsets = CharacterOffsets(meter, text.bytes);
    end = offsets[std::min(static_cast<size_t>(conversion.precision), offsets.size() - 1)];
  }
  AppendPadded(out, text, end, conversion, default_align);
}

void AppendNumber(TextBuilder& out, Heap& heap, const Value& value, const Conversion& conversion) {
  std::string digits = FormatNumber(value, conversion);
  if (conversion.fill == "0" && conversion.align == 0) {  // zeros go behind the sign
    const size_t sign = digits[0] == '-' || digits[0] == '+' || digits[0] == ' ' ? 1 : 0;
    if (static_cast<int64_t>(digits.size()) < conversion.width) {
      digits.insert(sign, static_cast<size_t>(conversion.width) - digits.size(), '0');
    }
  }
  const TextPtr text = heap.NewString(digits).text;
  AppendPadded(out, *text, digits.size(), conversion, '>');
}

TextPtr Repr(Meter& meter, const Value& value) {
  TextBuilder out(meter);
  AppendRepr(out, meter, value);
  return out.Build();
}

// The part of "{...:spec}" behind the colon.
Conversion ParseSpec(std::string_view spec) {
  Conversion conversion;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^'; };
  if (spec.size() > 1 && is_align(spec[1]) && static_cast<uint8_t>(spec[0]) < 0x80) {
    conversion.fill = spec[0];
    conversion.align = spec[1];
    at = 2;
  } else if (!spec.empty() && is_align(spec[0])) {
    conversion.align = spec[0];
    at = 1;
  }
  if (at < spec.size() && (spec[at] == '+' || spec[at] == ' ' || spec[at] == '-')) {
    conversion.plus = spec[at] == '+';
    conversion.space = spec[at] == ' ';
    ++at;
  }
  if (at < spec.size() && spec[at] == '0' && conversion.align == 0) {
    conversion.fill = "0";
    ++at;
  }
  conversion.width = ReadNumber(spec, at);
  if (at < spec.size() && spec[at] == ',') {
    conversion.comma = true;
    ++at;
  }
  if (at < spec.size() && spec[at] == '.') conversion.precision = ReadNumber(spec, ++at);
  if (at < spec.size()) conversion.type = spec[at++];
  static constexpr std::string_view kTypes = "sdfFeEgGxXob%";
  if (at != spec.size() || (conversion.type != 0 && kTypes.find(conversion.type) == kTypes.npos)) {
    Fail("the format '" + std::string(spec) + "' is not supported");
  }
  return conversion;
}

Value LookUpField(Interpreter& interpreter, std::string_view field, const Arguments& arguments,
                  size_t& automatic) {
  size_t end = std::min(field.find_first_of(".["), field.size());
  const std::string name(field.substr(0, end));
  Value value;
  if (name.find_first_not_of("0123456789") == std::string::npos && name.size() < 6) {
    const size_t index = name.empty() ? automatic++ : static_cast<size_t>(std::stoi(name));
    if (index >= arguments.positional.size()) Fail("format: an index is out of range");
    value = arguments.positional[index];
  } else {
    const Value* found = arguments.Find(SIZE_MAX, name.c_str());
    if (found == nullptr) Fail("format: there is no argument '" + name + "'");
    value = *found;
  }
  while (end < field.size()) {
    const bool is_item = field[end] == '[';
    const size_t stop = std::min(is_item ? field.find(']', end) : field.find_first_of(".[", end + 1),
                                 field.size());
    const std::string part(field.substr(end + 1, stop - end - 1));
    value = is_item ? interpreter.GetPath(value, Value::Constant(part))
                    : interpreter.GetAttribute(value, part);
    end = stop + is_item;
  }
  return value;
}

}  // namespace

Value BraceFormat(Interpreter& interpreter, const Text& format, const Arguments& arguments) {
  TextBuilder out(interpreter.meter());
  const std::string_view text = format.bytes;
  size_t automatic = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t next = std::min(text.find_first_of("{}", at), text.size());
    out.Append(format, at, next);
    if (next == text.size()) break;
    if (next + 1 < text.size() && text[next + 1] == text[next]) {
      out.Append(format, next, next + 1);
      at = next + 2;
      continue;
    }
    const size_t close = text.find('}', next);
    if (text[next] == '}' || close == text.npos) Fail("format: a brace has no partner");
    std::string_view field = text.substr(next + 1, close - next - 1);
    std::string_view spec;
    if (const size_t colon = field.find(':'); colon != field.npos) {
      spec = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    const bool is_repr = field.ends_with("!r");
    if (is_repr || field.ends_with("!s")) field.remove_suffix(2);
    const Value value = LookUpField(interpreter, field, arguments, automatic);
    const Conversion conversion = ParseSpec(spec);
    const bool plain = is_repr || !value.is_number() || spec.empty();
    if (plain) {
      AppendText(out, interpreter.meter(),
                 is_repr ? *Repr(interpreter.meter(), value) : *interpreter.ToText(value), conversion,
                 '<');
    } else {
      AppendNumber(out, interpreter.heap(), value, conversion);
    }
    at = close + 1;
  }
  return Value::String(out.Build());
}

Value Interpreter::PercentFormat(const Text& format, const Value& arguments) {
  TextBuilder out(meter_);
  const std::string_view text = format.bytes;
  const bool is_tuple = arguments.is(Kind::kTuple);
  const size_t count = is_tuple ? arguments.list->items.size() : 1;
  size_t used = 0;
  bool by_name = false;
  for (size_t at = 0; at < text.size();) {
    const size_t next = std::min(text.find('%', at), text.size());
    out.Append(format, at, next);
    if (next == text.size()) break;
    at = next + 1;
    if (at < text.size() && text[at] == '%') {
      out.Append(format, at, at + 1);
      ++at;
      continue;
    }
    Conversion conversion;
    Value value;
    bool has_value = false;
    if (at < text.size() && text[at] == '(') {
      const size_t close = text.find(')', at);
      if (close == text.npos || !arguments.is(Kind::kDict)) Fail("format requires a mapping");
      const Value* found = FindKey(meter_, *arguments.dict, text.substr(at + 1, close - at - 1));
      if (found == nullptr) Fail("format: a key is missing");
      value = *found;
      has_value = by_name = true;
      at = close + 1;
    }
    for (; at < text.size() && std::string_view("-+ 0#").find(text[at]) != text.npos; ++at) {
      if (text[at] == '-') conversion.align = '<';
      if (text[at] == '+') conversion.plus = true;
      if (text[at] == ' ') conversion.space = true;
      if (text[at] == '0') conversion.fill = "0";
    }
    conversion.width = ReadNumber(text, at);
    if (at < text.size() && text[at] == '.') conversion.precision = ReadNumber(text, ++at);
    if (at >= text.size()) Fail("incomplete format");
    conversion.type = text[at++];
    if (!has_value) {
      if (used >= count) Fail("not enough arguments for format string");
      value = is_tuple ? arguments.list->items[used] : arguments;
      ++used;
    }
    if (conversion.align == '<') conversion.fill = " ";
    if (conversion.type == 's' || conversion.type == 'r') {
      conversion.fill = " ";
      const TextPtr part = conversion.type == 's' ? ToText(value) : Repr(meter_, value);
      AppendText(out, meter_, *part, conversion, '>');
    } else if (std::string_view("diufFeEgGxXo").find(conversion.type) != text.npos) {
      if (conversion.type == 'i' || conversion.type == 'u') conversion.type = 'd';
      AppendNumber(out, heap_, value, conversion);
    } else {
      Fail(std::string("unsupported format character '") + conversion.type + "'");
    }
  }
  const bool may_have_rest = by_name || arguments.is(Kind::kDict) || arguments.is(Kind::kList);
  if (used < count && !may_have_rest) Fail("not all arguments converted during string formatting");
  return Value::String(out.Build());
}

}  // namespace moraine::jinja
