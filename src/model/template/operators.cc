// Python's operators, subscripts and iteration.
#include <algorithm>
#include <cmath>

#include "model/template/interpreter.h"
#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

[[noreturn]] void FailOperands(const std::string& op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    if (value->is_undefined()) Fail("'" + value->text->bytes + "' is undefined");
  }
  Fail("unsupported operand types for " + op + ": '" + TypeName(left) + "' and '" +
       TypeName(right) + "'");
}

[[noreturn]] void FailOverflow() { Fail("an integer exceeds 64 bits"); }

Value IntegerPower(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) Fail("0 cannot be raised to a negative power");
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) FailOverflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) FailOverflow();
  }
  return Value::Int(result);
}

Value IntegerArithmetic(const std::string& op, int64_t a, int64_t b) {
  int64_t result = 0;
  if (op == "+" ? __builtin_add_overflow(a, b, &result)
      : op == "-" ? __builtin_sub_overflow(a, b, &result)
      : op == "*" ? __builtin_mul_overflow(a, b, &result) : false) {
    FailOverflow();
  }
  if (op == "+" || op == "-" || op == "*") return Value::Int(result);
  if (op == "**") return IntegerPower(a, b);
  if (b == 0) Fail("division by zero");
  if (op == "/") return Value::Float(static_cast<double>(a) / static_cast<double>(b));
  if (b == -1) {  // INT64_MIN / -1 traps
    if (op == "%") return Value::Int(0);
    if (a == INT64_MIN) FailOverflow();
    return Value::Int(-a);
  }
  // Python rounds towards minus infinity.
  const int64_t quotient = a / b, remainder = a % b;
  const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
  return Value::Int(op == "//" ? quotient - adjust : remainder + (adjust ? b : 0));
}

Value FloatArithmetic(const std::string& op, double a, double b) {
  if (op == "+") return Value::Float(a + b);
  if (op == "-") return Value::Float(a - b);
  if (op == "*") return Value::Float(a * b);
  if (op == "**") {
    if (a == 0 && b < 0) Fail("0.0 cannot be raised to a negative power");
    if (a < 0 && b != std::floor(b)) Fail("a power is not a real number");
    return Value::Float(std::pow(a, b));
  }
  if (b == 0) Fail("float division by zero");
  if (op == "/") return Value::Float(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == "%") return Value::Float(remainder);
  return Value::Float(std::round((a - remainder) / b));
}

// Index of Python's `value[bound]` as a slice bound.
int64_t ClampBound(const Value& bound, int64_t fallback, int64_t count, bool forward) {
  if (bound.is(Kind::kNone)) return fallback;
  if (!bound.is_integer()) Fail("slice indices must be integers or None");
  int64_t at = bound.as_int();
  if (at < 0) at = at < -count ? -1 : at + count;
  if (forward) return std::clamp<int64_t>(at, 0, count);
  return std::clamp<int64_t>(at, -1, count - 1);
}

std::vector<int64_t> SliceIndices(Meter& meter, int64_t count, const Value& start,
                                  const Value& stop, const Value& step) {
  int64_t stride = 1;
  if (!step.is(Kind::kNone)) {
    if (!step.is_integer()) Fail("slice indices must be integers or None");
    stride = step.as_int();
  }
  if (stride == 0) Fail("slice step cannot be zero");
  const bool forward = stride > 0;
  const int64_t from = ClampBound(start, forward ? 0 : count - 1, count, forward);
  const int64_t to = ClampBound(stop, forward ? count : -1, count, forward);
  std::vector<int64_t> indices;
  for (int64_t i = from; forward ? i < to : i > to;) {
    indices.push_back(i);
    meter.Step();
    if (__builtin_add_overflow(i, stride, &i)) break;
  }
  return indices;
}

}  // namespace

Value Interpreter::Negate(const Value& value) {
  if (value.is(Kind::kFloat)) return Value::Float(-value.number);
  if (!value.is_integer()) FailOperands("unary -", value, Value::Int(0));
  if (value.as_int() == INT64_MIN) FailOverflow();
  return Value::Int(-value.as_int());
}

Value Interpreter::Add(const Value& left, const Value& right) {
  if (left.is_string() && right.is_string()) {
    TextBuilder out(meter_);
    out.Append(*left.text);
    out.Append(*right.text);
    return Value::String(out.Build());
  }
  if (left.is_list() && left.kind == right.kind) {
    std::vector<Value> items = left.list->items;
    items.insert(items.end(), right.list->items.begin(), right.list->items.end());
    return heap_.NewList(std::move(items), left.kind);
  }
  return Arithmetic("+", left, right);
}

Value Interpreter::Multiply(const Value& left, const Value& right) {
  const bool swapped = left.is_integer();
  const Value& sequence = swapped ? right : left;
  const Value& factor = swapped ? left : right;
  if (!factor.is_integer()) FailOperands("*", left, right);
  const int64_t count = std::max<int64_t>(factor.as_int(), 0);
  if (sequence.is_string()) {
    const auto size = static_cast<int64_t>(sequence.text->bytes.size());
    if (size > 0 && count > static_cast<int64_t>(options_.max_output_bytes) / size) {
      FailBudget("output bytes");
    }
    TextBuilder out(meter_);
    for (int64_t i = 0; i < count && size > 0; ++i) out.Append(*sequence.text);
    return Value::String(out.Build());
  }
  const std::vector<Value>& unit = sequence.list->items;
  std::vector<Value> items;
  for (int64_t i = 0; i < count && !unit.empty(); ++i) {
    meter_.Step(static_cast<int64_t>(unit.size()));
    meter_.Allocate(unit.size() * sizeof(Value));  // before it is there, not after
    items.insert(items.end(), unit.begin(), unit.end());
  }
  return heap_.NewList(std::move(items), sequence.kind);
}

Value Interpreter::Arithmetic(const std::string& op, const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_integer() && right.is_integer()) {
      return IntegerArithmetic(op, left.as_int(), right.as_int());
    }
    return FloatArithmetic(op, left.as_double(), right.as_double());
  }
  const auto is_sequence = [](const Value& value) { return value.is_string() || value.is_list(); };
  if (op == "+" && is_sequence(left) && left.kind == right.kind) return Add(left, right);
  if (op == "*" && is_sequence(left) != is_sequence(right)) return Multiply(left, right);
  if (op == "%" && left.is_string()) return PercentFormat(*left.text, right);
  FailOperands(op, left, right);
}

bool Interpreter::Contains(const Value& container, const Value& element) {
  switch (container.kind) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!element.is_string()) Fail("'in <string>' requires string as left operand");
      meter_.StepForBytes(container.text->bytes.size());
      return container.text->bytes.find(element.text->bytes) != std::string::npos;
    case Kind::kList: case Kind::kTuple:
      return std::any_of(container.list->items.begin(), container.list->items.end(),
                         [&](const Value& item) { return Equal(meter_, item, element); });
    case Kind::kDict: return FindKey(meter_, *container.dict, element) != nullptr;
    default: Fail(std::string("argument of type '") + TypeName(container) + "' is not iterable");
  }
}

Value Interpreter::GetItem(const Value& object, const Value& key) {
  if (object.is_undefined()) Fail("'" + object.text->bytes + "' is undefined");
  if (object.is(Kind::kDict)) {
    if (const Value* item = FindKey(meter_, *object.dict, key)) return *item;
  } else if (key.is_integer() && (object.is_list() || object.is_string())) {
    const int64_t count = Length(object);
    const int64_t index = key.as_int() < 0 ? key.as_int() + count : key.as_int();
    if (index < 0 || index >= count) return Value::Undefined("index out of range");
    if (object.is_list()) return object.list->items[index];
    const std::vector<size_t> offsets = CharacterOffsets(meter_, object.text->bytes);
    return heap_.Slice(*object.text, offsets[index], offsets[index + 1]);
  }
  if (key.is_string()) return GetAttribute(object, key.text->bytes);
  return Value::Undefined("element");
}

Value Interpreter::GetPath(const Value& object, const Value& path, const Value* fallback) {
  const auto get = [&](const Value& from, const Value& key) {
    Value part = GetItem(from, key);
    return part.is_undefined() && fallback != nullptr ? *fallback : std::move(part);
  };
  if (!path.is_string()) return get(object, path);
  Value value = object;
  const std::string& names = path.text->bytes;
  for (size_t begin = 0; begin <= names.size();) {
    const size_t end = std::min(names.find('.', begin), names.size());
    const std::string name = names.substr(begin, end - begin);
    const bool is_index = !name.empty() && name.size() < 10 &&
                          name.find_first_not_of("0123456789") == std::string::npos;
    value = get(value, is_index ? Value::Int(std::stoi(name)) : Value::Constant(name));
    begin = end + 1;
  }
  return value;
}

Value Interpreter::Slice(const Value& value, const Value& start, const Value& stop,
                         const Value& step) {
  if (value.is_undefined()) Fail("'" + value.text->bytes + "' is undefined");
  if (value.is_list()) {
    std::vector<Value> items;
    for (const int64_t i : SliceIndices(meter_, Length(value), start, stop, step)) {
      items.push_back(value.list->items[i]);
    }
    return heap_.NewList(std::move(items), value.kind);
  }
  if (!value.is_string()) return Value::Undefined("a slice");
  const std::vector<size_t> offsets = CharacterOffsets(meter_, value.text->bytes);
  const auto count = static_cast<int64_t>(offsets.size()) - 1;
  if (step.is(Kind::kNone) || (step.is_integer() && step.as_int() == 1)) {
    const int64_t from = ClampBound(start, 0, count, true);
    const int64_t to = std::max(from, ClampBound(stop, count, count, true));
    return heap_.Slice(*value.text, offsets[from], offsets[to]);
  }
  TextBuilder out(meter_);
  for (const int64_t i : SliceIndices(meter_, count, start, stop, step)) {
    out.Append(*value.text, offsets[i], offsets[i + 1]);
  }
  return Value::String(out.Build());
}

int64_t Interpreter::Length(const Value& value) {
  switch (value.kind) {
    case Kind::kUndefined: return 0;
    case Kind::kString:
      meter_.StepForBytes(value.text->bytes.size());
      return static_cast<int64_t>(CharacterCount(value.text->bytes));
    case Kind::kList: case Kind::kTuple: return static_cast<int64_t>(value.list->items.size());
    case Kind::kDict: return static_cast<int64_t>(value.dict->items.size());
    case Kind::kLoop: return static_cast<int64_t>(value.loop->FetchAll());
    default: Fail(std::string("object of type '") + TypeName(value) + "' has no len()");
  }
}

std::vector<Value> Interpreter::Iterate(const Value& value) {
  std::vector<Value> items;
  switch (value.kind) {
    case Kind::kUndefined: break;
    case Kind::kList: case Kind::kTuple:
      meter_.Step(static_cast<int64_t>(value.list->items.size()));
      return value.list->items;
    case Kind::kDict:
      meter_.Step(static_cast<int64_t>(value.dict->items.size()));
      for (const auto& [key, item] : value.dict->items) items.push_back(key);
      break;
    case Kind::kString: {
      const std::vector<size_t> offsets = CharacterOffsets(meter_, value.text->bytes);
      for (size_t i = 0; i + 1 < offsets.size(); ++i) {
        items.push_back(heap_.Slice(*value.text, offsets[i], offsets[i + 1]));
      }
      break;
    }
    default: Fail(std::string("'") + TypeName(value) + "' object is not iterable");
  }
  return items;
}

}  // namespace moraine::jinja
