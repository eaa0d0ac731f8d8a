#include "model/template/interpreter.h"

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

// Text of temporaries may be larger than the output, but not without limit.
constexpr size_t kStringSlack = 2;

}  // namespace

Interpreter::Interpreter(const ChatTemplateOptions& options, const nlohmann::ordered_json& context)
    : options_(options),
      meter_(options.max_steps, options.max_depth, options.max_memory_bytes,
             kStringSlack * options.max_output_bytes),
      heap_(meter_) {
  scope_ = NewScope(nullptr);
  for (const auto& [name, value] : context.items()) {
    const bool untrusted = !options.trusted_variables.contains(name);
    scope_->names.emplace_back(name, FromJson(value, untrusted));
  }
  scope_ = NewScope(scope_);
}

Scope* Interpreter::NewScope(Scope* parent) {
  Scope* scope = heap_.New<Scope>();
  scope->parent = parent;
  return scope;
}

Value Interpreter::FromJson(const nlohmann::ordered_json& json, bool untrusted) {
  const Meter::Level level(meter_);
  switch (json.type()) {
    case nlohmann::json::value_t::null: return Value::None();
    case nlohmann::json::value_t::boolean: return Value::Bool(json.get<bool>());
    case nlohmann::json::value_t::number_integer: return Value::Int(json.get<int64_t>());
    case nlohmann::json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) Fail("a number of the context exceeds 64 bits");
      return Value::Int(json.get<int64_t>());
    case nlohmann::json::value_t::number_float: return Value::Float(json.get<double>());
    case nlohmann::json::value_t::string:
      return heap_.NewString(ToValidUtf8(json.get_ref<const std::string&>()), untrusted);
    case nlohmann::json::value_t::array: {
      std::vector<Value> items;
      for (const auto& item : json) items.push_back(FromJson(item, untrusted));
      return heap_.NewList(std::move(items));
    }
    case nlohmann::json::value_t::object: {
      Dict* dict = nullptr;
      Value value = heap_.NewDict(&dict);
      for (const auto& [key, item] : json.items()) {
        // Keys of a JSON object differ already.
        meter_.Allocate(4 * sizeof(Value));
        dict->items.emplace_back(heap_.NewString(ToValidUtf8(key), untrusted),
                                 FromJson(item, untrusted));
      }
      return value;
    }
    default: Fail("the context holds a value that is not JSON");
  }
}

TextPtr Interpreter::Run(const Template& root) {
  Flow flow = Flow::kNormal;
  TextPtr text = Capture(root.body, flow);
  if (text->bytes.size() > options_.max_output_bytes) FailBudget("output bytes");
  return text;
}

Interpreter::Flow Interpreter::Execute(const Block& block) {
  const Meter::Level level(meter_);
  for (const auto& statement : block) {
    const Flow flow = ExecuteOne(*statement);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::ExecuteOne(const Statement& statement) {
  meter_.Step();
  line_ = statement.line;
  switch (statement.kind) {
    case StatementKind::kText: out_->Append(*statement.text.text); break;
    case StatementKind::kOutput: AppendStr(*out_, meter_, Evaluate(*statement.value)); break;
    case StatementKind::kIf: return ExecuteIf(statement);
    case StatementKind::kFor: return ExecuteFor(statement);
    case StatementKind::kSet: ExecuteSet(statement); break;
    case StatementKind::kSetBlock: return ExecuteSetBlock(statement);
    case StatementKind::kMacro: {
      Callable* macro = heap_.New<Callable>();
      macro->macro = &statement;
      macro->scope = scope_;
      Value value;
      value.kind = Kind::kCallable;
      value.callable = macro;
      AssignName(statement.signature.name, value);
      break;
    }
    case StatementKind::kCall: ExecuteCall(statement); break;
    case StatementKind::kFilter: {
      Flow flow = Flow::kNormal;
      const Value text = Value::String(Capture(statement.body, flow));
      if (flow != Flow::kNormal) return flow;
      AppendStr(*out_, meter_, EvaluateFilter(*statement.value, &text));
      break;
    }
    case StatementKind::kWith: return ExecuteWith(statement);
    case StatementKind::kScope: {
      const Restorer<Scope*> scope(scope_, NewScope(scope_));
      return Execute(statement.body);
    }
    case StatementKind::kBreak: return Flow::kBreak;
    case StatementKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::ExecuteIf(const Statement& statement) {
  for (const auto& [condition, body] : statement.branches) {
    if (condition == nullptr || IsTrue(Evaluate(*condition))) return Execute(body);
  }
  return Flow::kNormal;
}

void Interpreter::AssignName(std::string_view name, Value value) {
  for (auto& [known, old] : scope_->names) {
    if (known == name) {
      old = std::move(value);
      return;
    }
  }
  meter_.Allocate(2 * sizeof(Value));
  scope_->names.emplace_back(name, std::move(value));
}

void Interpreter::Assign(const Target& target, Value value) {
  if (!target.parts.empty()) return Unpack(target.parts, value);
  if (target.attribute.empty()) return AssignName(target.name, std::move(value));
  const Value object = Lookup(target.name);
  if (!object.is(Kind::kNamespace)) Fail("cannot assign attribute on non-namespace object");
  heap_.Set(object.name_space->members, Value::Constant(target.attribute), std::move(value));
}

void Interpreter::Unpack(const std::vector<Target>& targets, const Value& value) {
  const std::vector<Value> items = Iterate(value);
  if (items.size() != targets.size()) {
    Fail("cannot unpack " + std::to_string(items.size()) + " values into " +
         std::to_string(targets.size()) + " names");
  }
  for (size_t i = 0; i < items.size(); ++i) Assign(targets[i], items[i]);
}

void Interpreter::ExecuteSet(const Statement& statement) {
  Value value = Evaluate(*statement.value);
  if (statement.unpacks) {
    Unpack(statement.targets, value);
  } else {
    Assign(statement.targets.front(), std::move(value));
  }
}

TextPtr Interpreter::Capture(const Block& block, Flow& flow) {
  TextBuilder captured(meter_);
  const Restorer<TextBuilder*> out(out_, &captured);
  flow = Execute(block);
  return captured.Build();
}

Interpreter::Flow Interpreter::ExecuteSetBlock(const Statement& statement) {
  Flow flow = Flow::kNormal;
  Value text;
  {
    const Restorer<Scope*> scope(scope_, NewScope(scope_));
    text = Value::String(Capture(statement.body, flow));
  }
  if (flow != Flow::kNormal) return flow;
  if (statement.value != nullptr) text = EvaluateFilter(*statement.value, &text);
  Assign(statement.targets.front(), std::move(text));
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::ExecuteWith(const Statement& statement) {
  std::vector<Value> values;
  for (const ExpressionPtr& value : statement.values) values.push_back(Evaluate(*value));
  const Restorer<Scope*> scope(scope_, NewScope(scope_));
  for (size_t i = 0; i < values.size(); ++i) Assign(statement.targets[i], std::move(values[i]));
  return Execute(statement.body);
}

void Interpreter::ExecuteCall(const Statement& statement) {
  Callable* caller = heap_.New<Callable>();
  caller->macro = &statement;
  caller->scope = scope_;
  Value value;
  value.kind = Kind::kCallable;
  value.callable = caller;
  AppendStr(*out_, meter_, EvaluateCall(*statement.value, &value));
}

Value Interpreter::Lookup(std::string_view name) {
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    meter_.Step();
    for (const auto& [known, value] : scope->names) {
      if (known == name) return value;
    }
  }
  if (const Function function = FindFunction(name)) return NewCallable(function);
  return Value::Undefined(name);
}

Value Interpreter::NewCallable(Function function) {
  Callable* callable = heap_.New<Callable>();
  callable->function = function;
  Value value;
  value.kind = Kind::kCallable;
  value.callable = callable;
  return value;
}

Value Interpreter::NewMethod(const Value& self, Method method) {
  Callable* callable = heap_.New<Callable>();
  callable->method = method;
  callable->self = self;
  Value value;
  value.kind = Kind::kCallable;
  value.callable = callable;
  return value;
}

Value Interpreter::Evaluate(const Expression& expression) {
  meter_.Step();
  line_ = expression.line;
  const Meter::Level level(meter_);
  return EvaluateKind(expression);
}

Value Interpreter::EvaluateKind(const Expression& expression) {
  const auto child = [&](size_t i) { return Evaluate(*expression.children[i]); };
  switch (expression.kind) {
    case ExpressionKind::kConstant: return expression.constant;
    case ExpressionKind::kName: return Lookup(expression.name);
    case ExpressionKind::kList: case ExpressionKind::kTuple: {
      std::vector<Value> items;
      for (const ExpressionPtr& item : expression.children) items.push_back(Evaluate(*item));
      const bool is_list = expression.kind == ExpressionKind::kList;
      return heap_.NewList(std::move(items), is_list ? Kind::kList : Kind::kTuple);
    }
    case ExpressionKind::kDict: return EvaluateDict(expression);
    case ExpressionKind::kAttribute: return GetAttribute(child(0), expression.name);
    case ExpressionKind::kItem: {
      const Value object = child(0);
      return GetItem(object, child(1));
    }
    case ExpressionKind::kSlice: {
      const Value object = child(0);
      Value bounds[3];
      for (size_t i = 0; i < 3; ++i) {
        bounds[i] = expression.children[i + 1] != nullptr ? child(i + 1) : Value::None();
      }
      return Slice(object, bounds[0], bounds[1], bounds[2]);
    }
    case ExpressionKind::kCall: return EvaluateCall(expression);
    case ExpressionKind::kFilter: return EvaluateFilter(expression);
    case ExpressionKind::kTest: {
      const Value input = child(0);
      return Value::Bool(ApplyTest(expression.name, input, EvaluateArguments(expression, 1)));
    }
    case ExpressionKind::kNot: return Value::Bool(!IsTrue(child(0)));
    case ExpressionKind::kNegate: return Negate(child(0));
    case ExpressionKind::kPositive: {
      const Value value = child(0);
      if (!value.is_number()) Fail(std::string("bad operand type for unary +: ") + TypeName(value));
      return value.is(Kind::kBool) ? Value::Int(value.as_int()) : value;
    }
    case ExpressionKind::kAnd: {
      Value left = child(0);
      return IsTrue(left) ? child(1) : left;
    }
    case ExpressionKind::kOr: {
      Value left = child(0);
      return IsTrue(left) ? left : child(1);
    }
    case ExpressionKind::kBinary: {
      const Value left = child(0);
      return Arithmetic(expression.name, left, child(1));
    }
    case ExpressionKind::kConcat: {
      TextBuilder out(meter_);
      for (const ExpressionPtr& part : expression.children) AppendStr(out, meter_, Evaluate(*part));
      return Value::String(out.Build());
    }
    case ExpressionKind::kCompare: return EvaluateCompare(expression);
    case ExpressionKind::kConditional:
      if (IsTrue(child(0))) return child(1);
      if (expression.children[2] != nullptr) return child(2);
      return Value::Undefined("the inline if-expression without else");
  }
  return Value();
}

Value Interpreter::EvaluateDict(const Expression& expression) {
  Dict* dict = nullptr;
  Value value = heap_.NewDict(&dict);
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    const Value key = Evaluate(*expression.children[i]);
    heap_.Set(*dict, key, Evaluate(*expression.children[i + 1]));
  }
  return value;
}

Value Interpreter::EvaluateCompare(const Expression& compare) {
  Value left = Evaluate(*compare.children[0]);
  for (size_t i = 0; i < compare.operators.size(); ++i) {
    const std::string& op = compare.operators[i];
    Value right = Evaluate(*compare.children[i + 1]);
    bool holds = false;
    if (op == "==") holds = Equal(meter_, left, right);
    else if (op == "!=") holds = !Equal(meter_, left, right);
    else if (op == "in") holds = Contains(right, left);
    else if (op == "not in") holds = !Contains(right, left);
    else if (op == "<") holds = Compare(meter_, left, right) < 0;
    else if (op == "<=") holds = Compare(meter_, left, right) <= 0;
    else if (op == ">") holds = Compare(meter_, left, right) > 0;
    else holds = Compare(meter_, left, right) >= 0;
    if (!holds) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

Arguments Interpreter::EvaluateArguments(const Expression& call, size_t first) {
  Arguments arguments;
  for (size_t i = first; i < call.children.size(); ++i) {
    arguments.positional.push_back(Evaluate(*call.children[i]));
  }
  for (const auto& [name, value] : call.named) {
    arguments.named.emplace_back(Value::Constant(name), Evaluate(*value));
  }
  if (call.spread != nullptr) {
    for (Value& item : Iterate(Evaluate(*call.spread))) {
      arguments.positional.push_back(std::move(item));
    }
  }
  if (call.spread_named != nullptr) SpreadNamed(Evaluate(*call.spread_named), arguments);
  return arguments;
}

void Interpreter::SpreadNamed(const Value& mapping, Arguments& arguments) {
  if (!mapping.is(Kind::kDict)) {
    Fail(std::string("argument after ** must be a mapping, not ") + TypeName(mapping));
  }
  const size_t given = arguments.named.size();
  for (const auto& [key, value] : mapping.dict->items) {
    if (!key.is_string()) Fail("keywords must be strings");
    for (size_t i = 0; i < given; ++i) {
      meter_.Step();
      if (arguments.named[i].first.text->bytes == key.text->bytes) {
        Fail("got multiple values for keyword argument '" + key.text->bytes + "'");
      }
    }
    meter_.Step();
    arguments.named.emplace_back(key, value);
  }
}

Value Interpreter::EvaluateFilter(const Expression& filter, const Value* block_text) {
  const Expression* inner = filter.children[0].get();
  Value input;
  if (block_text == nullptr) {
    input = Evaluate(*inner);
  } else {
    // The chain of a {% filter %} or {% set %} block ends at its body instead of an expression.
    input = inner == nullptr ? *block_text : EvaluateFilter(*inner, block_text);
  }
  return ApplyFilter(filter.name, input, EvaluateArguments(filter, 1));
}

Value Interpreter::EvaluateCall(const Expression& call, const Value* caller) {
  const Expression& callee = *call.children[0];
  if (callee.kind != ExpressionKind::kAttribute) {
    const Value function = Evaluate(callee);
    return Call(function, EvaluateArguments(call, 1), caller);
  }
  const Value self = Evaluate(*callee.children[0]);
  if (const Method method = FindMethod(self, callee.name)) {
    return method(*this, self, EvaluateArguments(call, 1));
  }
  const Value function = GetAttribute(self, callee.name);
  return Call(function, EvaluateArguments(call, 1), caller);
}

Value Interpreter::Call(const Value& callee, Arguments arguments, const Value* caller) {
  if (callee.is_undefined()) Fail("'" + callee.text->bytes + "' is undefined");
  if (callee.is(Kind::kLoop) && callee.loop->recurse != nullptr) {
    arguments.AtMost(1);
    return Value::String(callee.loop->recurse(arguments.Get(0, nullptr)));
  }
  if (!callee.is(Kind::kCallable)) {
    Fail(std::string("'") + TypeName(callee) + "' object is not callable");
  }
  const Callable& callable = *callee.callable;
  if (callable.macro != nullptr) return CallMacro(callable, std::move(arguments), caller);
  if (callable.method != nullptr) return callable.method(*this, callable.self, arguments);
  return callable.function(*this, arguments);
}

// Puts the arguments into the macro's new scope; what no parameter takes goes to varargs and kwargs.
void Interpreter::BindArguments(const MacroSignature& signature, Arguments arguments,
                                const Value* caller) {
  const auto fail = [&](const std::string& why) {
    Fail("macro '" + signature.name + "' " + why);
  };
  const auto bind = [&](std::string_view name, Value value) {
    meter_.Allocate(2 * sizeof(Value));
    scope_->names.emplace_back(name, std::move(value));
  };
  const size_t count = signature.parameters.size();
  std::vector<bool> given(count);
  std::vector<Value> extra;
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (i < count) {
      bind(signature.parameters[i], arguments.positional[i]);
      given[i] = true;
    } else {
      extra.push_back(arguments.positional[i]);
    }
  }
  Dict* kwargs = nullptr;
  const Value kwargs_value = heap_.NewDict(&kwargs);
  for (auto& [key, value] : arguments.named) {
    const std::string& name = key.text->bytes;
    const auto found = std::find(signature.parameters.begin(), signature.parameters.end(), name);
    const auto index = static_cast<size_t>(found - signature.parameters.begin());
    if (index == count) {
      heap_.Set(*kwargs, key, std::move(value));
      continue;
    }
    if (given[index]) fail("got two values for '" + name + "'");
    bind(*found, std::move(value));
    given[index] = true;
  }
  if (!extra.empty() && !signature.uses_varargs) fail("takes fewer positional arguments");
  if (!kwargs->items.empty() && !signature.uses_kwargs) {
    fail("takes no argument '" + kwargs->items[0].first.text->bytes + "'");
  }
  bool caller_is_taken = signature.uses_caller;
  for (size_t i = 0; i < count; ++i) {
    if (given[i]) continue;
    const size_t first_default = count - signature.defaults.size();
    if (caller != nullptr && signature.parameters[i] == "caller") {
      bind(signature.parameters[i], *caller);
      caller_is_taken = true;
    } else if (i < first_default) {
      bind(signature.parameters[i], Value::Undefined(signature.parameters[i]));
    } else {
      bind(signature.parameters[i], Evaluate(*signature.defaults[i - first_default]));
    }
  }
  if (caller != nullptr && !caller_is_taken) fail("does not use its caller");
  if (signature.uses_varargs) bind("varargs", heap_.NewList(std::move(extra), Kind::kTuple));
  if (signature.uses_kwargs) bind("kwargs", kwargs_value);
  if (signature.uses_caller) {
    bind("caller", caller != nullptr ? *caller : Value::Undefined("caller"));
  }
}

Value Interpreter::CallMacro(const Callable& macro, Arguments arguments, const Value* caller) {
  const Meter::Level level(meter_);
  const Restorer<Scope*> scope(scope_, NewScope(macro.scope));
  BindArguments(macro.macro->signature, std::move(arguments), caller);
  Flow flow = Flow::kNormal;
  return Value::String(Capture(macro.macro->body, flow));
}

Value Interpreter::GetAttribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) Fail("'" + object.text->bytes + "' is undefined");
  if (object.is(Kind::kNamespace)) {
    const Value* member = FindKey(meter_, object.name_space->members, name);
    return member != nullptr ? *member : Value::Undefined(name);
  }
  if (const Method method = FindMethod(object, name)) return NewMethod(object, method);
  if (object.is(Kind::kLoop)) return LoopAttribute(*object.loop, name);
  if (object.is(Kind::kDict)) {
    if (const Value* item = FindKey(meter_, *object.dict, name)) return *item;
  }
  if (object.is(Kind::kTuple) && object.list->is_group) {
    if (name == "grouper") return object.list->items[0];
    if (name == "list") return object.list->items[1];
  }
  return Value::Undefined(name);
}

}  // namespace moraine::jinja
