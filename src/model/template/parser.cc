#include "model/template/parser.h"

#include <algorithm>
#include <set>

#include "model/template/expression_parser.h"

namespace moraine::jinja {
namespace {

class StatementParser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Template Parse() {
    Template root;
    root.body = ParseBlock({});
    if (!AtEnd()) FailExpected("the end of the template");
    return root;
  }

 private:
  using Words = std::vector<std::string_view>;

  // Statements up to a tag whose name is in `ends`; that tag's "{%" is consumed, its name is next.
  Block ParseBlock(const Words& ends) {
    const Nesting nesting(*this);
    Block block;
    while (!AtEnd()) {
      const Token& token = Current();
      if (token.kind == TokenKind::kText) {
        auto statement = NewStatement(StatementKind::kText);
        statement->text = Value::Constant(token.text);
        Advance();
        block.push_back(std::move(statement));
      } else if (token.kind == TokenKind::kOutputBegin) {
        Advance();
        auto statement = NewStatement(StatementKind::kOutput);
        statement->value = ParseTuple(/*with_conditional=*/true);
        Expect(TokenKind::kOutputEnd, "}}");
        block.push_back(std::move(statement));
      } else {
        Expect(TokenKind::kTagBegin, "{%");
        if (Current().kind != TokenKind::kName) FailExpected("a tag name");
        if (std::find(ends.begin(), ends.end(), Current().text) != ends.end()) return block;
        block.push_back(ParseTag());
      }
    }
    if (!ends.empty()) FailExpected("{% " + std::string(ends.back()) + " %}");
    return block;
  }

  std::unique_ptr<Statement> NewStatement(StatementKind kind) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = Current().line;
    return statement;
  }

  void EndTag() { Expect(TokenKind::kTagEnd, "%}"); }

  // The body of a tag that ends with {% <end> %}.
  Block ParseBody(std::string_view end) {
    EndTag();
    Block body = ParseBlock({end});
    Advance();
    EndTag();
    return body;
  }

  std::unique_ptr<Statement> ParseTag() {
    const std::string name = Current().text;
    if (name == "if") return ParseIf();
    if (name == "for") return ParseFor();
    if (name == "set") return ParseSet();
    if (name == "macro") return ParseMacro();
    if (name == "call") return ParseCallBlock();
    if (name == "filter") return ParseFilterBlock();
    if (name == "with") return ParseWith();
    if (name == "generation") {
      auto statement = NewStatement(StatementKind::kScope);
      Advance();
      statement->body = ParseBody("endgeneration");
      return statement;
    }
    if (name == "break" || name == "continue") {
      if (loop_depth_ == 0) FailHere("{% " + name + " %} is outside of a loop");
      auto statement =
          NewStatement(name == "break" ? StatementKind::kBreak : StatementKind::kContinue);
      Advance();
      EndTag();
      return statement;
    }
    static const std::set<std::string> kLeftOut = {"block", "extends", "include", "import", "from",
                                                   "autoescape", "do", "trans", "debug"};
    if (kLeftOut.contains(name)) {
      throw Error{StatusCode::kUnsupported, "{% " + name + " %} is not supported in chat templates",
                  Current().line};
    }
    FailHere("unknown tag '" + name + "'");
  }

  std::unique_ptr<Statement> ParseIf() {
    auto statement = NewStatement(StatementKind::kIf);
    while (true) {
      Advance();  // if, elif
      ExpressionPtr condition = ParseTuple(/*with_conditional=*/false);
      EndTag();
      Block body = ParseBlock({"elif", "else", "endif"});
      statement->branches.emplace_back(std::move(condition), std::move(body));
      if (Current().text == "elif") continue;
      if (Current().text == "else") {
        Advance();
        EndTag();
        statement->branches.emplace_back(nullptr, ParseBlock({"endif"}));
      }
      Advance();
      EndTag();
      return statement;
    }
  }

  std::unique_ptr<Statement> ParseFor() {
    auto statement = NewStatement(StatementKind::kFor);
    Advance();
    ParseTargets(*statement, /*allow_attributes=*/false);
    if (!SkipName("in")) FailExpected("'in'");
    statement->value = ParseTuple(/*with_conditional=*/false);
    if (SkipName("if")) statement->condition = ParseExpression();
    if (Current().kind == TokenKind::kName && Current().text == "recursive") {
      statement->recursive = true;
      Advance();
    }
    EndTag();
    ++loop_depth_;
    statement->body = ParseBlock({"endfor", "else"});
    --loop_depth_;
    if (Current().text == "else") {
      Advance();
      EndTag();
      statement->otherwise = ParseBlock({"endfor"});
    }
    Advance();
    EndTag();
    return statement;
  }

  void ParseTargets(Statement& statement, bool allow_attributes) {
    statement.unpacks = ParseTargetList(statement.targets, allow_attributes, 0);
    // (a, b) alone is the list itself.
    if (!statement.unpacks && !statement.targets.front().parts.empty()) {
      std::vector<Target> parts = std::move(statement.targets.front().parts);
      statement.targets = std::move(parts);
      statement.unpacks = true;
    }
  }

  // Whether there was a comma.
  bool ParseTargetList(std::vector<Target>& targets, bool allow_attributes, int depth) {
    bool has_comma = false;
    while (true) {
      targets.push_back(ParseTarget(allow_attributes, depth));
      if (!SkipOperator(",")) return has_comma;
      has_comma = true;
      const bool more = Current().kind == TokenKind::kName && Current().text != "in";
      if (!more && !IsOperator("(")) return has_comma;
    }
  }

  Target ParseTarget(bool allow_attributes, int depth) {
    Target target;
    if (SkipOperator("(")) {
      if (depth > 8) FailHere("targets are nested too deeply");
      const bool unpacks = ParseTargetList(target.parts, /*allow_attributes=*/false, depth + 1);
      ExpectOperator(")");
      if (!unpacks && target.parts.front().parts.empty()) return Target(target.parts.front());
      return target;
    }
    target.name = ExpectName();
    static const std::set<std::string> kConstants = {"true", "false", "none", "True", "False", "None"};
    if (kConstants.contains(target.name)) FailHere("cannot assign to '" + target.name + "'");
    if (allow_attributes && SkipOperator(".")) target.attribute = ExpectName();
    return target;
  }

  std::unique_ptr<Statement> ParseSet() {
    auto statement = NewStatement(StatementKind::kSet);
    Advance();
    ParseTargets(*statement, /*allow_attributes=*/true);
    if (SkipOperator("=")) {
      statement->value = ParseTuple(/*with_conditional=*/true);
      EndTag();
      return statement;
    }
    statement->kind = StatementKind::kSetBlock;
    if (statement->unpacks) FailExpected("'='");
    if (IsOperator("|")) statement->value = ParseFilterChain(nullptr);
    statement->body = ParseBody("endset");
    return statement;
  }

  void ParseSignature(MacroSignature& signature) {
    ExpectOperator("(");
    while (!IsOperator(")")) {
      if (!signature.parameters.empty()) ExpectOperator(",");
      if (IsOperator(")")) break;
      signature.parameters.push_back(ExpectName());
      if (SkipOperator("=")) {
        signature.defaults.push_back(ParseExpression());
      } else if (!signature.defaults.empty()) {
        FailHere("a parameter without default follows one with default");
      }
    }
    ExpectOperator(")");
  }

  // A macro's body: which of varargs, kwargs and caller it names decides what it may be called with.
  void ParseMacroBody(Statement& statement, std::string_view end) {
    const int outer_loops = std::exchange(loop_depth_, 0);
    MacroSignature* const outer = std::exchange(macro_, &statement.signature);
    statement.body = ParseBody(end);
    macro_ = outer;
    loop_depth_ = outer_loops;
    const auto& parameters = statement.signature.parameters;
    if (std::find(parameters.begin(), parameters.end(), "caller") != parameters.end()) {
      statement.signature.uses_caller = false;  // then it is passed by name
    }
  }

  std::unique_ptr<Statement> ParseMacro() {
    auto statement = NewStatement(StatementKind::kMacro);
    Advance();
    statement->signature.name = ExpectName();
    ParseSignature(statement->signature);
    ParseMacroBody(*statement, "endmacro");
    return statement;
  }

  std::unique_ptr<Statement> ParseCallBlock() {
    auto statement = NewStatement(StatementKind::kCall);
    Advance();
    if (IsOperator("(")) ParseSignature(statement->signature);
    statement->signature.name = "caller";
    statement->value = ParseExpression();
    if (statement->value->kind != ExpressionKind::kCall) FailExpected("a call");
    ParseMacroBody(*statement, "endcall");
    return statement;
  }

  std::unique_ptr<Statement> ParseFilterBlock() {
    auto statement = NewStatement(StatementKind::kFilter);
    Advance();
    statement->value = ParseFilterChain(nullptr, /*starts_inline=*/true);
    statement->body = ParseBody("endfilter");
    return statement;
  }

  std::unique_ptr<Statement> ParseWith() {
    auto statement = NewStatement(StatementKind::kWith);
    Advance();
    while (Current().kind != TokenKind::kTagEnd) {
      if (!statement->targets.empty()) ExpectOperator(",");
      statement->targets.push_back({ExpectName(), "", {}});
      ExpectOperator("=");
      statement->values.push_back(ParseExpression());
    }
    statement->body = ParseBody("endwith");
    return statement;
  }

  int loop_depth_ = 0;
};

}  // namespace

Template ParseTemplate(std::string_view source) {
  return StatementParser(Tokenize(source)).Parse();
}

}  // namespace moraine::jinja
