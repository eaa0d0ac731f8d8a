#include "model/constraint/pattern.h"

#include <gtest/gtest.h>

#include "constraint_test_support.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

TEST(PatternTest, TextsInsideAJsonString) {
  struct Case {
    const char* pattern;
    std::vector<std::string> accepted, refused;
  };
  const Case cases[] = {
      {"^abc$", {"abc"}, {"ab", "abcd", "xabc", ""}},
      {"abc", {"abc", "xabcx", "ababc"}, {"ab", ""}},
      {"^a", {"a", "ab"}, {"ba"}},
      {"a$", {"a", "ba"}, {"ab"}},
      {"^a|b$", {"a", "ax", "xb"}, {"xa", "bx"}},
      {"^(a|bc)*$", {"", "a", "bcabc"}, {"b", "ac"}},
      {"^a{2}b{1,2}c{3,}$", {"aabccc", "aabbcccc"}, {"abccc", "aabbbccc", "aabcc"}},
      {"^a+?b*?c??$", {"a", "aabbc"}, {"", "b"}},
      {R"(^\d\D\w\W\s\S$)", {"1aa- b"}, {"aaa- b", "1aa-bb"}},
      {R"(^[a-cx\-\]]$)", {"a", "x", "-", "]"}, {"d", "y"}},
      {"^[^a-z]$", {"A", "é", "1", R"(\")", R"(\n)"}, {"a", "z", "\""}},
      {"^.$", {"a", "é", "😀", R"(\\)", R"(\t)"}, {"", "aa", R"(\n)"}},
      {R"(^"\\/\n$)", {R"(\"\\/\n)"}, {R"("\/)"}},
      {R"(^\x41\u00e9\.$)", {"Aé."}, {"Aéx"}},
      {"^[à-ü]+$", {"éü"}, {"ý", "e"}},
      {"^[\xE0\xA4\x80-\xF0\x9F\x98\x80]$", {"ऀ", "一", "😀", "𐀀"}, {"😁", "a"}},
      {"^(?:a(?<name>b))$", {"ab"}, {"a"}},
      {"^$", {""}, {"a"}},
      {"^(ab?){0,3}$", {"", "aba", "aaa"}, {"aaaa"}},
      {"^(a?)*b$", {"b", "aab"}, {"a"}},
  };
  for (const Case& c : cases) {
    const auto expression = CompilePattern(c.pattern);
    ASSERT_TRUE(expression.ok()) << c.pattern << ": " << expression.status().ToString();
    const auto grammar = GrammarOf(*expression);
    for (const std::string& text : c.accepted) EXPECT_TRUE(Matches(grammar, text)) << c.pattern << " " << text;
    for (const std::string& text : c.refused) EXPECT_FALSE(Matches(grammar, text)) << c.pattern << " " << text;
  }
}

TEST(PatternTest, WhatIsNotRegularIsRefused) {
  const std::pair<const char*, StatusCode> cases[] = {
      {"(?=a)", StatusCode::kUnsupported},    {"(?<!a)b", StatusCode::kUnsupported},
      {R"((a)\1)", StatusCode::kUnsupported}, {R"(\bword\b)", StatusCode::kUnsupported},
      {R"(\p{L})", StatusCode::kUnsupported}, {"a^b", StatusCode::kUnsupported},
      {"(a?){2,9}", StatusCode::kUnsupported}, {"a$b", StatusCode::kUnsupported},      {"a{2000}", StatusCode::kUnsupported},
      {"(a", StatusCode::kInvalidArgument},   {"a)", StatusCode::kInvalidArgument},
      {"[a", StatusCode::kInvalidArgument},   {"*", StatusCode::kInvalidArgument},
      {"[b-a]", StatusCode::kInvalidArgument}, {"a{3,2}", StatusCode::kInvalidArgument},
      {"\\", StatusCode::kInvalidArgument},   {R"(\u12)", StatusCode::kInvalidArgument},
      {"[]", StatusCode::kInvalidArgument},
  };
  for (const auto& [pattern, code] : cases) {
    const auto expression = CompilePattern(pattern);
    ASSERT_FALSE(expression.ok()) << pattern;
    EXPECT_EQ(expression.status().code(), code) << pattern << ": " << expression.status().ToString();
  }
  EXPECT_FALSE(CompilePattern(std::string(100, '(') + std::string(100, ')')).ok());
}

// Every boundary of UTF-8's lengths, in sets of all kinds.
TEST(PatternTest, SetsOfCharacters) {
  const uint32_t edges[] = {0x20, 0x7E, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF,
                            0xE000, 0xFFFD, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF};
  for (const uint32_t first : edges) {
    for (const uint32_t last : edges) {
      if (last < first) continue;
      const CodePointSet set = ComplementOf(ComplementOf({{first, last}}));
      const auto grammar = GrammarOf(CharacterOf(set));
      for (const uint32_t edge : edges) {
        for (const uint32_t c : {edge - 1, edge, edge + 1}) {
          if ((c >= 0xD800 && c <= 0xDFFF) || c > 0x10FFFF) continue;
          std::string text;
          AppendUtf8(c, text);
          ASSERT_EQ(Matches(grammar, text), c >= first && c <= last)
              << std::hex << c << " in " << first << ".." << last;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moraine
