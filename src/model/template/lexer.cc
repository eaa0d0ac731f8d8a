#include "model/template/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "model/tokenizer/utf8.h"

namespace moraine::jinja {
namespace {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}
bool IsDigit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Newlines are \n, and the last one of a file is not part of the template.
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] != '\r') {
        source_ += source[i];
      } else if (i + 1 == source.size() || source[i + 1] != '\n') {
        source_ += '\n';
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> Run() {
    while (at_ < source_.size()) {
      const size_t begin = FindTag();
      if (begin == std::string::npos) {
        EmitText(at_, source_.size());
        break;
      }
      const char kind = source_[begin + 1];
      const char sign = begin + 2 < source_.size() ? source_[begin + 2] : ' ';
      const bool strips = sign == '-', keeps = sign == '+';
      EmitText(at_, EndOfTextBefore(begin, strips, keeps, kind != '{'));
      Move(begin);
      const size_t content = begin + 2 + (strips || keeps);
      if (kind == '#') {
        SkipComment(content);
      } else if (kind == '%' && StartsRaw(content)) {
        ReadRaw();
      } else {
        ReadTag(kind == '{', content);
      }
    }
    tokens_.push_back({TokenKind::kEnd, line_, "end of template"});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void FailHere(std::string message) const {
    throw Error{StatusCode::kInvalidArgument, std::move(message), line_};
  }

  // Moves on, counting lines.
  void Move(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + to, '\n'));
    at_ = to;
  }

  size_t FindTag() const {
    for (size_t i = source_.find('{', at_); i != std::string::npos; i = source_.find('{', i + 1)) {
      if (i + 1 < source_.size() &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#')) {
        return i;
      }
    }
    return std::string::npos;
  }

  void EmitText(size_t begin, size_t end) {
    if (begin < end) {
      tokens_.push_back({TokenKind::kText, line_, source_.substr(begin, end - begin)});
    }
  }

  // "-" takes all white space before the tag, lstrip_blocks the blanks of the tag's own line.
  size_t EndOfTextBefore(size_t tag, bool strips, bool keeps, bool is_block) const {
    size_t end = tag;
    if (strips) {
      while (end > at_ && kSpaces.find(source_[end - 1]) != kSpaces.npos) --end;
    } else if (is_block && !keeps) {
      while (end > at_ && kSpaces.find(source_[end - 1]) != kSpaces.npos && source_[end - 1] != '\n') {
        --end;
      }
      const bool line_starts = end > at_ ? source_[end - 1] == '\n'
                                         : at_ == 0 || source_[at_ - 1] == '\n';
      if (!line_starts) end = tag;
    }
    return end;
  }

  // Behind "%}" or "#}": trim_blocks takes one newline, "-" all white space, "+" nothing.
  void EndBlock(size_t at, char sign) {
    if (sign == '-') {
      while (at < source_.size() && kSpaces.find(source_[at]) != kSpaces.npos) ++at;
    } else if (sign != '+' && at < source_.size() && source_[at] == '\n') {
      ++at;
    }
    Move(at);
  }

  void SkipComment(size_t content) {
    const size_t end = source_.find("#}", content);
    if (end == std::string::npos) FailHere("a comment is not closed, expected #}");
    EndBlock(end + 2, end > content ? source_[end - 1] : ' ');
  }

  size_t SkipSpaces(size_t at) const {
    const size_t next = source_.find_first_not_of(kSpaces, at);
    return next == std::string::npos ? source_.size() : next;
  }

  // At "raw %}" or "raw -%}", `end` is behind it.
  bool StartsWord(size_t content, std::string_view word, size_t* end, char* sign) const {
    size_t at = SkipSpaces(content);
    if (source_.compare(at, word.size(), word) != 0) return false;
    at = SkipSpaces(at + word.size());
    *sign = ' ';
    if (at < source_.size() && (source_[at] == '-' || source_[at] == '+')) *sign = source_[at++];
    if (source_.compare(at, 2, "%}") != 0) return false;
    *end = at + 2;
    return true;
  }

  bool StartsRaw(size_t content) {
    return StartsWord(content, "raw", &raw_begin_, &raw_sign_);
  }

  void ReadRaw() {
    // Unlike other tags, {% raw %} keeps the newline behind it.
    EndBlock(raw_begin_, raw_sign_ == '-' ? '-' : '+');
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
      const size_t content = tag + 2 + (sign == '-' || sign == '+');
      size_t end = 0;
      char end_sign = ' ';
      if (!StartsWord(content, "endraw", &end, &end_sign)) continue;
      EmitText(at_, EndOfTextBefore(tag, sign == '-', sign == '+', true));
      EndBlock(end, end_sign);
      return;
    }
    FailHere("{% raw %} is not closed, expected {% endraw %}");
  }

  void ReadTag(bool is_output, size_t content) {
    const std::string_view closing = is_output ? "}}" : "%}";
    tokens_.push_back({is_output ? TokenKind::kOutputBegin : TokenKind::kTagBegin, line_,
                       is_output ? "{{" : "{%"});
    Move(content);
    std::string open;  // brackets that are open: inside them "}}" is two of them
    while (true) {
      Move(SkipSpaces(at_));
      if (at_ >= source_.size()) {
        FailHere("a tag is not closed, expected " + std::string(closing));
      }
      if (open.empty()) {
        const char sign = source_[at_] == '-' || (source_[at_] == '+' && !is_output) ? source_[at_] : ' ';
        const size_t skip = sign == ' ' ? 0 : 1;
        if (source_.compare(at_ + skip, 2, closing) == 0) {
          tokens_.push_back({is_output ? TokenKind::kOutputEnd : TokenKind::kTagEnd, line_,
                             std::string(closing)});
          // Behind "}}" only "-" takes anything.
          EndBlock(at_ + skip + 2, is_output && sign != '-' ? '+' : sign);
          return;
        }
      }
      ReadToken(open);
    }
  }

  void ReadToken(std::string& open) {
    const char c = source_[at_];
    if (IsNameStart(c)) return ReadName();
    if (IsDigit(c)) return ReadNumber();
    if (c == '\'' || c == '"') return ReadString(c);
    static constexpr std::array<std::string_view, 6> kLong = {"==", "!=", "<=", ">=", "//", "**"};
    std::string op(1, c);
    for (const std::string_view candidate : kLong) {
      if (source_.compare(at_, 2, candidate) == 0) op = candidate;
    }
    if (op.size() == 1 && std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      FailHere("unexpected character '" + op + "'");
    }
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c) FailHere("unexpected '" + op + "'");
      open.pop_back();
    }
    tokens_.push_back({TokenKind::kOperator, line_, op});
    at_ += op.size();
  }

  void ReadName() {
    size_t end = at_;
    while (end < source_.size() && (IsNameStart(source_[end]) || IsDigit(source_[end]))) ++end;
    tokens_.push_back({TokenKind::kName, line_, source_.substr(at_, end - at_)});
    at_ = end;
  }

  // 0x1F, 0o17, 0b101. False if the number at hand has no such prefix.
  bool ReadPrefixedNumber() {
    if (source_[at_] != '0' || at_ + 2 >= source_.size()) return false;
    const char kind = source_[at_ + 1] | 0x20;
    const int base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (base == 0) return false;
    Token token{TokenKind::kInteger, line_, {}};
    const char* const begin = source_.data() + at_ + 2;
    const auto result =
        std::from_chars(begin, source_.data() + source_.size(), token.integer, base);
    if (result.ec == std::errc::result_out_of_range) FailHere("a number is out of range");
    if (result.ec != std::errc() || *begin == '-') return false;
    const auto end = static_cast<size_t>(result.ptr - source_.data());
    token.text = source_.substr(at_, end - at_);
    at_ = end;
    tokens_.push_back(std::move(token));
    return true;
  }

  void ReadNumber() {
    if (ReadPrefixedNumber()) return;
    std::string digits;
    const auto read_digits = [&] {
      while (at_ < source_.size() &&
             (IsDigit(source_[at_]) || (source_[at_] == '_' && at_ + 1 < source_.size() &&
                                        IsDigit(source_[at_ + 1])))) {
        if (source_[at_] != '_') digits += source_[at_];
        ++at_;
      }
    };
    read_digits();
    bool is_float = false;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && IsDigit(source_[at_ + 1])) {
      is_float = true;
      digits += source_[at_++];
      read_digits();
    }
    if (at_ < source_.size() && (source_[at_] == 'e' || source_[at_] == 'E')) {
      size_t next = at_ + 1;
      if (next < source_.size() && (source_[next] == '+' || source_[next] == '-')) ++next;
      if (next < source_.size() && IsDigit(source_[next])) {
        is_float = true;
        digits.append(source_, at_, next - at_);
        at_ = next;
        read_digits();
      }
    }
    Token token{is_float ? TokenKind::kFloat : TokenKind::kInteger, line_, digits};
    const char* const end = digits.data() + digits.size();
    const auto result = is_float ? std::from_chars(digits.data(), end, token.number)
                                 : std::from_chars(digits.data(), end, token.integer);
    if (result.ec != std::errc()) FailHere("the number " + digits + " is out of range");
    tokens_.push_back(std::move(token));
  }

  void ReadString(char quote) {
    const int line = line_;
    std::string text;
    size_t at = at_ + 1;
    while (true) {
      if (at >= source_.size()) FailHere("a string is not closed");
      const char c = source_[at];
      if (c == quote) break;
      if (c != '\\') {
        text += c;
        ++at;
        continue;
      }
      if (at + 1 >= source_.size()) FailHere("a string is not closed");
      at = ReadEscape(at + 1, text);
    }
    Move(at + 1);
    tokens_.push_back({TokenKind::kString, line, std::move(text)});
  }

  // `at` is behind the backslash; returns where the escape ends.
  size_t ReadEscape(size_t at, std::string& text) const {
    const char c = source_[at];
    const auto number = [&](size_t begin, size_t max_digits, int base) {
      uint32_t code = 0;
      const size_t stop = std::min(begin + max_digits, source_.size());
      const auto result = std::from_chars(source_.data() + begin, source_.data() + stop, code, base);
      const auto used = static_cast<size_t>(result.ptr - source_.data()) - begin;
      if (result.ec != std::errc() || (base == 16 && used != max_digits)) {
        FailHere("a bad escape in a string");
      }
      if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
        FailHere("an escape in a string is not a character");
      }
      AppendUtf8(code, text);
      return begin + used;
    };
    static constexpr std::string_view kLetters = "ntrbfav\\'\"";
    static constexpr std::string_view kMeanings = "\n\t\r\b\f\a\v\\'\"";
    if (const size_t index = kLetters.find(c); index != kLetters.npos) {
      text += kMeanings[index];
      return at + 1;
    }
    if (c == 'x') return number(at + 1, 2, 16);
    if (c == 'u') return number(at + 1, 4, 16);
    if (c == 'U') return number(at + 1, 8, 16);
    if (c >= '0' && c <= '7') return number(at, 3, 8);
    if (c == '\n') return at + 1;
    text += '\\';
    text += c;
    return at + 1;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  size_t raw_begin_ = 0;
  char raw_sign_ = ' ';
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace moraine::jinja
