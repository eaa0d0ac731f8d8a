#include "model/constraint/token_constraint.h"

#include <gtest/gtest.h>

#include <random>

#include "constraint_test_support.h"

namespace moraine {
namespace {

std::vector<int32_t> Allowed(TokenConstraint& constraint) {
  std::vector<int32_t> tokens;
  const auto words = constraint.AllowedTokens();
  for (size_t token = 0; token < words.size() * 64; ++token) {
    if (words[token / 64] >> (token % 64) & 1) tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

std::shared_ptr<const TokenTrie> Trie(std::vector<std::string> tokens) {
  std::vector<std::pair<std::string, int32_t>> pairs;
  for (size_t i = 0; i < tokens.size(); ++i) pairs.emplace_back(tokens[i], static_cast<int32_t>(i));
  return std::make_shared<const TokenTrie>(std::move(pairs), static_cast<uint32_t>(tokens.size() + 1));
}

// The trie's walk must agree with trying every token by itself, in every state that is met.
TEST(TokenConstraintTest, MasksAreWhatTokensOneByOneSay) {
  std::mt19937 random(7);
  std::vector<std::string> tokens;
  const std::string alphabet = "{}[]\",:ab1 \n\\u\xC3\xA9";
  for (int i = 0; i < 400; ++i) {
    std::string token;
    for (uint32_t n = 0; n <= random() % 5; ++n) token += alphabet[random() % alphabet.size()];
    tokens.push_back(token);  // some come twice
  }
  for (const char c : alphabet) tokens.emplace_back(1, c);
  for (const char* word : {"true", "null", "\"a\":", "{\"a\": 1"}) tokens.push_back(word);
  const int32_t end = static_cast<int32_t>(tokens.size());
  const auto trie = Trie(tokens);
  const auto grammar = GrammarOfSchema(
      R"({"type":"object","additionalProperties":{"type":["string","array","integer"]}})");
  for (int round = 0; round < 6; ++round) {
    TokenConstraint constraint(grammar, trie, {end});
    for (int step = 0; step < 30 && !constraint.must_end(); ++step) {
      std::vector<int32_t> expected;
      for (int32_t token = 0; token < end; ++token) {
        TokenConstraint copy = constraint;
        if (copy.Accept(token)) expected.push_back(token);
      }
      if (constraint.can_end()) expected.push_back(end);
      const std::vector<int32_t> allowed = Allowed(constraint);
      ASSERT_EQ(allowed, expected) << "round " << round << ", step " << step;
      const int32_t token = allowed[random() % allowed.size()];
      if (token == end) break;
      ASSERT_TRUE(constraint.Accept(token));
    }
  }
}

TEST(TokenConstraintTest, TheEndIsAllowedWhereTheTextIsWhole) {
  const auto grammar = GrammarOf(Sequence({Literal("ab"), Repeat(Literal("c"), 0, 2)}));
  TokenConstraint constraint(grammar, Trie({"a", "b", "ab", "c", "cc", "ccc", "x"}), {7});
  EXPECT_EQ(Allowed(constraint), (std::vector<int32_t>{0, 2}));
  EXPECT_FALSE(constraint.Accept(6));
  EXPECT_FALSE(constraint.Accept(7));
  ASSERT_TRUE(constraint.Accept(2));
  EXPECT_EQ(Allowed(constraint), (std::vector<int32_t>{3, 4, 7}));
  EXPECT_TRUE(constraint.can_end() && !constraint.must_end());
  ASSERT_TRUE(constraint.Accept(4));
  EXPECT_TRUE(constraint.must_end());
  EXPECT_EQ(Allowed(constraint), (std::vector<int32_t>{7}));
}

TEST(TokenConstraintTest, SpecialTokensOnlyWhereTheGrammarNamesThem) {
  const std::string special = std::string(1, kSpecialTokenByte) + "<|end|>";
  const auto grammar = GrammarOf(Sequence({Until("</think>"), Literal(special), Literal("x")}));
  TokenConstraint constraint(grammar, Trie({special, "<|end|>", "a</thi", "nk>", "</think>x", "x"}), {6});
  EXPECT_EQ(Allowed(constraint), (std::vector<int32_t>{1, 2, 3, 5}));
  ASSERT_TRUE(constraint.Accept(2) && constraint.Accept(3));
  EXPECT_EQ(Allowed(constraint), (std::vector<int32_t>{0}));
}

TEST(TokenConstraintTest, UntilFindsTheFirstMark) {
  const auto grammar = GrammarOf(Sequence({Until("aab"), Literal("!")}));
  EXPECT_TRUE(Matches(grammar, "aab!"));
  EXPECT_TRUE(Matches(grammar, "aaab!"));
  EXPECT_TRUE(Matches(grammar, "xaxaaaab!"));
  EXPECT_FALSE(Matches(grammar, "aab aab!"));
  EXPECT_FALSE(Matches(grammar, "aa!"));
}

// A counted list is one state an element, and forgetting them changes nothing.
TEST(TokenConstraintTest, StatesAreForgotten) {
  const auto grammar = GrammarOfSchema(
      R"({"type":"array","items":{"type":"array","items":{"enum":[1]}},"maxItems":90000})");
  TokenConstraint constraint(grammar, ByteTrie(), {255});
  ASSERT_TRUE(constraint.AcceptBytes("["));
  for (int i = 0; i < 30000; ++i) {
    ASSERT_TRUE(constraint.AcceptBytes(i == 0 ? "[1" : ",[1"));
    (void)constraint.AllowedTokens();
    ASSERT_LE(constraint.state_count(), TokenConstraint::kMaxStates + 64);
    ASSERT_TRUE(constraint.AcceptBytes("]"));
  }
  ASSERT_TRUE(constraint.AcceptBytes("]"));
  EXPECT_TRUE(constraint.must_end());
}

// What has too many readings is cut or given up, in bounded time, and never wrong.
TEST(TokenConstraintTest, AmbiguityIsBounded) {
  const Expression a = Literal("a");
  const auto grammar = GrammarOf(Repeat(Repeat(Repeat(a, 1, 900), 1, 900), 1, 900));
  std::vector<std::pair<std::string, int32_t>> tokens;
  for (int32_t n = 1; n <= 60; ++n) tokens.emplace_back(std::string(static_cast<size_t>(n), 'a'), n);
  TokenConstraint constraint(grammar, std::make_shared<const TokenTrie>(tokens, 61), {0});
  size_t count = 0;
  while (count < 5000 && !constraint.too_complex()) {
    const std::vector<int32_t> allowed = Allowed(constraint);
    EXPECT_EQ(constraint.too_complex(), allowed.empty());
    if (allowed.empty()) break;
    ASSERT_TRUE(constraint.Accept(allowed.back()));
    count += static_cast<size_t>(allowed.back());
  }
  EXPECT_GT(count, 0u);
}

TEST(TokenConstraintTest, NestingIsBounded) {
  const auto grammar = GrammarOfSchema("{}");
  TokenConstraint constraint(grammar, ByteTrie(), {255});
  int depth = 0;
  while (depth < 10'000 && constraint.AcceptBytes("[")) ++depth;
  EXPECT_GT(depth, 100);
  EXPECT_LT(depth, 1000);
  for (int i = 0; i < depth; ++i) ASSERT_TRUE(constraint.AcceptBytes("]")) << i;
  EXPECT_TRUE(constraint.must_end());
}

}  // namespace
}  // namespace moraine
