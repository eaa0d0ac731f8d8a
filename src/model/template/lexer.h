// Template source to tokens, with Jinja's whitespace rules (trim_blocks and lstrip_blocks are on).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/template/value.h"

namespace moraine::jinja {

enum class TokenKind {
  kText,                      // literal output
  kOutputBegin, kOutputEnd,   // {{ }}
  kTagBegin, kTagEnd,         // {% %}
  kName, kString, kInteger, kFloat,
  kOperator,                  // text is the operator
  kEnd,
};

struct Token {
  TokenKind kind;
  int line;
  std::string text;
  int64_t integer = 0;
  double number = 0;
};

// Throws Error with a line.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace moraine::jinja
