// Patterns in the style of the published families, cut by hand.
#include "model/tokenizer/pre_tokenizer.h"

#include <gmock/gmock.h>

namespace moraine {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Cut(const std::string& json, std::string text) {
  simdjson::dom::parser parser;
  simdjson::dom::element element;
  CHECK(parser.parse(json).get(element) == simdjson::SUCCESS, json);
  Result<PreTokenizer> pre_tokenizer = PreTokenizer::FromJson(element, "pre_tokenizer");
  CHECK(pre_tokenizer.ok(), pre_tokenizer.status().ToString());
  std::vector<TextSpan> spans;
  const Status status = pre_tokenizer->Apply(text, spans);
  CHECK(status.ok(), status.ToString());
  std::vector<std::string> words;
  for (const TextSpan span : spans) words.push_back(text.substr(span.begin, span.end - span.begin));
  return words;
}

std::string Sequence(const std::string& steps) {
  return R"({"type":"Sequence","pretokenizers":[)" + steps +
         R"(,{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
}

std::string Split(const std::string& pattern, const std::string& behavior, bool invert = false) {
  return R"({"type":"Split","pattern":)" + pattern + R"(,"behavior":")" + behavior +
         R"(","invert":)" + (invert ? "true}" : "false}");
}

TEST(PreTokenizer, Behaviors) {
  const auto cut = [](const std::string& behavior, bool invert) {
    return Cut(Sequence(Split(R"({"String":"-"})", behavior, invert)), "a--b-c");
  };
  EXPECT_THAT(cut("Isolated", false), ElementsAre("a", "-", "-", "b", "-", "c"));
  EXPECT_THAT(cut("Removed", false), ElementsAre("a", "b", "c"));
  EXPECT_THAT(cut("Removed", true), ElementsAre("-", "-", "-"));
  EXPECT_THAT(cut("Contiguous", false), ElementsAre("a", "--", "b", "-", "c"));
  EXPECT_THAT(cut("MergedWithPrevious", false), ElementsAre("a-", "-", "b-", "c"));
  EXPECT_THAT(cut("MergedWithNext", false), ElementsAre("a", "-", "-b", "-c"));
}

TEST(PreTokenizer, Gpt2RegexAndPrefixSpace) {
  const std::string json = R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":true})";
  EXPECT_THAT(Cut(json, "I'm  here 42!"), ElementsAre(" I", "'m", " ", " here", " 42", "!"));
  EXPECT_THAT(Cut(json, " x"), ElementsAre(" x"));
  EXPECT_THAT(Cut(json, ""), ElementsAre());
}

TEST(PreTokenizer, DigitsAndPunctuation) {
  EXPECT_THAT(Cut(Sequence(R"({"type":"Digits","individual_digits":true})"), "a12"),
              ElementsAre("a", "1", "2"));
  EXPECT_THAT(Cut(Sequence(R"({"type":"Digits","individual_digits":false})"), "a12b"),
              ElementsAre("a", "12", "b"));
  EXPECT_THAT(Cut(Sequence(R"({"type":"Punctuation"})"), "a$、b"), ElementsAre("a", "$", "、", "b"));
}

TEST(PreTokenizer, ThreeSplitsInARow) {
  // As DeepSeek-V3: groups of digits, then CJK runs, then words.
  const std::string json = Sequence(
      Split(R"({"Regex":"\\p{N}{1,3}"})", "Isolated") + "," +
      Split(R"({"Regex":"[一-龥぀-ゟ゠-ヿ]+"})", "Isolated") + "," +
      Split(R"({"Regex":"[!-/:-~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"})",
            "Isolated"));
  EXPECT_THAT(Cut(json, "x1234中文字 yes!\n  z"),
              ElementsAre("x", "123", "4", "中文字", " yes", "!\n", " ", " z"));
}

TEST(PreTokenizer, O200kCaseBoundaries) {
  const std::string json = Sequence(Split(
      R"({"Regex":"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"})",
      "Isolated"));
  EXPECT_THAT(Cut(json, "camelCase HTTPServer's 2025/x"),
              ElementsAre("camel", "Case", " HTTPServer's", " ", "202", "5", "/x"));
}

TEST(Regex, RewritesWhatTheDialectsReadDifferently) {
  const auto rewrite = [](std::string_view pattern) {
    Result<std::string> result = RewriteForPcre2(pattern);
    return result.ok() ? *result : "error: " + result.status().message();
  };
  EXPECT_EQ(rewrite(R"(\s+(?!\S))"), R"(\p{White_Space}+(?!\P{White_Space}))");
  EXPECT_EQ(rewrite(R"([^\s\d\w])"),
            R"([^\p{White_Space}\p{Nd}\p{Alphabetic}\p{M}\p{Nd}\p{Pc}])");
  EXPECT_EQ(rewrite(R"(\h[\h_]\H)"), "[0-9A-Fa-f][0-9A-Fa-f_][^0-9A-Fa-f]");
  EXPECT_EQ(rewrite(R"([\p{Han}]\P{Han}\p{L})"), R"([\p{sc:Han}]\P{sc:Han}\p{L})");
  EXPECT_EQ(rewrite(R"([\p{L}&&[^\p{Han}]]+)"), R"((?:(?=[^\p{sc:Han}])[\p{L}])+)");
  EXPECT_EQ(rewrite(R"(\\s\[[\]\[])"), R"(\\s\[[\]\[])");
  EXPECT_THAT(rewrite("a\\"), ::testing::HasSubstr("ends in a backslash"));
  EXPECT_THAT(rewrite("[a[b]]"), ::testing::HasSubstr("only after &&"));
}

TEST(PreTokenizer, NextLineIsWhiteSpaceAndHanIsAScript) {
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"\\s+"})", "Removed")), "a\u0085b"),
              ElementsAre("a", "b"));
  // U+3001 has Han among its script extensions, but its script is Common.
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"\\p{Han}+"})", "Isolated")), "中、文"),
              ElementsAre("中", "、", "文"));
  // Kimi's class: letters but not Han.
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"[\\p{L}&&[^\\p{Han}]]+"})", "Isolated")), "ab中c"),
              ElementsAre("ab", "中", "c"));
}

TEST(PreTokenizer, AnchorsStandAtLinesAndWordsAreUnicode) {
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"^.+?$"})", "Isolated")), "ab\ncd"),
              ElementsAre("ab", "\n", "cd"));
  // Letter numbers are words, and so are superscripts, outside of classes.
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"\\b\\w+\\b"})", "Isolated")), "Ⅷx²-é"),
              ElementsAre("Ⅷx²", "-", "é"));
  EXPECT_THAT(Cut(Sequence(Split(R"({"Regex":"[\\w]+"})", "Isolated")), "Ⅷ²"), ElementsAre("Ⅷ", "²"));
}

TEST(Normalizer, ACapitalIWithADotBecomesTwoCharacters) {
  simdjson::dom::parser parser;
  const std::string json = R"({"type":"Lowercase"})";
  const Result<Normalizer> normalizer = Normalizer::FromJson(parser.parse(json).value(), "normalizer");
  ASSERT_TRUE(normalizer.ok());
  EXPECT_EQ(*normalizer->Apply("AİÉ"), "ai\u0307é");
}

TEST(PreTokenizer, ACatastrophicPatternEndsWithAStatus) {
  simdjson::dom::parser parser;
  const std::string json = Sequence(Split(R"({"Regex":"(a+)+$"})", "Isolated"));
  simdjson::dom::element element = parser.parse(json).value();
  Result<PreTokenizer> pre_tokenizer = PreTokenizer::FromJson(element, "pre_tokenizer");
  ASSERT_TRUE(pre_tokenizer.ok());
  std::string text = std::string(40, 'a') + "!";
  std::vector<TextSpan> spans;
  EXPECT_EQ(pre_tokenizer->Apply(text, spans).code(), StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace moraine
