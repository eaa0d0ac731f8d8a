// Values as text: Python's str() and repr(), and JSON.
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "model/template/value.h"
#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

bool IsPrintable(uint32_t codepoint) {
  switch (utf8proc_category(static_cast<int32_t>(codepoint))) {
    case UTF8PROC_CATEGORY_CC: case UTF8PROC_CATEGORY_CF: case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO: case UTF8PROC_CATEGORY_CN: case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS: return codepoint == ' ';
    default: return true;
  }
}

std::string Hex(const char* format, uint32_t codepoint) {
  char buffer[16];
  std::snprintf(buffer, sizeof(buffer), format, codepoint);
  return buffer;
}

// Appends `text`, each character as `escape` spells it; an empty spelling means as it is. Runs of
// unchanged characters are copied whole.
template <typename Escape>
void AppendEscaped(TextBuilder& out, const Text& text, const Escape& escape) {
  const auto append_part = [&](size_t begin, size_t end, bool untrusted) {
    const std::string_view bytes = text.bytes;
    size_t done = begin;
    for (size_t at = begin; at < end;) {
      const Utf8Step step = NextUtf8(bytes.substr(at));
      const std::string spelled = escape(step.codepoint);
      if (!spelled.empty()) {
        out.Append(bytes.substr(done, at - done), untrusted);
        out.Append(spelled, untrusted);
        done = at + step.length;
      }
      at += step.length;
    }
    out.Append(bytes.substr(done, end - done), untrusted);
  };
  size_t done = 0;
  for (const ByteSpan& span : text.untrusted) {
    append_part(done, span.begin, false);
    append_part(span.begin, span.end, true);
    done = span.end;
  }
  append_part(done, text.bytes.size(), false);
}

void AppendStringRepr(TextBuilder& out, const Text& text) {
  const bool single = text.bytes.find('\'') == std::string::npos ||
                      text.bytes.find('"') != std::string::npos;
  const char quote = single ? '\'' : '"';
  out.Append(std::string_view(&quote, 1));
  AppendEscaped(out, text, [&](uint32_t c) -> std::string {
    if (c == '\\') return "\\\\";
    if (c == static_cast<uint32_t>(quote)) return std::string("\\") + quote;
    if (c == '\n') return "\\n";
    if (c == '\r') return "\\r";
    if (c == '\t') return "\\t";
    if (c >= 0x20 && c < 0x7F) return {};
    if (IsPrintable(c)) return {};
    if (c < 0x100) return Hex("\\x%02x", c);
    return c < 0x10000 ? Hex("\\u%04x", c) : Hex("\\U%08x", c);
  });
  out.Append(std::string_view(&quote, 1));
}

void AppendJsonString(TextBuilder& out, const Text& text, bool ensure_ascii) {
  out.Append("\"");
  AppendEscaped(out, text, [&](uint32_t c) -> std::string {
    switch (c) {
      case '"': return "\\\"";
      case '\\': return "\\\\";
      case '\n': return "\\n";
      case '\r': return "\\r";
      case '\t': return "\\t";
      case '\f': return "\\f";
      case '\b': return "\\b";
      default: break;
    }
    if (c < 0x20) return Hex("\\u%04x", c);
    if (!ensure_ascii || c < 0x7F) return {};
    if (c < 0x10000) return Hex("\\u%04x", c);
    return Hex("\\u%04x", 0xD800 + ((c - 0x10000) >> 10)) +
           Hex("\\u%04x", 0xDC00 + ((c - 0x10000) & 0x3FF));
  });
  out.Append("\"");
}

std::string JsonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return FloatRepr(value);
}

// Keys of JSON objects are strings; json.dumps spells some other keys.
void AppendJsonKey(TextBuilder& out, const Value& key, bool ensure_ascii) {
  std::string spelled;
  switch (key.kind) {
    case Kind::kString: return AppendJsonString(out, *key.text, ensure_ascii);
    case Kind::kInt: spelled = std::to_string(key.integer); break;
    case Kind::kBool: spelled = key.boolean ? "true" : "false"; break;
    case Kind::kNone: spelled = "null"; break;
    case Kind::kFloat: spelled = JsonFloat(key.number); break;
    default: Fail(std::string("keys must be str, int, float, bool or None, not ") + TypeName(key));
  }
  out.Append("\"" + spelled + "\"");
}

// "[", items on lines of their own if `style.indent` says so, "]".
template <typename AppendItem>
void AppendJsonItems(TextBuilder& out, const JsonStyle& style, int level, size_t count,
                     std::string_view brackets, const AppendItem& append_item) {
  out.Append(brackets.substr(0, 1));
  const auto new_line = [&](int depth) {
    if (!style.indent.has_value()) return;
    out.Append("\n");
    for (int i = 0; i < depth; ++i) out.Append(*style.indent);
  };
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) out.Append(style.item_separator);
    new_line(level + 1);
    append_item(i);
  }
  if (count > 0) new_line(level);
  out.Append(brackets.substr(1));
}

}  // namespace

std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  const std::string scientific(buffer, end.ptr);
  const size_t e = scientific.find('e');
  const int exponent = std::stoi(scientific.substr(e + 1));
  if (exponent < -4 || exponent >= 16) return scientific;
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  std::string text(buffer, fixed.ptr);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}

void AppendStr(TextBuilder& out, Meter& meter, const Value& value) {
  if (value.is_string()) return out.Append(*value.text);
  if (!value.is_undefined()) AppendRepr(out, meter, value);
}

void AppendRepr(TextBuilder& out, Meter& meter, const Value& value) {
  meter.Step();
  const Meter::Level level(meter);
  switch (value.kind) {
    case Kind::kUndefined: return out.Append("Undefined");
    case Kind::kNone: return out.Append("None");
    case Kind::kBool: return out.Append(value.boolean ? "True" : "False");
    case Kind::kInt: return out.Append(std::to_string(value.integer));
    case Kind::kFloat: return out.Append(FloatRepr(value.number));
    case Kind::kString: return AppendStringRepr(out, *value.text);
    case Kind::kList: case Kind::kTuple: {
      const bool is_tuple = value.is(Kind::kTuple);
      out.Append(is_tuple ? "(" : "[");
      for (size_t i = 0; i < value.list->items.size(); ++i) {
        if (i > 0) out.Append(", ");
        AppendRepr(out, meter, value.list->items[i]);
      }
      if (is_tuple && value.list->items.size() == 1) out.Append(",");
      return out.Append(is_tuple ? ")" : "]");
    }
    case Kind::kDict:
      out.Append("{");
      for (size_t i = 0; i < value.dict->items.size(); ++i) {
        if (i > 0) out.Append(", ");
        AppendRepr(out, meter, value.dict->items[i].first);
        out.Append(": ");
        AppendRepr(out, meter, value.dict->items[i].second);
      }
      return out.Append("}");
    default: return out.Append("<" + std::string(TypeName(value)) + ">");
  }
}

void AppendJson(TextBuilder& out, Meter& meter, const Value& value, const JsonStyle& style,
                int level) {
  meter.Step();
  const Meter::Level nesting(meter);
  switch (value.kind) {
    case Kind::kNone: return out.Append("null");
    case Kind::kBool: return out.Append(value.boolean ? "true" : "false");
    case Kind::kInt: return out.Append(std::to_string(value.integer));
    case Kind::kFloat: return out.Append(JsonFloat(value.number));
    case Kind::kString: return AppendJsonString(out, *value.text, style.ensure_ascii);
    case Kind::kList: case Kind::kTuple:
      return AppendJsonItems(out, style, level, value.list->items.size(), "[]", [&](size_t i) {
        AppendJson(out, meter, value.list->items[i], style, level + 1);
      });
    case Kind::kDict: {
      std::vector<const std::pair<Value, Value>*> items;
      for (const auto& item : value.dict->items) items.push_back(&item);
      if (style.sort_keys) {
        std::stable_sort(items.begin(), items.end(), [&](const auto* a, const auto* b) {
          return Compare(meter, a->first, b->first) < 0;
        });
      }
      return AppendJsonItems(out, style, level, items.size(), "{}", [&](size_t i) {
        AppendJsonKey(out, items[i]->first, style.ensure_ascii);
        out.Append(style.key_separator);
        AppendJson(out, meter, items[i]->second, style, level + 1);
      });
    }
    default:
      Fail(std::string("Object of type ") + TypeName(value) + " is not JSON serializable");
  }
}

TextPtr ToText(Meter& meter, const Value& value) {
  if (value.is_string()) return value.text;
  TextBuilder out(meter);
  AppendStr(out, meter, value);
  return out.Build();
}

}  // namespace moraine::jinja
