// The expression half of the parser; parser.cc adds the tags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/template/ast.h"
#include "model/template/lexer.h"

namespace moraine::jinja {

class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

 protected:
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  const Token& Current() const { return tokens_[at_]; }
  const Token& Next() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  bool AtEnd() const { return Current().kind == TokenKind::kEnd; }
  void Advance() {
    if (!AtEnd()) ++at_;
  }
  [[noreturn]] void FailHere(std::string message) const;
  [[noreturn]] void FailExpected(const std::string& what) const;  // "expected <what>, found ..."
  void Expect(TokenKind kind, const std::string& what);
  bool IsOperator(std::string_view op) const;
  bool IsName(std::string_view name) const;
  bool SkipOperator(std::string_view op);
  bool SkipName(std::string_view name);
  void ExpectOperator(std::string_view op);
  std::string ExpectName();

  // One expression, or several with commas between them as a tuple.
  ExpressionPtr ParseTuple(bool with_conditional);
  ExpressionPtr ParseExpression();
  // "| a | b(1)"; the innermost input is `input`, null for the body of a block. `starts_inline`: the
  // first filter has no "|" in front.
  ExpressionPtr ParseFilterChain(ExpressionPtr input, bool starts_inline = false);

  MacroSignature* macro_ = nullptr;  // whose body is being parsed

 private:
  ExpressionPtr New(ExpressionKind kind) const;
  // Adds a child and keeps the depth.
  void Add(Expression& parent, ExpressionPtr child) const;
  ExpressionPtr NewBinary(ExpressionKind kind, std::string name, ExpressionPtr left,
                          ExpressionPtr right) const;
  ExpressionPtr ParseOr();
  ExpressionPtr ParseAnd();
  ExpressionPtr ParseNot();
  ExpressionPtr ParseCompare();
  ExpressionPtr ParseSum();
  ExpressionPtr ParseConcat();
  ExpressionPtr ParseProduct();
  ExpressionPtr ParsePower();
  ExpressionPtr ParseUnary(bool with_filters = true);
  ExpressionPtr ParsePrimary();
  ExpressionPtr ParseNamePrimary();
  ExpressionPtr ParsePostfix(ExpressionPtr value);
  ExpressionPtr ParseSubscript(ExpressionPtr value);
  ExpressionPtr ParseTest(ExpressionPtr value);
  ExpressionPtr ParseList();
  ExpressionPtr ParseDict();
  void ParseArguments(Expression& call);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace moraine::jinja
