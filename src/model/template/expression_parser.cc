#include "model/template/expression_parser.h"

#include <algorithm>

#include "model/template/parser.h"

namespace moraine::jinja {

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (++parser_.nesting_ > kMaxTreeDepth) {
    --parser_.nesting_;  // the destructor does not run
    parser_.FailHere("nested too deeply");
  }
}

void ExpressionParser::FailHere(std::string message) const {
  throw Error{StatusCode::kInvalidArgument, std::move(message), Current().line};
}

void ExpressionParser::FailExpected(const std::string& what) const {
  FailHere("expected " + what + ", found '" + Current().text.substr(0, 40) + "'");
}

void ExpressionParser::Expect(TokenKind kind, const std::string& what) {
  if (Current().kind != kind) FailExpected("'" + what + "'");
  Advance();
}

bool ExpressionParser::IsOperator(std::string_view op) const {
  return Current().kind == TokenKind::kOperator && Current().text == op;
}
bool ExpressionParser::IsName(std::string_view name) const {
  return Current().kind == TokenKind::kName && Current().text == name;
}
bool ExpressionParser::SkipOperator(std::string_view op) {
  if (!IsOperator(op)) return false;
  Advance();
  return true;
}
bool ExpressionParser::SkipName(std::string_view name) {
  if (!IsName(name)) return false;
  Advance();
  return true;
}
void ExpressionParser::ExpectOperator(std::string_view op) {
  if (!SkipOperator(op)) FailExpected("'" + std::string(op) + "'");
}
std::string ExpressionParser::ExpectName() {
  if (Current().kind != TokenKind::kName) FailExpected("a name");
  std::string name = Current().text;
  Advance();
  return name;
}

ExpressionPtr ExpressionParser::New(ExpressionKind kind) const {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = Current().line;
  return expression;
}

void ExpressionParser::Add(Expression& parent, ExpressionPtr child) const {
  if (child != nullptr) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) FailHere("an expression is nested too deeply");
  }
  parent.children.push_back(std::move(child));
}

ExpressionPtr ExpressionParser::NewBinary(ExpressionKind kind, std::string name, ExpressionPtr left,
                                          ExpressionPtr right) const {
  auto expression = New(kind);
  expression->name = std::move(name);
  Add(*expression, std::move(left));
  Add(*expression, std::move(right));
  return expression;
}

ExpressionPtr ExpressionParser::ParseTuple(bool with_conditional) {
  const auto parse_one = [&] { return with_conditional ? ParseExpression() : ParseOr(); };
  ExpressionPtr first = parse_one();
  if (!IsOperator(",")) return first;
  auto tuple = New(ExpressionKind::kTuple);
  Add(*tuple, std::move(first));
  while (SkipOperator(",")) {
    const TokenKind kind = Current().kind;
    if (kind == TokenKind::kTagEnd || kind == TokenKind::kOutputEnd || IsOperator(")")) break;
    Add(*tuple, parse_one());
  }
  return tuple;
}

ExpressionPtr ExpressionParser::ParseExpression() {
  const Nesting nesting(*this);
  ExpressionPtr value = ParseOr();
  while (SkipName("if")) {
    auto conditional = New(ExpressionKind::kConditional);
    Add(*conditional, ParseOr());
    Add(*conditional, std::move(value));
    Add(*conditional, SkipName("else") ? ParseExpression() : nullptr);
    value = std::move(conditional);
  }
  return value;
}

ExpressionPtr ExpressionParser::ParseOr() {
  ExpressionPtr left = ParseAnd();
  while (SkipName("or")) left = NewBinary(ExpressionKind::kOr, "", std::move(left), ParseAnd());
  return left;
}

ExpressionPtr ExpressionParser::ParseAnd() {
  ExpressionPtr left = ParseNot();
  while (SkipName("and")) left = NewBinary(ExpressionKind::kAnd, "", std::move(left), ParseNot());
  return left;
}

ExpressionPtr ExpressionParser::ParseNot() {
  if (!IsName("not")) return ParseCompare();
  const Nesting nesting(*this);
  Advance();
  auto expression = New(ExpressionKind::kNot);
  Add(*expression, ParseNot());
  return expression;
}

ExpressionPtr ExpressionParser::ParseCompare() {
  ExpressionPtr left = ParseSum();
  auto compare = New(ExpressionKind::kCompare);
  while (true) {
    std::string op;
    if (Current().kind == TokenKind::kOperator) {
      for (const std::string_view candidate : {"==", "!=", "<", "<=", ">", ">="}) {
        if (Current().text == candidate) op = candidate;
      }
    } else if (IsName("in")) {
      op = "in";
    } else if (IsName("not") && Next().kind == TokenKind::kName && Next().text == "in") {
      op = "not in";
      Advance();
    }
    if (op.empty()) break;
    Advance();
    if (compare->children.empty()) Add(*compare, std::move(left));
    compare->operators.push_back(op);
    Add(*compare, ParseSum());
  }
  return compare->children.empty() ? std::move(left) : std::move(compare);
}

ExpressionPtr ExpressionParser::ParseSum() {
  ExpressionPtr left = ParseConcat();
  while (IsOperator("+") || IsOperator("-")) {
    const std::string op = Current().text;
    Advance();
    left = NewBinary(ExpressionKind::kBinary, op, std::move(left), ParseConcat());
  }
  return left;
}

ExpressionPtr ExpressionParser::ParseConcat() {
  ExpressionPtr first = ParseProduct();
  if (!IsOperator("~")) return first;
  auto concat = New(ExpressionKind::kConcat);
  Add(*concat, std::move(first));
  while (SkipOperator("~")) Add(*concat, ParseProduct());
  return concat;
}

ExpressionPtr ExpressionParser::ParseProduct() {
  ExpressionPtr left = ParsePower();
  while (IsOperator("*") || IsOperator("/") || IsOperator("//") || IsOperator("%")) {
    const std::string op = Current().text;
    Advance();
    left = NewBinary(ExpressionKind::kBinary, op, std::move(left), ParsePower());
  }
  return left;
}

ExpressionPtr ExpressionParser::ParsePower() {
  ExpressionPtr left = ParseUnary();
  while (SkipOperator("**")) {
    left = NewBinary(ExpressionKind::kBinary, "**", std::move(left), ParseUnary());
  }
  return left;
}

ExpressionPtr ExpressionParser::ParseUnary(bool with_filters) {
  const Nesting nesting(*this);
  ExpressionPtr value;
  if (IsOperator("-") || IsOperator("+")) {
    value = New(IsOperator("-") ? ExpressionKind::kNegate : ExpressionKind::kPositive);
    Advance();
    Add(*value, ParseUnary(/*with_filters=*/false));
  } else {
    value = ParsePrimary();
  }
  value = ParsePostfix(std::move(value));
  if (!with_filters) return value;
  while (true) {
    if (IsOperator("|")) {
      value = ParseFilterChain(std::move(value));
    } else if (IsName("is")) {
      value = ParseTest(std::move(value));
    } else if (IsOperator("(")) {
      value = ParsePostfix(std::move(value));
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::ParsePrimary() {
  const Token& token = Current();
  auto constant = New(ExpressionKind::kConstant);
  switch (token.kind) {
    case TokenKind::kName: return ParseNamePrimary();
    case TokenKind::kString: {
      std::string text;
      for (; Current().kind == TokenKind::kString; Advance()) text += Current().text;
      constant->constant = Value::Constant(text);
      return constant;
    }
    case TokenKind::kInteger:
      constant->constant = Value::Int(token.integer);
      Advance();
      return constant;
    case TokenKind::kFloat:
      constant->constant = Value::Float(token.number);
      Advance();
      return constant;
    default: break;
  }
  if (IsOperator("[")) return ParseList();
  if (IsOperator("{")) return ParseDict();
  if (!SkipOperator("(")) FailExpected("an expression");
  const Nesting nesting(*this);
  if (SkipOperator(")")) return New(ExpressionKind::kTuple);
  ExpressionPtr inner = ParseTuple(/*with_conditional=*/true);
  ExpectOperator(")");
  return inner;
}

ExpressionPtr ExpressionParser::ParseNamePrimary() {
  auto expression = New(ExpressionKind::kName);
  const std::string name = ExpectName();
  const auto constant = [&](Value value) {
    expression->kind = ExpressionKind::kConstant;
    expression->constant = std::move(value);
    return std::move(expression);
  };
  if (name == "true" || name == "True") return constant(Value::Bool(true));
  if (name == "false" || name == "False") return constant(Value::Bool(false));
  if (name == "none" || name == "None") return constant(Value::None());
  if (macro_ != nullptr) {
    macro_->uses_varargs |= name == "varargs";
    macro_->uses_kwargs |= name == "kwargs";
    macro_->uses_caller |= name == "caller";
  }
  expression->name = name;
  return expression;
}

ExpressionPtr ExpressionParser::ParsePostfix(ExpressionPtr value) {
  while (true) {
    if (SkipOperator(".")) {
      auto access = New(ExpressionKind::kAttribute);
      if (Current().kind == TokenKind::kInteger) {  // a.0 is a[0]
        access->kind = ExpressionKind::kItem;
        Add(*access, std::move(value));
        Add(*access, ParsePrimary());
      } else {
        access->name = ExpectName();
        Add(*access, std::move(value));
      }
      value = std::move(access);
    } else if (SkipOperator("[")) {
      value = ParseSubscript(std::move(value));
    } else if (IsOperator("(")) {
      auto call = New(ExpressionKind::kCall);
      Add(*call, std::move(value));
      ParseArguments(*call);
      value = std::move(call);
    } else {
      return value;
    }
  }
}

ExpressionPtr ExpressionParser::ParseSubscript(ExpressionPtr value) {
  const Nesting nesting(*this);
  auto access = New(ExpressionKind::kItem);
  Add(*access, std::move(value));
  ExpressionPtr parts[3];
  int part = 0;
  while (!IsOperator("]")) {
    if (SkipOperator(":")) {
      if (++part > 2) FailExpected("']'");
    } else if (parts[part] == nullptr) {
      parts[part] = ParseExpression();
    } else {
      FailExpected("']'");
    }
  }
  ExpectOperator("]");
  if (part == 0) {
    if (parts[0] == nullptr) FailExpected("an index");
    Add(*access, std::move(parts[0]));
    return access;
  }
  access->kind = ExpressionKind::kSlice;
  for (ExpressionPtr& bound : parts) Add(*access, std::move(bound));
  return access;
}

ExpressionPtr ExpressionParser::ParseFilterChain(ExpressionPtr input, bool starts_inline) {
  while (starts_inline || SkipOperator("|")) {
    starts_inline = false;
    auto filter = New(ExpressionKind::kFilter);
    filter->name = ExpectName();
    while (SkipOperator(".")) filter->name += "." + ExpectName();
    Add(*filter, std::move(input));
    if (IsOperator("(")) ParseArguments(*filter);
    input = std::move(filter);
  }
  return input;
}

ExpressionPtr ExpressionParser::ParseTest(ExpressionPtr value) {
  Advance();  // is
  const bool negated = SkipName("not");
  auto test = New(ExpressionKind::kTest);
  test->name = ExpectName();
  Add(*test, std::move(value));
  const TokenKind kind = Current().kind;
  const bool is_value =
      kind == TokenKind::kString || kind == TokenKind::kInteger || kind == TokenKind::kFloat ||
      IsOperator("[") || IsOperator("{") ||
      (kind == TokenKind::kName && !IsName("else") && !IsName("or") && !IsName("and"));
  if (IsOperator("(")) {
    ParseArguments(*test);
  } else if (is_value && !IsName("if") && !IsName("in") && !IsName("not") && !IsName("recursive")) {
    if (IsName("is")) FailHere("tests with 'is' cannot be chained");
    Add(*test, ParsePostfix(ParsePrimary()));
  }
  if (!negated) return test;
  auto opposite = New(ExpressionKind::kNot);
  Add(*opposite, std::move(test));
  return opposite;
}

ExpressionPtr ExpressionParser::ParseList() {
  const Nesting nesting(*this);
  auto list = New(ExpressionKind::kList);
  ExpectOperator("[");
  while (!IsOperator("]")) {
    if (!list->children.empty()) ExpectOperator(",");
    if (IsOperator("]")) break;
    Add(*list, ParseExpression());
  }
  ExpectOperator("]");
  return list;
}

ExpressionPtr ExpressionParser::ParseDict() {
  const Nesting nesting(*this);
  auto dict = New(ExpressionKind::kDict);
  ExpectOperator("{");
  while (!IsOperator("}")) {
    if (!dict->children.empty()) ExpectOperator(",");
    if (IsOperator("}")) break;
    Add(*dict, ParseExpression());
    ExpectOperator(":");
    Add(*dict, ParseExpression());
  }
  ExpectOperator("}");
  return dict;
}

void ExpressionParser::ParseArguments(Expression& call) {
  const Nesting nesting(*this);
  ExpectOperator("(");
  bool first = true;
  while (!IsOperator(")")) {
    if (!first) ExpectOperator(",");
    first = false;
    if (IsOperator(")")) break;
    const auto parse_into = [&](ExpressionPtr& place) {
      place = ParseExpression();
      call.depth = std::max(call.depth, place->depth + 1);
      if (call.depth > kMaxTreeDepth) FailHere("an expression is nested too deeply");
    };
    if (IsOperator("*") || IsOperator("**")) {
      ExpressionPtr& place = IsOperator("*") ? call.spread : call.spread_named;
      if (place != nullptr || call.spread_named != nullptr) FailHere("a second * or ** argument");
      Advance();
      parse_into(place);
      continue;
    }
    if (Current().kind == TokenKind::kName && Next().kind == TokenKind::kOperator &&
        Next().text == "=") {
      std::string name = ExpectName();
      Advance();
      if (call.spread_named != nullptr) FailHere("a named argument follows **");
      parse_into(call.named.emplace_back(std::move(name), nullptr).second);
    } else {
      if (!call.named.empty() || call.spread != nullptr || call.spread_named != nullptr) {
        FailHere("a positional argument follows a named one");
      }
      Add(call, ParseExpression());
    }
  }
  ExpectOperator(")");
}

}  // namespace moraine::jinja
