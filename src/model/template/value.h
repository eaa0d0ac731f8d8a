// What a template computes with: Python's values, as far as templates need them.
//
// Strings carry which of their bytes came from the request (Text::untrusted), through concatenation,
// slicing and filters, which is why no ready string class is used. Strings are shared and immutable;
// containers belong to the render's Heap and die with it, so that a list that contains itself, or a
// macro in the scope that it closes over, is no leak.
//
// Inside src/model/template errors travel as the exception Error; ChatTemplate turns it into a Status.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace moraine::jinja {

struct Error {
  StatusCode code;
  std::string message;
  int line = 0;  // 0: the line that is being evaluated
};

[[noreturn]] void Fail(std::string message);                // kInvalidArgument
[[noreturn]] void FailBudget(const std::string& which);     // kResourceExhausted

// The budgets of one render. Everything that can grow or repeat pays here first.
class Meter {
 public:
  Meter(int64_t max_steps, int max_depth, size_t max_memory_bytes, size_t max_string_bytes)
      : steps_left_(max_steps),
        max_depth_(max_depth),
        max_memory_bytes_(max_memory_bytes),
        max_string_bytes_(max_string_bytes) {}

  void Step(int64_t count = 1) {
    steps_left_ -= count;
    if (steps_left_ < 0) FailBudget("steps");
  }
  void StepForBytes(size_t bytes) { Step(1 + static_cast<int64_t>(bytes / 256)); }
  void Allocate(size_t bytes) {
    memory_bytes_ += bytes;
    if (memory_bytes_ > max_memory_bytes_) FailBudget("memory");
  }
  void Release(size_t bytes) { memory_bytes_ -= bytes; }
  void CheckString(size_t bytes) const {
    if (bytes > max_string_bytes_) FailBudget("output bytes");
  }

  // Holds one level of nesting while it lives.
  class Level {
   public:
    explicit Level(Meter& meter) : meter_(meter) {
      if (meter.depth_ >= meter.max_depth_) FailBudget("depth");
      ++meter.depth_;
    }
    ~Level() { --meter_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Meter& meter_;
  };

 private:
  int64_t steps_left_;
  int max_depth_;
  int depth_ = 0;
  size_t max_memory_bytes_, max_string_bytes_;
  size_t memory_bytes_ = 0;
};

struct ByteSpan {
  size_t begin, end;
};

struct Text {
  std::string bytes;                // valid UTF-8
  std::vector<ByteSpan> untrusted;  // sorted, apart from one another, not empty

  Text() = default;
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;
  ~Text() {
    if (meter != nullptr) meter->Release(charged_bytes);
  }
  Meter* meter = nullptr;  // null for constants of the template
  size_t charged_bytes = 0;
};
using TextPtr = std::shared_ptr<const Text>;

// Collects text with its marks.
class TextBuilder {
 public:
  explicit TextBuilder(Meter& meter) : meter_(meter) {}
  void Append(std::string_view bytes, bool untrusted = false);
  void Append(const Text& text) { Append(text, 0, text.bytes.size()); }
  void Append(const Text& text, size_t begin, size_t end);
  size_t size() const { return bytes_.size(); }
  const std::string& bytes() const { return bytes_; }
  TextPtr Build();

 private:
  Meter& meter_;
  std::string bytes_;
  std::vector<ByteSpan> untrusted_;
};

struct Object {
  virtual ~Object() = default;
};
struct List;
struct Dict;
struct Callable;
struct Namespace;
struct Loop;

enum class Kind : uint8_t {
  kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kTuple, kDict, kNamespace, kLoop, kCallable
};

struct Value {
  Kind kind = Kind::kUndefined;
  union {
    bool boolean;
    int64_t integer = 0;
    double number;
    List* list;  // kList and kTuple
    Dict* dict;
    Namespace* name_space;
    Loop* loop;
    const Callable* callable;
  };
  TextPtr text;  // of a string; of an undefined value, what was looked for

  static Value None();
  static Value Bool(bool value);
  static Value Int(int64_t value);
  static Value Float(double value);
  static Value String(TextPtr text);
  static Value Constant(std::string_view bytes);  // trusted and unmetered: for short words
  static Value Undefined(std::string_view name);

  bool is(Kind k) const { return kind == k; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_undefined() const { return kind == Kind::kUndefined; }
  bool is_list() const { return kind == Kind::kList || kind == Kind::kTuple; }
  bool is_integer() const { return kind == Kind::kInt || kind == Kind::kBool; }
  bool is_number() const { return is_integer() || kind == Kind::kFloat; }
  int64_t as_int() const { return kind == Kind::kBool ? boolean : integer; }
  double as_double() const { return kind == Kind::kFloat ? number : static_cast<double>(as_int()); }
};

struct List final : Object {
  std::vector<Value> items;
  bool is_group = false;  // of groupby: a pair that also has .grouper and .list
};
// In insertion order. Looked up linearly: message and tool objects have a handful of keys, and every
// comparison is a step of the budget.
struct Dict final : Object {
  std::vector<std::pair<Value, Value>> items;
};
struct Namespace final : Object {
  Dict members;
};
// A loop with a condition looks at an item when it comes to it, not before: the body may change what
// the condition sees.
struct Loop final : Object {
  const List* items = nullptr;  // those that the condition let through so far
  std::function<bool()> fetch;  // adds one to them, false at the end; null: they are all there
  std::function<TextPtr(const Value&)> recurse;  // of a recursive loop: renders it over another value
  size_t index = 0;
  int depth = 1;
  std::vector<Value> last_changed;
  bool has_changed = false;

  bool Has(size_t i) {
    while (items->items.size() <= i && fetch != nullptr && fetch()) {}
    return i < items->items.size();
  }
  size_t FetchAll() {
    while (fetch != nullptr && fetch()) {}
    return items->items.size();
  }
};

// Owns the containers of one render.
class Heap {
 public:
  explicit Heap(Meter& meter) : meter_(meter) {}
  template <typename T>
  T* New() {
    meter_.Allocate(sizeof(T) + 16);
    auto object = std::make_unique<T>();
    T* raw = object.get();
    objects_.push_back(std::move(object));
    return raw;
  }
  template <typename T>
  T* Adopt(std::unique_ptr<T> object) {
    meter_.Allocate(sizeof(T) + 16);
    T* raw = object.get();
    objects_.push_back(std::move(object));
    return raw;
  }
  Value NewList(std::vector<Value> items, Kind kind = Kind::kList);
  Value NewDict(Dict** dict);
  void Push(List& list, Value value);  // pays for the element
  void Set(Dict& dict, const Value& key, Value value);
  Value NewString(std::string_view bytes, bool untrusted = false);
  Value Slice(const Text& text, size_t begin, size_t end);
  Meter& meter() { return meter_; }

 private:
  Meter& meter_;
  std::vector<std::unique_ptr<Object>> objects_;
};

// Python's truth, ==, <, type name.
bool IsTrue(const Value& value);
bool Equal(Meter& meter, const Value& a, const Value& b);
int Compare(Meter& meter, const Value& a, const Value& b);  // <0, 0, >0; fails where Python does
const char* TypeName(const Value& value);
Value* FindKey(Meter& meter, Dict& dict, const Value& key);
Value* FindKey(Meter& meter, Dict& dict, std::string_view key);

// str() and repr() of Python, and json.dumps(ensure_ascii=False).
void AppendStr(TextBuilder& out, Meter& meter, const Value& value);
void AppendRepr(TextBuilder& out, Meter& meter, const Value& value);
std::string FloatRepr(double value);
struct JsonStyle {
  std::optional<std::string> indent;  // of one level; unset: all on one line
  bool sort_keys = false, ensure_ascii = false;
  std::string item_separator = ", ", key_separator = ": ";
};
void AppendJson(TextBuilder& out, Meter& meter, const Value& value, const JsonStyle& style,
                int level = 0);
// str() as a string value; strings pass unchanged.
TextPtr ToText(Meter& meter, const Value& value);

// Characters, not bytes: Python counts code points.
size_t CharacterCount(std::string_view bytes);
// Byte offset of each character, and one more entry for the end.
std::vector<size_t> CharacterOffsets(Meter& meter, std::string_view bytes);
bool IsPythonSpace(uint32_t codepoint);

}  // namespace moraine::jinja
