// The syntax tree of a template. Immutable after parsing, shared by concurrent renders.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/template/value.h"

namespace moraine::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind {
  kConstant,     // constant
  kName,         // name
  kList,         // children
  kTuple,        // children
  kDict,         // key, value, key, value, ...
  kAttribute,    // child 0 . name
  kItem,         // child 0 [ child 1 ]
  kSlice,        // child 0 [ child 1 : child 2 : child 3 ], each of 1..3 may be null
  kCall,         // child 0 (children 1.., named, spread, spread_named)
  kFilter,       // child 0 | name (children 1.., named); child 0 is null in {% filter %}
  kTest,         // child 0 is name (children 1.., named)
  kNot, kNegate, kPositive,  // child 0
  kAnd, kOr,                 // children 0 and 1
  kBinary,       // children 0 and 1; name is the operator
  kConcat,       // children
  kCompare,      // child 0, then operators[i] child i + 1
  kConditional,  // child 1 if child 0 else child 2, which may be null
};

struct Expression {
  ExpressionKind kind;
  int line;
  int depth = 1;  // of the tree below; the parser limits it, evaluation recurses over it
  std::string name;
  Value constant;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr spread, spread_named;  // of a call's f(*spread, **spread_named)
  std::vector<std::string> operators;
};

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct MacroSignature {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

enum class StatementKind {
  kText,      // text
  kOutput,    // value
  kIf,        // branches (a null condition is else)
  kFor,       // targets in value [if condition], body, otherwise
  kSet,       // targets = value
  kSetBlock,  // targets[0] = body | value (a filter chain or null)
  kMacro,     // signature, body
  kCall,      // {% call %}: value is a kCall, signature and body are the caller
  kFilter,    // value (a filter chain) of body
  kWith,      // targets[i] = values[i], body
  kScope,     // {% generation %}: body in a scope of its own
  kBreak,
  kContinue,
};

// What is assigned to: `name`, or `object.name`.
struct Target {
  std::string name, attribute;
  std::vector<Target> parts;  // (a, b) in place of a name
};

struct Statement {
  StatementKind kind;
  int line;
  Value text;
  ExpressionPtr value, condition;
  std::vector<Target> targets;
  bool unpacks = false;  // whether `targets` take the items of the value
  bool recursive = false;  // of a loop: loop(...) in the body renders it again
  std::vector<ExpressionPtr> values;
  std::vector<std::pair<ExpressionPtr, Block>> branches;
  Block body, otherwise;
  MacroSignature signature;
};

struct Template {
  Block body;
};

}  // namespace moraine::jinja
