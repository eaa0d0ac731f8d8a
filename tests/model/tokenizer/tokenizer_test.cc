#include "model/tokenizer/tokenizer.h"

#include <gmock/gmock.h>

#include <fstream>
#include <random>
#include <thread>

#include "toy_tokenizer.h"

namespace moraine {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

const std::string kDemo = MORAINE_SOURCE_DIR "/models/demo/";

Tokenizer DemoTokenizer() {
  Result<Tokenizer> tokenizer =
      Tokenizer::FromFiles(kDemo + "tokenizer.json", kDemo + "tokenizer_config.json");
  CHECK(tokenizer.ok(), tokenizer.status().ToString());
  return std::move(tokenizer).value();
}

std::vector<int32_t> Encoded(const Tokenizer& tokenizer, std::string_view text,
                             EncodeOptions options = {}) {
  Result<std::vector<int32_t>> ids = tokenizer.Encode(text, options);
  CHECK(ids.ok(), ids.status().ToString());
  return std::move(ids).value();
}

std::vector<int32_t> Encoded(const Tokenizer& tokenizer, const std::vector<PromptSegment>& prompt) {
  Result<std::vector<int32_t>> ids = tokenizer.EncodeSegments(prompt);
  CHECK(ids.ok(), ids.status().ToString());
  return std::move(ids).value();
}

TEST(Tokenizer, ReproducesEveryGoldenVector) {
  const Tokenizer tokenizer = DemoTokenizer();
  std::ifstream file(MORAINE_SOURCE_DIR "/tests/golden/demo/tokenizer_vectors.json");
  const auto vectors = nlohmann::json::parse(file);
  ASSERT_EQ(vectors.size(), 80u);
  for (const auto& vector : vectors) {
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(Encoded(tokenizer, text, {.add_special_tokens = false}), ids) << text;
    EXPECT_EQ(tokenizer.Decode(ids), vector["decoded"].get<std::string>());
    std::string streamed;
    StreamingDecoder decoder(&tokenizer, /*skip_special_tokens=*/false);
    for (const int32_t id : ids) streamed += decoder.Push(id);
    EXPECT_EQ(streamed + decoder.Flush(), vector["decoded"].get<std::string>());
  }
}

TEST(Tokenizer, ReadsTheConfig) {
  const Tokenizer tokenizer = DemoTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 4096);
  EXPECT_THAT(tokenizer.eos_ids(), ElementsAre(4095));
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.config().add_bos_token, false);
  EXPECT_NE(tokenizer.config().chat_template.find("<|im_start|>"), std::string::npos);
  EXPECT_TRUE(tokenizer.IsSpecial(4094));
  EXPECT_FALSE(tokenizer.IsSpecial(0));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_FALSE(tokenizer.IsSpecial(1 << 20));
  EXPECT_EQ(tokenizer.TokenToId("<|im_start|>"), 4094);
  EXPECT_EQ(tokenizer.TokenToId("no such token"), std::nullopt);
}

TEST(Tokenizer, MergesByRankThenByPosition) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson());
  EXPECT_THAT(Encoded(tokenizer, "hello"), ElementsAre(259));
  EXPECT_THAT(Encoded(tokenizer, "lll"), ElementsAre(257, 'l'));
  // "h e" outranks "Ġ h", so " hello" does not begin with token 260.
  EXPECT_THAT(Encoded(tokenizer, " hello"), ElementsAre(' ', 259));
  EXPECT_THAT(Encoded(tokenizer, " ha"), ElementsAre(260, 'a'));
}

TEST(Tokenizer, WordsFromTheCacheAreTheSame) {
  const Tokenizer tokenizer = DemoTokenizer();
  const std::string text = "The quick brown fox, 1234 times; naïve café!";
  const auto first = Encoded(tokenizer, text);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(Encoded(tokenizer, text), first);
}

TEST(Tokenizer, TakesAllAddedTokensAndTheLongest) {
  auto json = ToyTokenizerJson();
  json["added_tokens"].push_back(ToyAddedToken(303, "<|a|><|a|>", false));
  const Tokenizer tokenizer = ToyTokenizer(json);
  EXPECT_THAT(Encoded(tokenizer, "h<think>h"), ElementsAre('h', 301, 'h'));
  EXPECT_THAT(Encoded(tokenizer, "<|a|><|a|><|a|>"), ElementsAre(303, 300));
}

TEST(Tokenizer, AddedTokensSwallowSpaceAndRespectWords) {
  auto json = ToyTokenizerJson();
  auto mask = ToyAddedToken(303, "[M]", true);
  mask["lstrip"] = mask["rstrip"] = true;
  auto word = ToyAddedToken(304, "cat", false);
  word["single_word"] = true;
  json["added_tokens"].push_back(mask);
  json["added_tokens"].push_back(word);
  const Tokenizer tokenizer = ToyTokenizer(json);
  EXPECT_THAT(Encoded(tokenizer, "x \n[M]\t y"), ElementsAre('x', 303, 'y'));
  EXPECT_THAT(Encoded(tokenizer, "cat!"), ElementsAre(304, '!'));
  EXPECT_THAT(Encoded(tokenizer, "cats"), ElementsAre('c', 'a', 't', 's'));
  EXPECT_THAT(Encoded(tokenizer, "acat"), ElementsAre('a', 'c', 'a', 't'));
}

TEST(Tokenizer, NormalizedAddedTokensMatchAfterTheNormalizer) {
  auto json = ToyTokenizerJson();
  json["normalizer"] = {{"type", "Lowercase"}};
  auto token = ToyAddedToken(303, "[End]", false);
  token["normalized"] = true;
  json["added_tokens"].push_back(token);
  const Tokenizer tokenizer = ToyTokenizer(json);
  EXPECT_THAT(Encoded(tokenizer, "[eND]HELLO"), ElementsAre(303, 259));
  // A token that is not normalized must match as it is written.
  EXPECT_THAT(Encoded(tokenizer, "<THINK>").size(), 7u);
}

TEST(InputMarking, UserTextCannotForgeControlTokens) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson());
  EXPECT_THAT(Encoded(tokenizer, "<|a|>", {.parse_special = false}),
              ElementsAre('<', '|', 'a', '|', '>'));
  EXPECT_THAT(Encoded(tokenizer, {{"<|a|>", true}, {"<|a|>", false}, {"<think>", true}}),
              ElementsAre(300, '<', '|', 'a', '|', '>', 301));
  EXPECT_EQ(Encoded(tokenizer, "<think>", {.parse_special = false}).size(), 7u);
  // Neither half of a token may come from the user.
  EXPECT_EQ(Encoded(tokenizer, {{"<|a", true}, {"|>", false}}).size(), 5u);
  EXPECT_EQ(Encoded(tokenizer, {{"<|a", false}, {"|>", true}}).size(), 5u);
  // A forged beginning does not hide the real token behind it.
  EXPECT_THAT(Encoded(tokenizer, {{"<", false}, {"<|a|>", true}}), ElementsAre('<', 300));
}

TEST(InputMarking, HarmlessTextIsTokenizedAsIfJoined) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson());
  EXPECT_THAT(Encoded(tokenizer, {{"he", true}, {"llo", false}}), ElementsAre(259));
  auto json = ToyTokenizerJson();
  json["added_tokens"].push_back(ToyAddedToken(302, "  ", false));
  const Tokenizer with_blanks = ToyTokenizer(json);
  EXPECT_THAT(Encoded(with_blanks, "a  b", {.parse_special = false}), ElementsAre('a', 302, 'b'));
}

TEST(InputMarking, SurvivesNormalization) {
  auto json = ToyTokenizerJson();
  json["normalizer"] = {{"type", "NFC"}};
  auto token = ToyAddedToken(303, "<n>", false);
  token["normalized"] = true;
  json["added_tokens"].push_back(token);
  const Tokenizer tokenizer = ToyTokenizer(json);
  // "e" + U+0301 composes, which shifts everything behind it.
  EXPECT_THAT(Encoded(tokenizer, {{"e\u0301<n>", false}, {"<n>", true}}),
              ElementsAre(0xC3, 0xA9, '<', 'n', '>', 303));
  // The user's combining mark composes with the template's letter: then nothing is trusted.
  EXPECT_THAT(Encoded(tokenizer, {{"<n>e", true}, {"\u0301", false}}),
              ElementsAre('<', 'n', '>', 0xC3, 0xA9));
}

TEST(Tokenizer, IgnoreMergesTakesWholeWordsFromTheVocabulary) {
  auto json = ToyTokenizerJson();
  json["model"]["vocab"]["xyz"] = 261;
  EXPECT_THAT(Encoded(ToyTokenizer(json), "xyz"), ElementsAre('x', 'y', 'z'));
  json["model"]["ignore_merges"] = true;
  const Tokenizer tokenizer = ToyTokenizer(json);
  EXPECT_THAT(Encoded(tokenizer, "xyz"), ElementsAre(261));
  EXPECT_THAT(Encoded(tokenizer, "xyzhello").size(), 4u);  // not a word of the vocabulary: merges
}

TEST(Tokenizer, BytesOutsideTheVocabulary) {
  auto json = ToyTokenizerJson();
  json["model"]["vocab"].erase("q");
  EXPECT_THAT(Encoded(ToyTokenizer(json), "aqb"), ElementsAre('a', 'b'));
  json["model"]["vocab"]["<unk>"] = 261;
  json["model"]["unk_token"] = "<unk>";
  EXPECT_THAT(Encoded(ToyTokenizer(json), "aqqb"), ElementsAre('a', 261, 261, 'b'));
  json["model"]["fuse_unk"] = true;
  EXPECT_THAT(Encoded(ToyTokenizer(json), "aqqb"), ElementsAre('a', 261, 'b'));
  json["model"]["byte_fallback"] = true;
  json["model"]["vocab"]["<0x71>"] = 262;
  EXPECT_THAT(Encoded(ToyTokenizer(json), "aqqb"), ElementsAre('a', 262, 262, 'b'));
}

TEST(Tokenizer, MergesMayBePairs) {
  auto json = ToyTokenizerJson();
  json["model"]["merges"] = nlohmann::json::parse(R"([["h", "e"], ["l", "l"]])");
  EXPECT_THAT(Encoded(ToyTokenizer(json), "hell"), ElementsAre(256, 257));
}

TEST(Tokenizer, PostProcessorAddsTokens) {
  auto json = ToyTokenizerJson();
  json["post_processor"] = nlohmann::json::parse(R"({"type": "Sequence", "processors": [
      {"type": "ByteLevel"},
      {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<|a|>", "type_id": 0}},
                  {"Sequence": {"id": "A", "type_id": 0}}],
       "special_tokens": {"<|a|>": {"id": "<|a|>", "ids": [300]}}}]})");
  const Tokenizer tokenizer = ToyTokenizer(json);
  EXPECT_THAT(Encoded(tokenizer, "h"), ElementsAre(300, 'h'));
  EXPECT_THAT(Encoded(tokenizer, "h", {.add_special_tokens = false}), ElementsAre('h'));
}

TEST(Tokenizer, TheConfigAddsBosForLlamaFiles) {
  const auto json = ToyTokenizerJson();
  const auto encode = [&](const std::string& config) {
    return Encoded(ToyTokenizer(json, config), "h");
  };
  EXPECT_THAT(encode(R"({"bos_token":"<|a|>","add_bos_token":true})"), ElementsAre(300, 'h'));
  EXPECT_THAT(encode(R"({"bos_token":{"content":"<|a|>"},"tokenizer_class":"LlamaTokenizerFast"})"),
              ElementsAre(300, 'h'));
  EXPECT_THAT(encode(R"({"bos_token":"<|a|>","tokenizer_class":"Qwen2Tokenizer"})"),
              ElementsAre('h'));
}

TEST(Tokenizer, InvalidUtf8BecomesReplacementCharacters) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson());
  EXPECT_THAT(Encoded(tokenizer, "\xFF"), ElementsAre(0xEF, 0xBF, 0xBD));
  const std::vector<int32_t> half = {0xE2, 0x82};
  EXPECT_EQ(tokenizer.Decode(half), "\uFFFD");
  const std::vector<int32_t> bad = {'a', 0xC0, 0x80, 'b', -5, 9999};
  EXPECT_EQ(tokenizer.Decode(bad), "a\uFFFD\uFFFDb");
}

TEST(StreamingDecoder, HoldsBackHalfACharacter) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson());
  StreamingDecoder decoder(&tokenizer);
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Push(0x82), "");
  EXPECT_EQ(decoder.Push(0xAC), "€");
  EXPECT_EQ(decoder.Push(0xE2), "");
  EXPECT_EQ(decoder.Push('x'), "\uFFFDx");
  EXPECT_EQ(decoder.Push(300), "");  // special
  EXPECT_EQ(decoder.Push(0xF0), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST(StreamingDecoder, EqualsDecodeOnRandomIds) {
  const Tokenizer tokenizer = DemoTokenizer();
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> ids(20);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 300);  // mostly single bytes
    StreamingDecoder decoder(&tokenizer, false);
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string text = decoder.Push(id);
      EXPECT_EQ(ToValidUtf8(text), text);
      streamed += text;
    }
    EXPECT_EQ(streamed + decoder.Flush(), tokenizer.Decode(ids));
  }
}

// Quadratic merging of a megabyte would take hours, so finishing is the test.
TEST(Tokenizer, AMegabyteOfOneLetterIsNoDenialOfService) {
  const Tokenizer tokenizer = DemoTokenizer();
  for (const char* unit : {"a", "ab", " ", "\n", "\u0301", "e\u0316\u0301", "<", "é", "中"}) {
    std::string text;
    while (text.size() < (1u << 20)) text += unit;
    const auto ids = Encoded(tokenizer, text);
    if (std::string_view(unit)[0] == 'e') continue;  // NFC changes it
    EXPECT_EQ(tokenizer.Decode(ids), text) << unit;
  }
}

TEST(Tokenizer, AlternatingCombiningMarksAreSortedInTime) {
  const Tokenizer tokenizer = DemoTokenizer();
  std::string text = "x";
  for (int i = 0; i < 300'000; ++i) text += i % 2 ? "\u0316" : "\u0301";  // classes 220 and 230
  const std::string decoded = tokenizer.Decode(Encoded(tokenizer, text));
  EXPECT_EQ(decoded.size(), text.size());
  EXPECT_EQ(decoded.substr(0, 5), "x\u0316\u0316");
}

TEST(Tokenizer, ThreadsShareOne) {
  const Tokenizer tokenizer = DemoTokenizer();
  std::ifstream file(MORAINE_SOURCE_DIR "/tests/golden/demo/valid-chat.txt");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  text.resize(std::min<size_t>(text.size(), 20'000));
  const auto expected = Encoded(tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> same(4);
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] { same[i] = Encoded(tokenizer, text) == expected; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(same, ::testing::Each(1));
}

}  // namespace
}  // namespace moraine
