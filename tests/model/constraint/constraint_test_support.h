// Whole texts against a grammar, byte by byte.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "model/constraint/json_grammar.h"
#include "model/constraint/token_constraint.h"

namespace moraine {

// A token for each byte.
inline std::shared_ptr<const TokenTrie> ByteTrie() {
  static const auto kTrie = [] {
    std::vector<std::pair<std::string, int32_t>> tokens;
    for (int byte = 0; byte < 255; ++byte) {
      tokens.emplace_back(std::string(1, static_cast<char>(byte)), byte);
    }
    return std::make_shared<const TokenTrie>(std::move(tokens), 256);
  }();
  return kTrie;
}

inline bool Matches(const std::shared_ptr<const Grammar>& grammar, std::string_view text) {
  TokenConstraint constraint(grammar, ByteTrie(), {255});
  return constraint.AcceptBytes(text) && constraint.can_end();
}

inline std::shared_ptr<const Grammar> GrammarOf(const Expression& expression) {
  auto grammar = Grammar::Build({expression}, 0);
  EXPECT_TRUE(grammar.ok()) << grammar.status().ToString();
  return std::make_shared<const Grammar>(std::move(*grammar));
}

inline std::shared_ptr<const Grammar> GrammarOfSchema(const std::string& schema) {
  JsonGrammar json;
  auto expression = json.Schema(nlohmann::ordered_json::parse(schema), "schema");
  EXPECT_TRUE(expression.ok()) << schema << ": " << expression.status().ToString();
  if (!expression.ok()) return GrammarOf(Literal("?"));
  auto grammar = std::move(json).Build(*expression);
  EXPECT_TRUE(grammar.ok()) << grammar.status().ToString();
  return std::make_shared<const Grammar>(std::move(*grammar));
}

// A text of the grammar: bytes picked from the masks, and its end as soon as a coin says so. Fails if the masks
// lead to where nothing goes on.
inline std::string RandomText(const std::shared_ptr<const Grammar>& grammar, std::mt19937* random) {
  TokenConstraint constraint(grammar, ByteTrie(), {255});
  std::string text;
  while (!constraint.must_end() && text.size() < 1000) {
    if (constraint.can_end() && (*random)() % 4 == 0) return text;
    const auto allowed = constraint.AllowedTokens();
    std::vector<int32_t> tokens;
    for (int32_t token = 0; token < 255; ++token) {
      if (allowed[static_cast<size_t>(token / 64)] >> (token % 64) & 1) tokens.push_back(token);
    }
    EXPECT_FALSE(tokens.empty()) << "stuck behind " << text;
    if (tokens.empty()) return text;
    const int32_t token = tokens[(*random)() % tokens.size()];
    EXPECT_TRUE(constraint.Accept(token));
    text += static_cast<char>(token);
  }
  EXPECT_TRUE(constraint.can_end()) << text;
  return text;
}

}  // namespace moraine
