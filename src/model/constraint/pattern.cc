#include "model/constraint/pattern.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "model/constraint/json_grammar.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

// Groups within groups; bounds the C++ stack.
constexpr int kMaxDepth = 32;
constexpr uint32_t kMaxCount = 1000;

const CodePointSet kDigits = {{'0', '9'}};
const CodePointSet kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePointSet kSpace = {{'\t', '\r'},     {' ', ' '},       {0xA0, 0xA0},     {0x1680, 0x1680},
                             {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                             {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
const CodePointSet kLineEnds = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

struct PatternError {
  Status status;
};

// Throws PatternError, caught in CompilePattern: a parser without it is twice as long.
class PatternParser {
 public:
  explicit PatternParser(std::string_view text) : text_(text) {}

  Expression Parse() {
    const Expression expression = Alternatives(/*top=*/true);
    if (at_ < text_.size()) Fail("an unmatched )");
    return expression;
  }

 private:
  [[noreturn]] void Fail(std::string_view what) const {
    throw PatternError{InvalidArgument(fmt::format("{} at byte {}", what, at_))};
  }
  [[noreturn]] void Refuse(std::string_view what) const {
    throw PatternError{Unsupported(fmt::format("{} at byte {} is not supported", what, at_))};
  }
  bool Next(std::string_view token) {
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }
  bool AtEnd() const { return at_ >= text_.size() || text_[at_] == '|' || text_[at_] == ')'; }

  Expression Alternatives(bool top) {
    std::vector<Expression> choices;
    do {
      choices.push_back(Alternative(top));
    } while (Next("|"));
    return Choice(std::move(choices));
  }

  Expression Alternative(bool top) {
    const Expression anything = Repeat(JsonStringCharacter(), 0, kUnbounded);
    std::vector<Expression> parts;
    const bool begins = Next("^");
    if (begins && !top) Refuse("^ in a group");
    if (top && !begins) parts.push_back(anything);
    bool ends = false;
    while (!AtEnd()) {
      if (Next("$")) {
        if (!top || !AtEnd()) Refuse("$ before the end");
        ends = true;
        break;
      }
      parts.push_back(Quantified());
    }
    if (top && !ends) parts.push_back(anything);
    return Sequence(std::move(parts));
  }

  Expression Quantified() {
    const Expression atom = Atom();
    uint32_t min = 1, max = 1;
    if (Next("*")) {
      min = 0, max = kUnbounded;
    } else if (Next("+")) {
      max = kUnbounded;
    } else if (Next("?")) {
      min = 0;
    } else if (at_ < text_.size() && text_[at_] == '{') {
      ReadCounts(&min, &max);
    } else {
      return atom;
    }
    Next("?");  // lazy: the same texts
    // Each count would be reached at once.
    if (max > 1 && max != kUnbounded && MatchesEmpty(atom)) Refuse("a count of what may be empty");
    return Repeat(atom, min, max);
  }

  void ReadCounts(uint32_t* min, uint32_t* max) {
    ++at_;
    *min = Count();
    *max = *min;
    if (Next(",")) *max = at_ < text_.size() && text_[at_] == '}' ? kUnbounded : Count();
    if (!Next("}")) Fail("expected } after a count");
    if (*max < *min) Fail("a range of counts whose end is before its beginning");
  }

  uint32_t Count() {
    uint32_t count = 0;
    const char* begin = text_.data() + at_;
    const auto [end, error] = std::from_chars(begin, text_.data() + text_.size(), count);
    if (error != std::errc()) Fail("expected a count");
    if (count > kMaxCount) Refuse("a count above 1000");
    at_ += static_cast<size_t>(end - begin);
    return count;
  }

  Expression Atom() {
    if (Next("(")) return Group();
    if (Next("[")) return JsonStringCharacterOf(Class());
    if (Next(".")) return JsonStringCharacterOf(ComplementOf(kLineEnds));
    if (text_[at_] == '\\') return JsonStringCharacterOf(Escape());
    if (std::string_view("*+?{").find(text_[at_]) != std::string_view::npos) {
      Fail("nothing to repeat");
    }
    if (text_[at_] == '^') Refuse("^ after the beginning");
    const uint32_t c = CodePoint();
    return JsonStringCharacterOf({{c, c}});
  }

  Expression Group() {
    if (++depth_ > kMaxDepth) Refuse("deeper nesting");
    if (Next("?")) {
      const bool lookbehind = text_.substr(at_).starts_with("<=") || text_.substr(at_).starts_with("<!");
      if (Next("<") && !lookbehind) {
        const size_t end = text_.find('>', at_);
        if (end == std::string_view::npos) Fail("a group's name without an end");
        at_ = end + 1;
      } else if (!Next(":")) {
        Refuse("lookaround");
      }
    }
    const Expression inner = Alternatives(/*top=*/false);
    if (!Next(")")) Fail("a group without an end");
    --depth_;
    return inner;
  }

  uint32_t CodePoint() {
    const Utf8Step step = NextUtf8(text_.substr(at_));
    if (step.kind != Utf8Step::kValid) Fail("invalid UTF-8");
    at_ += static_cast<size_t>(step.length);
    return step.codepoint;
  }

  uint32_t Hex(size_t digits) {
    uint32_t value = 0;
    const std::string_view text = text_.substr(at_, digits);
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (error != std::errc() || end != text.data() + digits) Fail("expected hexadecimal digits");
    at_ += digits;
    return value;
  }

  // One character, or a set such as \d.
  CodePointSet Escape() {
    ++at_;
    if (at_ >= text_.size()) Fail("a \\ at the end");
    const char c = text_[at_++];
    switch (c) {
      case 'd': return kDigits;
      case 'D': return ComplementOf(kDigits);
      case 'w': return kWord;
      case 'W': return ComplementOf(kWord);
      case 's': return kSpace;
      case 'S': return ComplementOf(kSpace);
      case 't': return {{'\t', '\t'}};
      case 'n': return {{'\n', '\n'}};
      case 'r': return {{'\r', '\r'}};
      case 'f': return {{'\f', '\f'}};
      case 'v': return {{'\v', '\v'}};
      case 'x': return One(Hex(2));
      case 'u': return One(Hex(4));
      default: break;
    }
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      Refuse(fmt::format("\\{}", c));
    }
    --at_;
    return One(CodePoint());
  }
  CodePointSet One(uint32_t c) {
    if (c >= 0xD800 && c <= 0xDFFF) Refuse("a surrogate");
    return {{c, c}};
  }

  CodePointSet Class() {
    const bool negated = Next("^");
    CodePointSet set;
    while (!Next("]")) {
      if (at_ >= text_.size()) Fail("a class without an end");
      CodePointSet first = text_[at_] == '\\' ? ClassEscape() : One(CodePoint());
      const bool is_range = first.size() == 1 && first[0].first == first[0].last &&
                            text_.substr(at_).starts_with("-") &&
                            !text_.substr(at_).starts_with("-]") && at_ + 1 < text_.size();
      if (is_range) {
        ++at_;
        const CodePointSet last = text_[at_] == '\\' ? ClassEscape() : One(CodePoint());
        if (last.size() != 1 || last[0].first != last[0].last || last[0].last < first[0].first) {
          Fail("a range that is none");
        }
        first[0].last = last[0].last;
      }
      set.insert(set.end(), first.begin(), first.end());
    }
    if (negated) set = ComplementOf(set);
    if (set.empty()) Fail("a class of nothing");
    return set;
  }
  CodePointSet ClassEscape() {
    if (text_.substr(at_).starts_with("\\b")) Refuse("\\b");
    return Escape();
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Result<Expression> CompilePattern(std::string_view pattern) {
  try {
    return PatternParser(pattern).Parse();
  } catch (const PatternError& error) {
    return error.status;
  }
}

}  // namespace moraine
