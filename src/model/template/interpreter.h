// Evaluates the syntax tree. One Interpreter per render; it owns nothing that outlives it.
//
//   interpreter.cc  statements, scopes, macros     operators.cc  + - * ... , slices, items
//   loops.cc        for, loop.index, ...
//   filters*.cc     x | filter(...)                methods.cc    "abc".split(...), d.items()
//   jinja_tests.cc  x is test(...)                 functions.cc  range, namespace, strftime_now, ...
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/template/ast.h"
#include "model/template/chat_template.h"
#include "model/template/value.h"

namespace moraine::jinja {

class Interpreter;

// What a function, filter, test or method is called with; the value it applies to is not among them.
struct Arguments {
  std::vector<Value> positional;
  // Names are strings: those of **mapping keep the marks of what came with the request.
  std::vector<std::pair<Value, Value>> named;

  // The argument at `index` or called `name`; null if absent. `name` null: positional only.
  const Value* Find(size_t index, const char* name) const;
  const Value& Get(size_t index, const char* name) const;  // fails if absent
  std::string_view GetString(size_t index, const char* name, std::string_view fallback) const;
  int64_t GetInt(size_t index, const char* name, int64_t fallback) const;
  bool GetBool(size_t index, const char* name, bool fallback) const;
  void AtMost(size_t count) const;  // fails if there are more
};

using Function = Value (*)(Interpreter&, const Arguments&);
using Filter = Value (*)(Interpreter&, const Value&, const Arguments&);
using Test = bool (*)(Interpreter&, const Value&, const Arguments&);
using Method = Value (*)(Interpreter&, const Value& self, const Arguments&);

Filter FindFilter(std::string_view name);                      // null if there is none
Filter FindSequenceFilter(std::string_view name);
Test FindTest(std::string_view name);
Method FindMethod(const Value& self, std::string_view name);
Function FindFunction(std::string_view name);

// Sets a member for as long as it lives; an Error may pass through.
template <typename T>
class Restorer {
 public:
  Restorer(T& place, T value) : place_(place), old_(std::exchange(place, std::move(value))) {}
  ~Restorer() { place_ = std::move(old_); }
  Restorer(const Restorer&) = delete;
  Restorer& operator=(const Restorer&) = delete;

 private:
  T& place_;
  T old_;
};

// Names of one level; found names shadow those of `parent`.
struct Scope final : Object {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string_view, Value>> names;  // views into the tree
};

struct Callable final : Object {
  Function function = nullptr;
  Method method = nullptr;
  Value self;  // of a method
  const Statement* macro = nullptr;
  Scope* scope = nullptr;  // that the macro was defined in
};

class Interpreter {
 public:
  Interpreter(const ChatTemplateOptions& options, const nlohmann::ordered_json& context);
  TextPtr Run(const Template& root);
  int line() const { return line_; }

  Meter& meter() { return meter_; }
  Heap& heap() { return heap_; }
  const ChatTemplateOptions& options() const { return options_; }

  // The operations that filters and tests are made of.
  Value ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments);
  bool ApplyTest(const std::string& name, const Value& input, const Arguments& arguments);
  Value GetAttribute(const Value& object, const std::string& name);
  Value GetItem(const Value& object, const Value& key);
  // "a.b.0" as map(attribute=...) reads it; `fallback` stands in for each part that is undefined.
  Value GetPath(const Value& object, const Value& path, const Value* fallback = nullptr);
  std::vector<Value> Iterate(const Value& value);  // fails if it is not iterable
  Value Add(const Value& left, const Value& right);
  Value Multiply(const Value& left, const Value& right);
  Value Arithmetic(const std::string& op, const Value& left, const Value& right);
  Value PercentFormat(const Text& format, const Value& arguments);
  bool Contains(const Value& container, const Value& element);
  Value Slice(const Value& value, const Value& start, const Value& stop, const Value& step);
  TextPtr ToText(const Value& value) { return jinja::ToText(meter_, value); }
  int64_t Length(const Value& value);

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  Value FromJson(const nlohmann::ordered_json& json, bool untrusted);
  Flow Execute(const Block& block);
  Flow ExecuteOne(const Statement& statement);
  Flow ExecuteIf(const Statement& statement);
  Flow ExecuteFor(const Statement& statement);
  Flow RunLoop(const Statement& statement, const Value& iterable, Scope* outer, int depth);
  void BindItem(const Statement& statement, const Value& item, Scope* outer);
  void ExecuteSet(const Statement& statement);
  Flow ExecuteSetBlock(const Statement& statement);
  Flow ExecuteWith(const Statement& statement);
  void ExecuteCall(const Statement& statement);
  // Runs `block` with its output collected instead of written.
  TextPtr Capture(const Block& block, Flow& flow);
  // `name` is of the tree or static: scopes keep views.
  void AssignName(std::string_view name, Value value);
  void Assign(const Target& target, Value value);
  void Unpack(const std::vector<Target>& targets, const Value& value);
  Scope* NewScope(Scope* parent);

  Value Evaluate(const Expression& expression);
  Value EvaluateKind(const Expression& expression);
  Value EvaluateCall(const Expression& call, const Value* caller = nullptr);
  Value EvaluateCompare(const Expression& compare);
  Value EvaluateFilter(const Expression& filter, const Value* block_text = nullptr);
  Value EvaluateDict(const Expression& dict);
  Arguments EvaluateArguments(const Expression& call, size_t first);
  void SpreadNamed(const Value& mapping, Arguments& arguments);
  Value Lookup(std::string_view name);
  Value Negate(const Value& value);
  Value Call(const Value& callee, Arguments arguments, const Value* caller);
  Value CallMacro(const Callable& macro, Arguments arguments, const Value* caller);
  void BindArguments(const MacroSignature& signature, Arguments arguments, const Value* caller);
  Value LoopAttribute(Loop& loop, const std::string& name);
  Value NewCallable(Function function);
  Value NewMethod(const Value& self, Method method);

  const ChatTemplateOptions& options_;
  Meter meter_;
  Heap heap_;
  Scope* scope_ = nullptr;
  TextBuilder* out_ = nullptr;
  int line_ = 1;
};

}  // namespace moraine::jinja
