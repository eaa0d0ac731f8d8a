// Expressions over bytes, from which grammars are built: literals, sets, sequences, choices, counted
// repetition, calls of rules (for recursion).
//
// Values are immutable and shared: an expression may be a part of many others, and Grammar::Build
// compiles each one once for each thing that can follow it.
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moraine {

using ByteSet = std::bitset<256>;
using RuleId = uint32_t;

inline constexpr uint32_t kUnbounded = UINT32_MAX;

// In front of a special token's text: no byte of UTF-8, so that text can never be taken for one.
inline constexpr char kSpecialTokenByte = '\xFF';

class Expression {
 public:
  enum class Kind : uint8_t { kBytes, kLiteral, kSequence, kChoice, kRepeat, kUntil, kRule };
  struct Node {
    Kind kind = Kind::kSequence;
    ByteSet bytes;                  // kBytes
    std::vector<Expression> parts;  // kSequence (all), kChoice (one of them), kRepeat (one)
    uint32_t min = 0, max = 0;      // kRepeat
    std::string text;               // kLiteral, kUntil: the mark
    RuleId rule = 0;                // kRule
    uint32_t depth = 1;             // of the expressions within; set by MakeExpression
  };

  // Matches the empty text.
  Expression();
  const Node& node() const { return *node_; }

 private:
  friend Expression MakeExpression(Node node);
  std::shared_ptr<const Node> node_;
};

Expression MakeExpression(Expression::Node node);
Expression Literal(std::string_view bytes);
Expression OneOf(const ByteSet& bytes);
Expression Sequence(std::vector<Expression> parts);
Expression Choice(std::vector<Expression> parts);
Expression Optional(Expression part);
// `max` may be kUnbounded.
Expression Repeat(Expression part, uint32_t min, uint32_t max);
// Everything up to and including the first `mark`, special tokens excluded.
Expression Until(std::string_view mark);
Expression CallRule(RuleId rule);

// Whether the empty text matches. Rules are taken not to match it.
bool MatchesEmpty(const Expression& expression);

// A set of characters as ranges of code points, sorted and apart.
struct CodePointRange {
  uint32_t first = 0, last = 0;
};
using CodePointSet = std::vector<CodePointRange>;
CodePointSet NormalizedSet(CodePointSet set);
// All characters but these; surrogates are none.
CodePointSet ComplementOf(const CodePointSet& set);
bool Contains(const CodePointSet& set, uint32_t codepoint);
// One character of the set, as UTF-8. The set is not empty.
Expression CharacterOf(const CodePointSet& set);

}  // namespace moraine
