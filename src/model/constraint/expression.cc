#include "model/constraint/expression.h"

#include <algorithm>

#include "base/check.h"
#include "model/tokenizer/utf8.h"

namespace moraine {

Expression::Expression() {
  static const auto kEmpty = std::make_shared<const Node>();
  node_ = kEmpty;
}

Expression MakeExpression(Expression::Node node) {
  for (const Expression& part : node.parts) {
    node.depth = std::max(node.depth, part.node().depth + 1);
  }
  Expression expression;
  expression.node_ = std::make_shared<const Expression::Node>(std::move(node));
  return expression;
}

Expression OneOf(const ByteSet& bytes) {
  CHECK(bytes.any(), "a set without bytes matches nothing");
  Expression::Node node;
  node.kind = Expression::Kind::kBytes;
  node.bytes = bytes;
  return MakeExpression(std::move(node));
}

Expression Literal(std::string_view bytes) {
  Expression::Node node;
  node.kind = Expression::Kind::kLiteral;
  node.text = bytes;
  return MakeExpression(std::move(node));
}

Expression Sequence(std::vector<Expression> parts) {
  if (parts.size() == 1) return parts.front();
  Expression::Node node;
  node.kind = Expression::Kind::kSequence;
  node.parts = std::move(parts);
  return MakeExpression(std::move(node));
}

Expression Choice(std::vector<Expression> parts) {
  CHECK(!parts.empty(), "a choice of nothing");
  if (parts.size() == 1) return parts.front();
  Expression::Node node;
  node.kind = Expression::Kind::kChoice;
  node.parts = std::move(parts);
  return MakeExpression(std::move(node));
}

Expression Optional(Expression part) { return Repeat(std::move(part), 0, 1); }

Expression Repeat(Expression part, uint32_t min, uint32_t max) {
  CHECK(min <= max, "a range of counts");
  if (min == 1 && max == 1) return part;
  Expression::Node node;
  node.kind = Expression::Kind::kRepeat;
  node.parts = {std::move(part)};
  node.min = min;
  node.max = max;
  return MakeExpression(std::move(node));
}

Expression Until(std::string_view mark) {
  CHECK(!mark.empty(), "a mark");
  Expression::Node node;
  node.kind = Expression::Kind::kUntil;
  node.text = mark;
  return MakeExpression(std::move(node));
}

Expression CallRule(RuleId rule) {
  Expression::Node node;
  node.kind = Expression::Kind::kRule;
  node.rule = rule;
  return MakeExpression(std::move(node));
}

bool MatchesEmpty(const Expression& expression) {
  const Expression::Node& node = expression.node();
  switch (node.kind) {
    case Expression::Kind::kLiteral: return node.text.empty();
    case Expression::Kind::kSequence:
      return std::all_of(node.parts.begin(), node.parts.end(), MatchesEmpty);
    case Expression::Kind::kChoice:
      return std::any_of(node.parts.begin(), node.parts.end(), MatchesEmpty);
    case Expression::Kind::kRepeat: return node.min == 0 || MatchesEmpty(node.parts.front());
    default: return false;
  }
}

CodePointSet NormalizedSet(CodePointSet set) {
  std::sort(set.begin(), set.end(),
            [](const CodePointRange& a, const CodePointRange& b) { return a.first < b.first; });
  CodePointSet out;
  for (const CodePointRange& range : set) {
    if (range.first > range.last) continue;
    if (!out.empty() && range.first <= out.back().last + 1) {
      out.back().last = std::max(out.back().last, range.last);
    } else {
      out.push_back(range);
    }
  }
  return out;
}

CodePointSet ComplementOf(const CodePointSet& set) {
  CodePointSet excluded = set;
  excluded.push_back({0xD800, 0xDFFF});
  CodePointSet out;
  uint32_t next = 0;
  for (const CodePointRange& range : NormalizedSet(std::move(excluded))) {
    if (range.first > next) out.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= 0x10FFFF) out.push_back({next, 0x10FFFF});
  return out;
}

bool Contains(const CodePointSet& set, uint32_t codepoint) {
  return std::any_of(set.begin(), set.end(), [&](const CodePointRange& range) {
    return codepoint >= range.first && codepoint <= range.last;
  });
}

namespace {

ByteSet ByteRange(uint8_t first, uint8_t last) {
  ByteSet set;
  for (int byte = first; byte <= last; ++byte) set.set(static_cast<size_t>(byte));
  return set;
}

// Characters of one length in UTF-8 whose bytes are a product of ranges; Russ Cox's way of splitting
// (RE2, utf8 ranges): cut where a lower byte would not run through its whole range.
void AppendRange(uint32_t first, uint32_t last, std::vector<Expression>* out) {
  static constexpr uint32_t kLast[] = {0x7F, 0x7FF, 0xFFFF};
  for (const uint32_t limit : kLast) {
    if (first <= limit && last > limit) {
      AppendRange(first, limit, out);
      return AppendRange(limit + 1, last, out);
    }
  }
  if (last > 0x7F) {
    for (uint32_t bits = 6; bits < 24; bits += 6) {
      const uint32_t low = (1u << bits) - 1;
      if ((first & ~low) == (last & ~low)) break;
      if ((first & low) != 0) {
        AppendRange(first, first | low, out);
        return AppendRange((first | low) + 1, last, out);
      }
      if ((last & low) != low) {
        AppendRange(first, (last & ~low) - 1, out);
        return AppendRange(last & ~low, last, out);
      }
    }
  }
  std::string from, to;
  AppendUtf8(first, from);
  AppendUtf8(last, to);
  std::vector<Expression> bytes;
  for (size_t i = 0; i < from.size(); ++i) {
    bytes.push_back(OneOf(ByteRange(static_cast<uint8_t>(from[i]), static_cast<uint8_t>(to[i]))));
  }
  out->push_back(Sequence(std::move(bytes)));
}

}  // namespace

Expression CharacterOf(const CodePointSet& set) {
  ByteSet ascii;
  std::vector<Expression> choices;
  for (CodePointRange range : NormalizedSet(set)) {
    for (; range.first <= std::min(range.last, 0x7Fu); ++range.first) ascii.set(range.first);
    if (range.first <= range.last) AppendRange(range.first, range.last, &choices);
  }
  if (ascii.any()) choices.insert(choices.begin(), OneOf(ascii));
  return Choice(std::move(choices));
}

}  // namespace moraine
