// The metadata that llama.cpp's converter makes of the demo model's tokenizer becomes the same
// tokenizer again.
#include "model/tokenizer/gguf_tokenizer.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "model/tokenizer/tokenizer.h"
#include "toy_tokenizer.h"

namespace moraine {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json ReadJson(const std::string& path) {
  std::ifstream file(std::string(MORAINE_SOURCE_DIR "/") + path);
  return json::parse(file);
}

json DemoMetadata() {
  const json tokenizer = ReadJson("models/demo/tokenizer.json");
  std::vector<std::string> tokens(4096), merges;
  std::vector<int> types(4096, 5);
  for (const auto& [text, id] : tokenizer["model"]["vocab"].items()) {
    tokens[id.get<size_t>()] = text;
    types[id.get<size_t>()] = 1;
  }
  for (const json& token : tokenizer["added_tokens"]) {
    tokens[token["id"].get<size_t>()] = token["content"];
    types[token["id"].get<size_t>()] = 3;
  }
  for (const json& merge : tokenizer["model"]["merges"]) {
    merges.push_back(merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  return {{"tokenizer.ggml.model", "gpt2"},
          {"tokenizer.ggml.pre", "qwen2"},
          {"tokenizer.ggml.tokens", tokens},
          {"tokenizer.ggml.token_type", types},
          {"tokenizer.ggml.merges", merges},
          {"tokenizer.ggml.eos_token_id", 4095},
          {"tokenizer.ggml.add_bos_token", false},
          {"tokenizer.chat_template", "{{ messages }}"}};
}

Result<Tokenizer> Load(const json& metadata) {
  ASSIGN_OR_RETURN(const TokenizerFiles files, TokenizerFromGguf(metadata.dump(), "a.gguf"));
  return Tokenizer::FromContents(files.tokenizer_json, files.tokenizer_config_json);
}

TEST(GgufTokenizer, ReproducesEveryGoldenVector) {
  const Result<Tokenizer> tokenizer = Load(DemoMetadata());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const json vectors = ReadJson("tests/golden/demo/tokenizer_vectors.json");
  ASSERT_EQ(vectors.size(), 80u);
  for (const json& vector : vectors) {
    const auto text = vector["text"].get<std::string>();
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    const auto encoded = tokenizer->Encode(text, {.add_special_tokens = false});
    ASSERT_TRUE(encoded.ok());
    EXPECT_EQ(*encoded, ids) << text;
    EXPECT_EQ(tokenizer->Decode(ids), vector["decoded"].get<std::string>());
  }
  EXPECT_EQ(tokenizer->vocab_size(), 4096);
  EXPECT_THAT(tokenizer->eos_ids(), ElementsAre(4095));
  EXPECT_TRUE(tokenizer->IsSpecial(4094));
  EXPECT_EQ(tokenizer->config().chat_template, "{{ messages }}");
  EXPECT_EQ(tokenizer->config().add_bos_token, false);
}

TEST(GgufTokenizer, UserDefinedTokensAreMatchedButNotSpecialAndUnusedOnesAreHoles) {
  json metadata = DemoMetadata();
  metadata["tokenizer.ggml.tokens"].insert(metadata["tokenizer.ggml.tokens"].end(),
                                           {"<think>", "[PAD4097]"});
  metadata["tokenizer.ggml.token_type"].insert(metadata["tokenizer.ggml.token_type"].end(), {4, 5});
  const Result<Tokenizer> tokenizer = Load(metadata);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  EXPECT_THAT(*tokenizer->Encode("<think>"), ElementsAre(4096));
  EXPECT_FALSE(tokenizer->IsSpecial(4096));
  EXPECT_EQ(tokenizer->TokenToId("[PAD4097]"), std::nullopt);
}

TEST(GgufTokenizer, GenerationEndsWhereLlamaCppEndsIt) {
  json metadata = DemoMetadata();
  metadata["tokenizer.ggml.eot_token_id"] = 7;
  const auto files = TokenizerFromGguf(metadata.dump(), "a.gguf");
  ASSERT_TRUE(files.ok());
  const json generation = json::parse(files->generation_config_json);
  EXPECT_EQ(generation["eos_token_id"], json({4095, 7, 4093}));  // eos, eot, <|endoftext|>
}

// What each name cuts a text into, for a vocabulary of single bytes and of the words that are expected.
std::vector<std::string> CutBy(const std::string& pre, const std::string& text,
                               const std::vector<std::string>& words) {
  std::vector<std::string> tokens, merges;
  std::vector<int> types;
  const auto add = [&](const std::string& token) {
    if (std::find(tokens.begin(), tokens.end(), token) != tokens.end()) return;
    tokens.push_back(token);
    types.push_back(1);
  };
  for (int byte = 0; byte < 256; ++byte) add(SpellByte(byte));
  for (const std::string& word : words) {
    std::string joined;
    for (const char c : word) {
      const std::string spelling = SpellByte(static_cast<uint8_t>(c));
      if (!joined.empty()) merges.push_back(joined + " " + spelling);
      joined += spelling;
      add(joined);
    }
  }
  const Result<Tokenizer> tokenizer = Load({{"tokenizer.ggml.model", "gpt2"},
                                            {"tokenizer.ggml.pre", pre},
                                            {"tokenizer.ggml.tokens", tokens},
                                            {"tokenizer.ggml.token_type", types},
                                            {"tokenizer.ggml.merges", merges},
                                            {"tokenizer.ggml.add_bos_token", false}});
  CHECK(tokenizer.ok(), tokenizer.status().ToString());
  std::vector<std::string> pieces;
  const auto ids = tokenizer->Encode(text);
  for (const int32_t id : *ids) pieces.emplace_back(tokenizer->TokenBytes(id));
  return pieces;
}

TEST(GgufTokenizer, EachNameCutsTextAsItsModelsDo) {
  const auto expect = [](const char* pre, const std::string& text,
                         const std::vector<std::string>& words) {
    EXPECT_EQ(CutBy(pre, text, words), words) << pre;
  };
  expect("gpt-2", "It's 1234  x_y", {"It", "'s", " 1234", " ", " x", "_", "y"});
  expect("olmo", "It's 1234\n\nx", {"It", "'s", " 1234", "\n", "\n", "x"});
  for (const char* pre : {"qwen2", "deepseek-r1-qwen"}) {
    expect(pre, "It'S (so) 12\n\nन्", {"It", "'S", " (", "so", ")", " ", "1", "2", "\n\n", "न", "्"});
  }
  expect("qwen35", "12 न्", {"1", "2", " न्"});
  for (const char* pre : {"llama-bpe", "llama3", "glm4", "chatglm-bpe"}) {
    expect(pre, "It'LL 12345", {"It", "'LL", " ", "123", "45"});
  }
  for (const char* pre : {"gpt-4o", "minimax-m2"}) {
    expect(pre, "camelCase's 1234 //\n漢字Ab", {"camel", "Case's", " ", "123", "4", " //\n", "漢字", "Ab"});
  }
  expect("kimi-k2", "camelCase's 1234 //\n漢字Ab、",
         {"camel", "Case's", " ", "123", "4", " //\n", "漢字", "Ab", "、"});
  expect("deepseek-llm", " one, 12\n中文 é", {" one", ",", " ", "1", "2", "\n", "中文", " é"});
  expect("deepseek-v3", "x1234中文字 yes!\n  z",
         {"x", "123", "4", "中文字", " yes", "!\n", " ", " z"});
}

TEST(GgufTokenizer, NamesDecideOnBosUnlessTheFileDoes) {
  json metadata = DemoMetadata();
  metadata["tokenizer.ggml.pre"] = "llama-bpe";
  metadata["tokenizer.ggml.bos_token_id"] = 4094;
  EXPECT_THAT(*Load(metadata)->Encode(""), ElementsAre());
  metadata.erase("tokenizer.ggml.add_bos_token");
  EXPECT_THAT(*Load(metadata)->Encode(""), ElementsAre(4094));
  metadata["tokenizer.ggml.pre"] = "glm4";
  EXPECT_THAT(*Load(metadata)->Encode(""), ElementsAre());
}

TEST(GgufTokenizer, NamedChatTemplates) {
  json metadata = DemoMetadata();
  metadata["tokenizer.chat_templates"] = {"tool_use", "rag"};
  metadata["tokenizer.chat_template.tool_use"] = "{{ tools }}";
  const Result<Tokenizer> tokenizer = Load(metadata);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  EXPECT_EQ(tokenizer->config().chat_template, "{{ messages }}");
  EXPECT_EQ(tokenizer->config().tool_use_template, "{{ tools }}");
  metadata["tokenizer.chat_template.tool_use"] = 5;
  EXPECT_THAT(Load(metadata).status().message(),
              HasSubstr("'tokenizer.chat_template.tool_use' is 5, expected a string"));
  metadata["tokenizer.chat_templates"] = "tool_use";
  EXPECT_THAT(Load(metadata).status().message(), HasSubstr("expected an array of strings"));
}

TEST(GgufTokenizer, ErrorsNameFileKeyFoundAndExpected) {
  const auto expect = [](const char* key, const json& value, StatusCode code,
                         const char* message) {
    json metadata = DemoMetadata();
    if (value.is_null()) {
      metadata.erase(key);
    } else {
      metadata[key] = value;
    }
    const Status status = TokenizerFromGguf(metadata.dump(), "a.gguf").status();
    EXPECT_EQ(status.code(), code) << status.ToString();
    EXPECT_THAT(status.message(), HasSubstr("a.gguf: metadata"));
    EXPECT_THAT(status.message(), HasSubstr(message));
  };
  expect("tokenizer.ggml.model", nullptr, StatusCode::kNotFound, "no tokenizer");
  expect("tokenizer.ggml.model", "llama", StatusCode::kUnsupported,
         "'tokenizer.ggml.model' is \"llama\", supported: \"gpt2\"");
  expect("tokenizer.ggml.pre", "tekken", StatusCode::kUnsupported,
         "'tokenizer.ggml.pre' is \"tekken\", supported: \"gpt-2\", \"olmo\", \"qwen2\"");
  expect("tokenizer.ggml.tokens", json::array({1}), StatusCode::kInvalidArgument,
         "expected an array of strings");
  expect("tokenizer.ggml.token_type", json::array({1}), StatusCode::kInvalidArgument,
         "is an array of 1, expected an array of 4096");
  expect("tokenizer.ggml.merges", nullptr, StatusCode::kInvalidArgument, "is missing");
  expect("tokenizer.ggml.eos_token_id", 4096, StatusCode::kInvalidArgument,
         "is 4096, expected an id below 4096");
  json metadata = DemoMetadata();
  metadata["tokenizer.ggml.tokens"][1] = metadata["tokenizer.ggml.tokens"][0];
  EXPECT_THAT(TokenizerFromGguf(metadata.dump(), "a.gguf").status().message(),
              HasSubstr("expected different strings: 1 is '!' as 0 is"));
}

}  // namespace
}  // namespace moraine
