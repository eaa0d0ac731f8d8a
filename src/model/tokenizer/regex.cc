#include "model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

// Backtracking steps in one match. A legitimate pattern uses a few per character of the pre-token; 50
// million lets a pre-token of megabytes through and stops a hostile pattern after about a second.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr size_t kJitStackMaxBytes = size_t{64} << 20;

Status BadPattern(std::string_view pattern, std::string_view why) {
  return InvalidArgument("pattern \"" + std::string(pattern) + "\": " + std::string(why));
}

// Copies the pattern, replacing escapes; a recursive descent over classes only.
class Rewriter {
 public:
  explicit Rewriter(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> Run() {
    std::string out;
    while (at_ < pattern_.size()) {
      if (pattern_[at_] == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/false, out));
      } else if (pattern_[at_] == '[') {
        ASSIGN_OR_RETURN(const std::string rewritten, Class(/*depth=*/0));
        out += rewritten;
      } else {
        out += pattern_[at_++];
      }
    }
    return out;
  }

 private:
  static constexpr int kMaxDepth = 8;

  Status Escape(bool in_class, std::string& out) {
    if (at_ + 1 >= pattern_.size()) return BadPattern(pattern_, "ends in a backslash");
    const char kind = pattern_[at_ + 1];
    at_ += 2;
    // Oniguruma decides on characters below U+0100 by a table of its own, outside of classes.
    static const std::string kWordInClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
    static const std::string kWord = kWordInClass + "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";
    static const std::string kIs = "[" + kWord + "]", kIsNot = "[^" + kWord + "]";
    switch (kind) {
      case 's': out += "\\p{White_Space}"; return OkStatus();
      case 'S': out += "\\P{White_Space}"; return OkStatus();
      case 'd': out += "\\p{Nd}"; return OkStatus();
      case 'D': out += "\\P{Nd}"; return OkStatus();
      case 'h': out += in_class ? "0-9A-Fa-f" : "[0-9A-Fa-f]"; return OkStatus();
      case 'w': out += in_class ? kWordInClass : kIs; return OkStatus();
      case 'W': case 'H':
        if (in_class) {
          return BadPattern(pattern_, std::string("\\") + kind + " in a class is not supported");
        }
        out += kind == 'W' ? kIsNot : "[^0-9A-Fa-f]";
        return OkStatus();
      case 'b': case 'B': {
        if (in_class) break;
        const char* before = kind == 'b' ? "(?<=" : "(?<!";
        const char* other = kind == 'b' ? "(?<!" : "(?<=";
        out += "(?:" + (before + kIs) + ")(?!" + kIs + ")|" + other + kIs + ")(?=" + kIs + "))";
        return OkStatus();
      }
      case 'p': case 'P': {
        const size_t end = pattern_.find('}', at_);
        if (at_ >= pattern_.size() || pattern_[at_] != '{' || end == pattern_.npos) break;
        const std::string_view name = pattern_.substr(at_ + 1, end - at_ - 1);
        at_ = end + 1;
        const bool is_script = name == "Han" || name == "Hiragana" || name == "Katakana" ||
                               name == "Hangul" || name == "Latin" || name == "Cyrillic" ||
                               name == "Greek" || name == "Arabic" || name == "Thai";
        out += std::string("\\") + kind + (is_script ? "{sc:" : "{") + std::string(name) + "}";
        return OkStatus();
      }
      default: break;
    }
    out += '\\';
    out += kind;
    return OkStatus();
  }

  // At '['. Text of the class for PCRE2, which may be a group if it held an intersection.
  Result<std::string> Class(int depth) {
    if (depth > kMaxDepth) return BadPattern(pattern_, "classes are nested too deeply");
    ++at_;
    std::string members, excluded;  // excluded: look-aheads from the right sides of &&
    bool negated = false, after_and = false;
    if (at_ < pattern_.size() && pattern_[at_] == '^') {
      negated = true;
      ++at_;
    }
    for (bool first = true;; first = false) {
      if (at_ >= pattern_.size()) return BadPattern(pattern_, "a class is not closed");
      const char c = pattern_[at_];
      if (c == ']' && !first) break;
      if (c == '\\') {
        if (after_and) return BadPattern(pattern_, "&& must be followed by a class");
        RETURN_IF_ERROR(Escape(/*in_class=*/true, members));
      } else if (c == '&' && pattern_.substr(at_, 2) == "&&") {
        at_ += 2;
        after_and = true;
      } else if (c == '[' && pattern_.substr(at_, 2) == "[:") {
        const size_t end = pattern_.find(":]", at_);
        if (end == pattern_.npos) return BadPattern(pattern_, "a POSIX class is not closed");
        members += pattern_.substr(at_, end + 2 - at_);
        at_ = end + 2;
      } else if (c == '[') {
        ASSIGN_OR_RETURN(const std::string inner, Class(depth + 1));
        if (!after_and) return BadPattern(pattern_, "a nested class is supported only after &&");
        excluded += "(?=" + inner + ")";
        after_and = false;
      } else {
        if (after_and) return BadPattern(pattern_, "&& must be followed by a class");
        members += c;
        ++at_;
      }
    }
    ++at_;
    if (after_and) return BadPattern(pattern_, "&& must be followed by a class");
    const std::string plain = (negated ? "[^" : "[") + members + "]";
    if (excluded.empty()) return plain;
    if (negated) return BadPattern(pattern_, "a negated intersection is not supported");
    return "(?:" + excluded + plain + ")";
  }

  std::string_view pattern_;
  size_t at_ = 0;
};

struct MatchState {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
  explicit MatchState(const pcre2_code* code)
      : data(pcre2_match_data_create_from_pattern(code, nullptr)),
        context(pcre2_match_context_create(nullptr)) {
    CHECK(data != nullptr && context != nullptr, "out of memory");
    pcre2_set_match_limit(context, kMatchLimit);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
  ~MatchState() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
  // JIT code runs on 32 KiB of the thread's stack until a match needs more.
  int Match(const pcre2_code* code, std::string_view text, size_t start) {
    const auto run = [&] {
      return pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                         PCRE2_NO_UTF_CHECK, data, context);
    };
    const int result = run();
    if (result != PCRE2_ERROR_JIT_STACKLIMIT || stack != nullptr) return result;
    stack = pcre2_jit_stack_create(size_t{32} << 10, kJitStackMaxBytes, nullptr);
    if (stack == nullptr) return result;
    pcre2_jit_stack_assign(context, nullptr, stack);
    return run();
  }
};

}  // namespace

Result<std::string> RewriteForPcre2(std::string_view pattern) { return Rewriter(pattern).Run(); }

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string rewritten, RewriteForPcre2(pattern));
  // ^ and $ stand at lines in Oniguruma's dialect.
  return CompileWith(rewritten,
                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE);
}

Result<Regex> Regex::CompileLiteral(std::string_view text) {
  return CompileWith(text, PCRE2_UTF | PCRE2_LITERAL);
}

Result<Regex> Regex::CompileWith(std::string_view pattern, uint32_t options) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto code = std::make_shared<Code>();
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                             &error, &offset, nullptr);
  if (code->code == nullptr) {
    char message[256] = {};
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
    return BadPattern(pattern, std::string(message) + " at offset " + std::to_string(offset));
  }
  // Where JIT is not available (hardened kernels forbid executable pages) the interpreter runs.
  (void)pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE);
  return Regex(std::shared_ptr<const Code>(std::move(code)));
}

Status Regex::ForEachMatch(std::string_view text,
                           const std::function<void(size_t, size_t)>& on_match) const {
  MatchState state(code_->code);
  size_t start = 0;
  while (start < text.size()) {
    const int result = state.Match(code_->code, text, start);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      char message[256] = {};
      pcre2_get_error_message(result, reinterpret_cast<PCRE2_UCHAR*>(message), sizeof(message));
      return ResourceExhausted("pre-tokenizer pattern at byte " + std::to_string(start) +
                               " of the text: " + message);
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(state.data);
    // \K in a look-ahead can put the start behind the end; such a match is as good as empty.
    if (offsets[1] > offsets[0] && offsets[0] >= start) {
      on_match(offsets[0], offsets[1]);
      start = offsets[1];
    } else {
      const size_t from = std::max<size_t>(start, offsets[1]);
      if (from >= text.size()) break;
      start = from + NextUtf8(text.substr(from)).length;
    }
  }
  return OkStatus();
}

}  // namespace moraine
