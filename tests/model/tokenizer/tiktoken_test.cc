// tiktoken.model and the special tokens beside it; agreement with tiktoken itself is
// tokenizer_differential_test's.
#include "model/tokenizer/tiktoken.h"

#include <gmock/gmock.h>

#include <functional>

#include "model/tokenizer/tokenizer.h"

namespace moraine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Base64(const std::string& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += j <= bytes.size() - i ? kDigits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

// All bytes (rank = byte), then `words` from rank 256 on.
std::string Model(const std::vector<std::string>& words) {
  std::string model;
  size_t rank = 0;
  const auto add = [&](const std::string& bytes) {
    model += Base64(bytes) + " " + std::to_string(rank++) + "\n";
  };
  for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
  for (const std::string& word : words) add(word);
  return model;
}

Tokenizer Load(const std::string& model, const std::string& config = "{}") {
  Result<Tokenizer> tokenizer = Tokenizer::FromTiktoken(model, config);
  CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return std::move(tokenizer).value();
}

TEST(Tiktoken, TheLeastIdMergesFirstWhateverItIsMadeOf) {
  const Tokenizer tokenizer = Load(Model({"bc", "ab", "aa", "aaa"}));
  EXPECT_THAT(*tokenizer.Encode("abc"), ElementsAre('a', 256));
  EXPECT_THAT(*tokenizer.Encode("abab"), ElementsAre(257, 257));
  // "aa" + "a" and "a" + "aa" make the same token; of equal ids the leftmost goes first.
  EXPECT_THAT(*tokenizer.Encode("aaaa"), ElementsAre(258, 258));
  EXPECT_THAT(*tokenizer.Encode("aaaaa"), ElementsAre(258, 259));
}

TEST(Tiktoken, AWordThatIsATokenIsNotMerged) {
  // No way of merging leads to "xyz".
  EXPECT_THAT(*Load(Model({"xyz"})).Encode("xyz"), ElementsAre(256));
}

TEST(Tiktoken, HanStandsForItself) {
  const Tokenizer tokenizer = Load(Model({"中文", "中文ab", "ab"}));
  EXPECT_THAT(*tokenizer.Encode("中文ab"), ElementsAre(256, 258));
}

TEST(Tiktoken, SpecialTokensAreNamedByTheConfigOrReserved) {
  const Tokenizer tokenizer = Load(Model({}), R"({"bos_token": "[BOS]", "eos_token": "[EOS]",
      "added_tokens_decoder": {"256": {"content": "[BOS]", "special": true},
                               "258": {"content": "<call>", "special": false}}})");
  EXPECT_EQ(tokenizer.vocab_size(), 512);
  EXPECT_THAT(*tokenizer.Encode("[BOS]<call><|reserved_token_257|><|reserved_token_511|>"),
              ElementsAre(256, 258, 257, 511));
  EXPECT_EQ(tokenizer.bos_id(), 256);
  EXPECT_TRUE(tokenizer.IsSpecial(256));
  EXPECT_TRUE(tokenizer.IsSpecial(257));
  EXPECT_FALSE(tokenizer.IsSpecial(258));
  EXPECT_EQ(tokenizer.Decode(std::vector<int32_t>{256, 'a', 258}, true), "a<call>");
  // What came with a request stays text.
  EXPECT_EQ(tokenizer.Encode("[BOS]", {.parse_special = false})->size(), 5u);
}

TEST(Tiktoken, ANamedTokenMayLieBehindTheReservedOnes) {
  const Tokenizer tokenizer =
      Load(Model({}), R"({"added_tokens_decoder": {"513": {"content": "<x>", "special": true}}})");
  EXPECT_EQ(tokenizer.vocab_size(), 514);
  EXPECT_THAT(*tokenizer.Encode("<x><|reserved_token_512|>"), ElementsAre(513, 512));
}

TEST(Tiktoken, TokenToIdAsTokenizerJsonSpellsIt) {
  const Tokenizer tokenizer = Load(Model({" the"}));
  EXPECT_EQ(tokenizer.TokenToId("\u0120the"), 256);
  EXPECT_EQ(tokenizer.TokenBytes(256), " the");
}

TEST(Tiktoken, BlankLinesAndWindowsLineEndsAreRead) {
  std::string model = Model({"ab"});
  for (size_t at = 0; (at = model.find('\n', at)) != model.npos; at += 3) {
    model.replace(at, 1, "\r\n\n");
  }
  EXPECT_THAT(*Load(model).Encode("ab"), ElementsAre(256));
}

TEST(Tiktoken, ErrorsNameTheLineWhatWasFoundAndWhatWasExpected) {
  const auto expect = [](const std::string& model, const std::string& config,
                         const std::string& message) {
    const Result<Tokenizer> tokenizer = Tokenizer::FromTiktoken(model, config);
    ASSERT_FALSE(tokenizer.ok()) << message;
    EXPECT_EQ(tokenizer.status().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(message));
  };
  expect("", "", "tiktoken.model: there is no token in it");
  expect("QQ== 0\nQg== 2\n", "", "line 2: \"Qg== 2\": expected rank 1");
  expect("QQ== 4000000000000\n", "", "line 1: \"QQ== 4000000000000\": expected rank 0");
  expect("QQ== -1\n", "", "expected rank 0");
  expect("QQ== 0x\n", "", "expected rank 0");
  expect("QQ==\n", "", "expected base64, a blank and a rank");
  expect(" 0\n", "", "expected base64, a blank and a rank");
  expect("Q 0\n", "", "expected base64, a blank and a rank");
  expect("Q=== 0\n", "", "expected base64, a blank and a rank");
  expect("Q*== 0\n", "", "expected base64, a blank and a rank");
  expect(Base64(std::string(5000, 'a')) + " 0\n", "", "a token is longer than 4096 bytes");
  expect("QQ== 0\n", "", "byte 0 is not a token, expected all 256");
  expect(Model({"a"}), "", "rank 256 has the bytes of rank 97");
  expect(Model({}), R"({"added_tokens_decoder": []})", "added_tokens_decoder: expected an object");
  expect(Model({}), R"({"added_tokens_decoder": {"x": {"content": "a"}}})",
         "added_tokens_decoder[\"x\"].id: expected a whole number");
  expect(Model({}), R"({"added_tokens_decoder": {"300": {}}})",
         "added_tokens_decoder[\"300\"].content: expected a string");
  for (const char* id : {"7", "2147483647"}) {
    expect(Model({}), R"({"added_tokens_decoder": {")" + std::string(id) + R"(": {"content": "a"}}})",
           "special token \"a\" of tokenizer_config.json has id " + std::string(id) +
               ", expected one from 256");
  }
}

}  // namespace
}  // namespace moraine
