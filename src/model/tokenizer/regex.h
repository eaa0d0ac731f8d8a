// A compiled pattern in the dialect of tokenizer.json (Oniguruma), run by PCRE2 with JIT.
//
// The dialects differ in ways that compile silently and split wrongly, so the pattern is rewritten
// first: \s and \S are Unicode White_Space (PCRE2's \s leaves out U+0085), \d, \w and \b go by Unicode
// properties, \h is a hexadecimal digit, ^ and $ stand at lines, \p{Han} is a script and not script
// extensions, and a class intersection [A&&[^B]] becomes (?:(?!B)[A]).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

// The rewritten pattern; public for its test.
Result<std::string> RewriteForPcre2(std::string_view pattern);

// Thread-safe after construction.
class Regex {
 public:
  static Result<Regex> Compile(std::string_view pattern);
  static Result<Regex> CompileLiteral(std::string_view text);

  // Calls `on_match(begin, end)` for each non-empty match in valid UTF-8 `text`, left to right.
  // kResourceExhausted if the match limit is exceeded.
  Status ForEachMatch(std::string_view text, const std::function<void(size_t, size_t)>& on_match) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  static Result<Regex> CompileWith(std::string_view pattern, uint32_t options);
  std::shared_ptr<const Code> code_;  // shared: splits of the same pattern are copied around
};

}  // namespace moraine
