// The normalizer and the pre-tokenizer of tokenizer.json: what happens to text before BPE.
#pragma once

#include <simdjson.h>

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"
#include "model/tokenizer/regex.h"

namespace moraine {

// Thread-safe after construction.
class Normalizer {
 public:
  // `field` is the JSON path for messages. A null element is the identity.
  static Result<Normalizer> FromJson(simdjson::dom::element json, const std::string& field);
  // `text` is valid UTF-8 and so is the result.
  Result<std::string> Apply(std::string_view text) const;
  bool is_identity() const { return steps_.empty(); }

 private:
  struct UnicodeForm {
    bool compose, compatibility;
  };
  struct Lowercase {};
  struct Prepend {
    std::string text;
  };
  struct Replace {
    Regex pattern;
    std::string content;
  };
  using Step = std::variant<UnicodeForm, Lowercase, Prepend, Replace>;
  static Status Append(simdjson::dom::element json, const std::string& field, int depth,
                       std::vector<Step>& steps);
  std::vector<Step> steps_;
};

struct TextSpan {
  size_t begin, end;
};

// Thread-safe after construction.
class PreTokenizer {
 public:
  static Result<PreTokenizer> FromJson(simdjson::dom::element json, const std::string& field);
  // Split by `pattern`, each match on its own, then bytes.
  static Result<PreTokenizer> FromPattern(std::string_view pattern);
  // Cuts `text` into pre-tokens. `text` may change: add_prefix_space inserts a blank.
  Status Apply(std::string& text, std::vector<TextSpan>& spans) const;

 private:
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  struct Split {
    Regex pattern;
    Behavior behavior;
    bool invert;
  };
  struct PrefixSpace {};
  using Step = std::variant<Split, PrefixSpace>;
  static Result<Behavior> BehaviorFromJson(simdjson::dom::element json, const std::string& field);
  Status Append(simdjson::dom::element json, const std::string& field, int depth);
  Status AppendSplit(simdjson::dom::element json, const std::string& field);
  static Status Cut(const Split& split, std::string_view text, TextSpan whole,
                    std::vector<TextSpan>& spans);
  std::vector<Step> steps_;
  bool has_byte_level_ = false;
};

// Members of JSON objects with messages that name them; absent and null are the same.
Result<bool> JsonBool(simdjson::dom::element json, std::string_view key, bool fallback,
                      const std::string& field);
Result<std::string_view> JsonString(simdjson::dom::element json, std::string_view key,
                                    const std::string& field);

}  // namespace moraine
