// Arguments of calls, and the global functions: range, namespace, dict, raise_exception, strftime_now.
#include <algorithm>
#include <chrono>
#include <ctime>

#include "model/template/interpreter.h"
#include "model/tokenizer/utf8.h"

namespace moraine::jinja {

const Value* Arguments::Find(size_t index, const char* name) const {
  if (index < positional.size()) return &positional[index];
  if (name == nullptr) return nullptr;
  for (const auto& [known, value] : named) {
    if (known.text->bytes == name) return &value;
  }
  return nullptr;
}

const Value& Arguments::Get(size_t index, const char* name) const {
  const Value* value = Find(index, name);
  if (value == nullptr) Fail("missing argument " + std::to_string(index + 1));
  return *value;
}

std::string_view Arguments::GetString(size_t index, const char* name,
                                      std::string_view fallback) const {
  const Value* value = Find(index, name);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Fail("argument " + std::to_string(index + 1) + " must be a string, not " + TypeName(*value));
  }
  return value->text->bytes;
}

int64_t Arguments::GetInt(size_t index, const char* name, int64_t fallback) const {
  const Value* value = Find(index, name);
  if (value == nullptr) return fallback;
  if (!value->is_integer()) {
    Fail("argument " + std::to_string(index + 1) + " must be an integer, not " + TypeName(*value));
  }
  return value->as_int();
}

bool Arguments::GetBool(size_t index, const char* name, bool fallback) const {
  const Value* value = Find(index, name);
  return value == nullptr ? fallback : IsTrue(*value);
}

void Arguments::AtMost(size_t count) const {
  if (positional.size() + named.size() > count) Fail("too many arguments");
}

namespace {

// A longer range than a template iterates over is a mistake or an attack.
constexpr int64_t kMaxRange = 1'000'000;

Value Range(Interpreter& interpreter, const Arguments& arguments) {
  arguments.AtMost(3);
  int64_t start = 0, stop = arguments.Get(0, nullptr).as_int(), step = 1;
  for (const Value& bound : arguments.positional) {
    if (!bound.is_integer()) Fail("range() takes integers");
  }
  if (arguments.positional.size() > 1) {
    start = stop;
    stop = arguments.positional[1].as_int();
    step = arguments.GetInt(2, nullptr, 1);
  }
  if (step == 0) Fail("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) Fail("range() is too long");
    interpreter.meter().Step();
    items.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return interpreter.heap().NewList(std::move(items));
}

void FillFromArguments(Interpreter& interpreter, const Arguments& arguments, Dict& dict) {
  Heap& heap = interpreter.heap();
  if (arguments.positional.size() > 1) Fail("too many arguments");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is(Kind::kDict)) {
      const auto items = source.dict->items;
      for (const auto& [key, value] : items) heap.Set(dict, key, value);
    } else {
      for (const Value& pair : interpreter.Iterate(source)) {
        const std::vector<Value> parts = interpreter.Iterate(pair);
        if (parts.size() != 2) Fail("expected pairs of key and value");
        heap.Set(dict, parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) {
    heap.Set(dict, name, value);
  }
}

Value MakeDict(Interpreter& interpreter, const Arguments& arguments) {
  Dict* dict = nullptr;
  Value value = interpreter.heap().NewDict(&dict);
  FillFromArguments(interpreter, arguments, *dict);
  return value;
}

Value MakeNamespace(Interpreter& interpreter, const Arguments& arguments) {
  Value value;
  value.kind = Kind::kNamespace;
  value.name_space = interpreter.heap().New<Namespace>();
  FillFromArguments(interpreter, arguments, value.name_space->members);
  return value;
}

Value RaiseException(Interpreter& interpreter, const Arguments& arguments) {
  Fail(interpreter.ToText(arguments.Get(0, "message"))->bytes);
}

Value StrftimeNow(Interpreter& interpreter, const Arguments& arguments) {
  const std::string format(arguments.GetString(0, "format", ""));
  const auto& clock = interpreter.options().unix_time_s;
  const std::time_t now =
      clock ? static_cast<std::time_t>(clock())
            : std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  if (gmtime_r(&now, &utc) == nullptr) Fail("the time is out of range");
  // A directive expands to at most some 30 bytes; a width like %9999d is cut off by the buffer.
  if (format.size() > 256) Fail("the time format is too long");
  char buffer[4096];
  return interpreter.heap().NewString(
      ToValidUtf8(std::string_view(buffer, std::strftime(buffer, sizeof(buffer), format.c_str(), &utc))));
}

}  // namespace

Function FindFunction(std::string_view name) {
  if (name == "range") return Range;
  if (name == "dict") return MakeDict;
  if (name == "namespace") return MakeNamespace;
  if (name == "raise_exception") return RaiseException;
  if (name == "strftime_now") return StrftimeNow;
  return nullptr;
}

}  // namespace moraine::jinja
