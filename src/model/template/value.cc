#include "model/template/value.h"

#include <algorithm>
#include <cmath>

#include "model/tokenizer/utf8.h"

namespace moraine::jinja {

void Fail(std::string message) { throw Error{StatusCode::kInvalidArgument, std::move(message)}; }

void FailBudget(const std::string& which) {
  throw Error{StatusCode::kResourceExhausted, "the budget of " + which + " is used up"};
}

void TextBuilder::Append(std::string_view bytes, bool untrusted) {
  if (bytes.empty()) return;
  meter_.StepForBytes(bytes.size());
  meter_.CheckString(bytes_.size() + bytes.size());
  const size_t begin = bytes_.size();
  bytes_ += bytes;
  if (!untrusted) return;
  if (!untrusted_.empty() && untrusted_.back().end == begin) {
    untrusted_.back().end = bytes_.size();
  } else {
    untrusted_.push_back({begin, bytes_.size()});
  }
}

void TextBuilder::Append(const Text& text, size_t begin, size_t end) {
  const std::string_view bytes = text.bytes;
  auto span = std::upper_bound(text.untrusted.begin(), text.untrusted.end(), begin,
                               [](size_t at, const ByteSpan& s) { return at < s.end; });
  for (size_t at = begin; at < end;) {
    if (span == text.untrusted.end() || span->begin >= end) {
      Append(bytes.substr(at, end - at));
      return;
    }
    if (at < span->begin) Append(bytes.substr(at, span->begin - at));
    const size_t from = std::max(at, span->begin), to = std::min(end, span->end);
    Append(bytes.substr(from, to - from), /*untrusted=*/true);
    at = to;
    ++span;
  }
}

TextPtr TextBuilder::Build() {
  auto text = std::make_shared<Text>();
  text->bytes = std::move(bytes_);
  text->untrusted = std::move(untrusted_);
  bytes_.clear();
  untrusted_.clear();
  const size_t charge =
      text->bytes.capacity() + text->untrusted.capacity() * sizeof(ByteSpan) + sizeof(Text);
  meter_.Allocate(charge);
  text->charged_bytes = charge;
  text->meter = &meter_;
  return text;
}

Value Value::None() {
  Value value;
  value.kind = Kind::kNone;
  return value;
}
Value Value::Bool(bool boolean) {
  Value value;
  value.kind = Kind::kBool;
  value.boolean = boolean;
  return value;
}
Value Value::Int(int64_t integer) {
  Value value;
  value.kind = Kind::kInt;
  value.integer = integer;
  return value;
}
Value Value::Float(double number) {
  Value value;
  value.kind = Kind::kFloat;
  value.number = number;
  return value;
}
Value Value::String(TextPtr text) {
  Value value;
  value.kind = Kind::kString;
  value.text = std::move(text);
  return value;
}
Value Value::Constant(std::string_view bytes) {
  auto text = std::make_shared<Text>();
  text->bytes = bytes;
  return String(std::move(text));
}
Value Value::Undefined(std::string_view name) {
  Value value = Constant(name);
  value.kind = Kind::kUndefined;
  return value;
}

Value Heap::NewList(std::vector<Value> items, Kind kind) {
  meter_.Step(static_cast<int64_t>(items.size()));
  meter_.Allocate(items.capacity() * sizeof(Value));
  Value value;
  value.kind = kind;
  value.list = New<List>();
  value.list->items = std::move(items);
  return value;
}

Value Heap::NewDict(Dict** dict) {
  Value value;
  value.kind = Kind::kDict;
  value.dict = *dict = New<Dict>();
  return value;
}

void Heap::Push(List& list, Value value) {
  meter_.Step();
  meter_.Allocate(2 * sizeof(Value));  // vectors double
  list.items.push_back(std::move(value));
}

void Heap::Set(Dict& dict, const Value& key, Value value) {
  if (key.is(Kind::kList) || key.is(Kind::kDict)) {
    Fail(std::string("unhashable type: '") + TypeName(key) + "'");
  }
  if (Value* existing = FindKey(meter_, dict, key)) {
    *existing = std::move(value);
    return;
  }
  meter_.Allocate(4 * sizeof(Value));
  dict.items.emplace_back(key, std::move(value));
}

Value Heap::NewString(std::string_view bytes, bool untrusted) {
  TextBuilder out(meter_);
  out.Append(bytes, untrusted);
  return Value::String(out.Build());
}

Value Heap::Slice(const Text& text, size_t begin, size_t end) {
  TextBuilder out(meter_);
  out.Append(text, begin, end);
  return Value::String(out.Build());
}

bool IsTrue(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: case Kind::kNone: return false;
    case Kind::kBool: return value.boolean;
    case Kind::kInt: return value.integer != 0;
    case Kind::kFloat: return value.number != 0;
    case Kind::kString: return !value.text->bytes.empty();
    case Kind::kList: case Kind::kTuple: return !value.list->items.empty();
    case Kind::kDict: return !value.dict->items.empty();
    default: return true;
  }
}

const char* TypeName(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kNamespace: return "Namespace";
    case Kind::kLoop: return "LoopContext";
    case Kind::kCallable: return "function";
  }
  return "";
}

bool Equal(Meter& meter, const Value& a, const Value& b) {
  meter.Step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_int() == b.as_int();
    return a.as_double() == b.as_double();
  }
  if (a.kind != b.kind) return false;
  const Meter::Level level(meter);
  switch (a.kind) {
    case Kind::kString:
      meter.StepForBytes(std::min(a.text->bytes.size(), b.text->bytes.size()));
      return a.text->bytes == b.text->bytes;
    case Kind::kList: case Kind::kTuple:
      return std::equal(a.list->items.begin(), a.list->items.end(), b.list->items.begin(),
                        b.list->items.end(), [&](const Value& x, const Value& y) {
                          return Equal(meter, x, y);
                        });
    case Kind::kDict:
      if (a.dict->items.size() != b.dict->items.size()) return false;
      for (const auto& [key, value] : a.dict->items) {
        const Value* other = FindKey(meter, *b.dict, key);
        if (other == nullptr || !Equal(meter, value, *other)) return false;
      }
      return true;
    case Kind::kNamespace: return a.name_space == b.name_space;
    case Kind::kLoop: return a.loop == b.loop;
    case Kind::kCallable: return a.callable == b.callable;
    default: return true;  // undefined, none
  }
}

int Compare(Meter& meter, const Value& a, const Value& b) {
  meter.Step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) {
      return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int();
    }
    const double x = a.as_double(), y = b.as_double();
    return x < y ? -1 : x > y;
  }
  if (a.is_string() && b.is_string()) {
    meter.StepForBytes(std::min(a.text->bytes.size(), b.text->bytes.size()));
    return a.text->bytes.compare(b.text->bytes);  // UTF-8 sorts as its code points
  }
  if (a.is_list() && a.kind == b.kind) {
    const Meter::Level level(meter);
    const size_t common = std::min(a.list->items.size(), b.list->items.size());
    for (size_t i = 0; i < common; ++i) {
      if (Equal(meter, a.list->items[i], b.list->items[i])) continue;
      return Compare(meter, a.list->items[i], b.list->items[i]);
    }
    return a.list->items.size() < b.list->items.size()
               ? -1 : a.list->items.size() > b.list->items.size();
  }
  for (const Value* value : {&a, &b}) {
    if (value->is_undefined()) Fail("'" + value->text->bytes + "' is undefined");
  }
  Fail(std::string("'<' not supported between instances of '") + TypeName(a) + "' and '" +
       TypeName(b) + "'");
}

Value* FindKey(Meter& meter, Dict& dict, const Value& key) {
  for (auto& [name, value] : dict.items) {
    if (Equal(meter, name, key)) return &value;
  }
  return nullptr;
}

Value* FindKey(Meter& meter, Dict& dict, std::string_view key) {
  for (auto& [name, value] : dict.items) {
    meter.Step();
    if (name.is_string() && name.text->bytes == key) return &value;
  }
  return nullptr;
}

size_t CharacterCount(std::string_view bytes) {
  return static_cast<size_t>(std::count_if(
      bytes.begin(), bytes.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }));
}

std::vector<size_t> CharacterOffsets(Meter& meter, std::string_view bytes) {
  // Eight bytes of table per byte of text: cheap for steps, not for memory.
  meter.Step(static_cast<int64_t>(bytes.size() / 16));
  std::vector<size_t> offsets;
  offsets.reserve(bytes.size() + 1);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if ((static_cast<uint8_t>(bytes[i]) & 0xC0) != 0x80) offsets.push_back(i);
  }
  offsets.push_back(bytes.size());
  return offsets;
}

bool IsPythonSpace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace moraine::jinja
