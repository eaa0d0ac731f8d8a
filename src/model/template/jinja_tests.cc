// The tests of `x is name(...)`.
#include <algorithm>
#include <unordered_map>

#include "model/template/interpreter.h"

namespace moraine::jinja {
namespace {

bool IsIterable(const Value& value) {
  return value.is_undefined() || value.is_string() || value.is_list() || value.is(Kind::kDict) ||
         value.is(Kind::kLoop);
}

int64_t IntegerOf(const Value& value) {
  if (!value.is_integer()) Fail(std::string("expected an integer, not ") + TypeName(value));
  return value.as_int();
}

// Python's remainder: the sign of the divisor.
int64_t Remainder(const Value& value, int64_t divisor) {
  const int64_t number = IntegerOf(value);
  if (divisor == 0) Fail("division by zero");
  if (divisor == -1) return 0;  // INT64_MIN % -1 traps
  return number % divisor;
}

bool HasCase(Interpreter& interpreter, const Value& value, bool upper) {
  const TextPtr text = interpreter.ToText(value);
  const Filter convert = FindFilter(upper ? "upper" : "lower");
  const Filter opposite = FindFilter(upper ? "lower" : "upper");
  const Value as_is = Value::String(text);
  const bool has_letters = opposite(interpreter, as_is, {}).text->bytes != text->bytes;
  return has_letters && convert(interpreter, as_is, {}).text->bytes == text->bytes;
}

template <typename Predicate>
bool Comparison(Interpreter& interpreter, const Value& value, const Arguments& arguments,
                const Predicate& predicate) {
  return predicate(Compare(interpreter.meter(), value, arguments.Get(0, nullptr)));
}

const std::unordered_map<std::string_view, Test>& Tests() {
  using I = Interpreter;
  using V = Value;
  using A = Arguments;
  static const Test equal = [](I& i, const V& v, const A& a) {
    return Equal(i.meter(), v, a.Get(0, nullptr));
  };
  static const Test not_equal = [](I& i, const V& v, const A& a) {
    return !Equal(i.meter(), v, a.Get(0, nullptr));
  };
  static const Test less = [](I& i, const V& v, const A& a) {
    return Comparison(i, v, a, [](int c) { return c < 0; });
  };
  static const Test less_equal = [](I& i, const V& v, const A& a) {
    return Comparison(i, v, a, [](int c) { return c <= 0; });
  };
  static const Test greater = [](I& i, const V& v, const A& a) {
    return Comparison(i, v, a, [](int c) { return c > 0; });
  };
  static const Test greater_equal = [](I& i, const V& v, const A& a) {
    return Comparison(i, v, a, [](int c) { return c >= 0; });
  };
  static const std::unordered_map<std::string_view, Test> tests = {
      {"defined", [](I&, const V& v, const A&) { return !v.is_undefined(); }},
      {"undefined", [](I&, const V& v, const A&) { return v.is_undefined(); }},
      {"none", [](I&, const V& v, const A&) { return v.is(Kind::kNone); }},
      {"string", [](I&, const V& v, const A&) { return v.is_string(); }},
      {"mapping", [](I&, const V& v, const A&) { return v.is(Kind::kDict); }},
      {"iterable", [](I&, const V& v, const A&) { return IsIterable(v); }},
      {"sequence",
       [](I&, const V& v, const A&) { return IsIterable(v) && !v.is(Kind::kLoop); }},
      {"number", [](I&, const V& v, const A&) { return v.is_number(); }},
      {"integer", [](I&, const V& v, const A&) { return v.is(Kind::kInt); }},
      {"float", [](I&, const V& v, const A&) { return v.is(Kind::kFloat); }},
      {"boolean", [](I&, const V& v, const A&) { return v.is(Kind::kBool); }},
      {"true", [](I&, const V& v, const A&) { return v.is(Kind::kBool) && v.boolean; }},
      {"false", [](I&, const V& v, const A&) { return v.is(Kind::kBool) && !v.boolean; }},
      {"callable", [](I&, const V& v, const A&) { return v.is(Kind::kCallable); }},
      {"odd", [](I&, const V& v, const A&) { return Remainder(v, 2) != 0; }},
      {"even", [](I&, const V& v, const A&) { return Remainder(v, 2) == 0; }},
      {"divisibleby",
       [](I&, const V& v, const A& a) { return Remainder(v, IntegerOf(a.Get(0, "num"))) == 0; }},
      {"in", [](I& i, const V& v, const A& a) { return i.Contains(a.Get(0, "seq"), v); }},
      {"lower", [](I& i, const V& v, const A&) { return HasCase(i, v, false); }},
      {"upper", [](I& i, const V& v, const A&) { return HasCase(i, v, true); }},
      {"sameas",
       [](I& i, const V& v, const A& a) {
         const V& other = a.Get(0, "other");
         if (v.kind != other.kind) return false;
         if (v.is_list()) return v.list == other.list;
         if (v.is(Kind::kDict)) return v.dict == other.dict;
         return Equal(i.meter(), v, other);
       }},
      {"filter",
       [](I& i, const V& v, const A&) {
         const std::string name = i.ToText(v)->bytes;
         return FindFilter(name) != nullptr || FindSequenceFilter(name) != nullptr;
       }},
      {"test", [](I& i, const V& v, const A&) { return FindTest(i.ToText(v)->bytes) != nullptr; }},
      {"eq", equal}, {"==", equal}, {"equalto", equal},
      {"ne", not_equal}, {"!=", not_equal},
      {"lt", less}, {"<", less}, {"lessthan", less},
      {"le", less_equal}, {"<=", less_equal},
      {"gt", greater}, {">", greater}, {"greaterthan", greater},
      {"ge", greater_equal}, {">=", greater_equal},
  };
  return tests;
}

}  // namespace

Test FindTest(std::string_view name) {
  const auto found = Tests().find(name);
  return found == Tests().end() ? nullptr : found->second;
}

bool Interpreter::ApplyTest(const std::string& name, const Value& input,
                            const Arguments& arguments) {
  const Test test = FindTest(name);
  if (test == nullptr) Fail("there is no test named '" + name + "'");
  return test(*this, input, arguments);
}

}  // namespace moraine::jinja
