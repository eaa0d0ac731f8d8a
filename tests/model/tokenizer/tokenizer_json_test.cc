// Malformed files: each gives a status that names the field.
#include <gmock/gmock.h>

#include "model/tokenizer/tokenizer.h"
#include "toy_tokenizer.h"

namespace moraine {
namespace {

using ::testing::HasSubstr;

struct BadField {
  const char* pointer;  // JSON pointer into the toy file
  const char* value;    // JSON to put there
  const char* message;
  StatusCode code = StatusCode::kInvalidArgument;
};

TEST(TokenizerJson, ErrorsNameTheField) {
  const BadField cases[] = {
      {"/model", "null", "model: expected an object"},
      {"/model/type", "\"Unigram\"", "model.type: \"Unigram\"", StatusCode::kUnsupported},
      {"/model/vocab", "[]", "model.vocab: expected an object"},
      {"/model/vocab", "{}", "model.vocab is empty"},
      {"/model/vocab/he", "-1", "model.vocab[\"he\"]"},
      {"/model/vocab/he", "1.5", "model.vocab[\"he\"]"},
      {"/model/vocab/he", "4000000000", "id 4000000000 is absurd"},
      {"/model/vocab/he", "99999999999999999999", "model.vocab[\"he\"]"},
      {"/model/merges", "3", "model.merges: expected an array"},
      {"/model/merges/0", "\"nospace\"", "model.merges[0]"},
      {"/model/merges/0", "[\"h\"]", "model.merges[0]"},
      {"/model/merges/1", "\"x y\"", "\"xy\" is not in model.vocab"},
      {"/model/continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix",
       StatusCode::kUnsupported},
      {"/model/dropout", "0.1", "model.dropout", StatusCode::kUnsupported},
      {"/model/ignore_merges", "\"yes\"", "model.ignore_merges: expected true or false"},
      {"/added_tokens", "{}", "added_tokens: expected an array"},
      {"/added_tokens/0", "7", "added_tokens[0]: expected an object"},
      {"/added_tokens/0/id", "-7", "added_tokens[0].id"},
      {"/added_tokens/0/id", "2147483647", "is absurd"},
      {"/added_tokens/1/content", "null", "added_tokens[1].content"},
      {"/added_tokens/1/lstrip", "1", "added_tokens[1].lstrip"},
      {"/normalizer", "{\"type\":\"Nmt\"}", "normalizer.type: \"Nmt\"", StatusCode::kUnsupported},
      {"/normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"X\"}]}",
       "normalizer.normalizers[0].type", StatusCode::kUnsupported},
      {"/normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"(\"},\"content\":\"\"}",
       "normalizer.pattern: pattern \"(\""},
      {"/pre_tokenizer", "null", "pre_tokenizer", StatusCode::kUnsupported},
      {"/pre_tokenizer", "{\"type\":\"Metaspace\"}", "pre_tokenizer.type", StatusCode::kUnsupported},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Shredded\"",
       "pre_tokenizer.pretokenizers[0].behavior", StatusCode::kUnsupported},
      {"/pre_tokenizer/pretokenizers/0/pattern", "{\"Regex\":\"[a\"}",
       "pre_tokenizer.pretokenizers[0].pattern: pattern \"[a\": a class is not closed"},
      {"/pre_tokenizer/pretokenizers/0/pattern", "\"x\"", "pretokenizers[0].pattern"},
      {"/decoder", "{\"type\":\"Fuse\"}", "decoder.type", StatusCode::kUnsupported},
      {"/post_processor", "{\"type\":\"BertProcessing\"}", "post_processor.type",
       StatusCode::kUnsupported},
      {"/post_processor",
       "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"b\"}}]}",
       "post_processor.special_tokens[\"b\"].ids"},
      {"/post_processor",
       "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"b\"}}],"
       "\"special_tokens\":{\"b\":{\"ids\":[999999]}}}",
       "expected ids of the vocabulary"},
  };
  for (const BadField& bad : cases) {
    auto json = ToyTokenizerJson();
    json[nlohmann::json::json_pointer(bad.pointer)] = nlohmann::json::parse(bad.value);
    const Result<Tokenizer> tokenizer = Tokenizer::FromContents(json.dump(), "");
    ASSERT_FALSE(tokenizer.ok()) << bad.pointer << " = " << bad.value;
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(bad.message));
    EXPECT_THAT(tokenizer.status().message(), HasSubstr("tokenizer.json"));
    EXPECT_EQ(tokenizer.status().code(), bad.code) << tokenizer.status().ToString();
  }
}

TEST(TokenizerJson, NotJson) {
  for (const char* text : {"", "{", "[]", "{\"model\":", "\xFF"}) {
    EXPECT_FALSE(Tokenizer::FromContents(text, "").ok()) << text;
  }
  EXPECT_FALSE(Tokenizer::FromContents(std::string(100'000, '['), "").ok());
}

TEST(TokenizerJson, ConfigErrorsNameTheField) {
  const std::string json = ToyTokenizerJson().dump();
  const std::pair<const char*, const char*> cases[] = {
      {R"({"bos_token": 5})", "bos_token: expected a string"},
      {R"({"eos_token": {"text": "x"}})", "eos_token.content"},
      {R"({"add_bos_token": "no"})", "add_bos_token"},
      {R"({"chat_template": 5})", "chat_template"},
      {"nonsense", "tokenizer_config.json: not valid JSON"},
  };
  for (const auto& [config, message] : cases) {
    const Result<Tokenizer> tokenizer = Tokenizer::FromContents(json, config);
    ASSERT_FALSE(tokenizer.ok()) << config;
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(message));
  }
}

TEST(TokenizerJson, NamedChatTemplates) {
  const Tokenizer tokenizer = ToyTokenizer(ToyTokenizerJson(), R"({"chat_template":
      [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]})");
  EXPECT_EQ(tokenizer.config().chat_template, "D");
  EXPECT_EQ(tokenizer.config().tool_use_template, "T");
}

TEST(TokenizerJson, AMissingFileIsNamed) {
  const Result<Tokenizer> tokenizer = Tokenizer::FromFiles("/nonexistent/tokenizer.json", "");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(tokenizer.status().message(), HasSubstr("/nonexistent/tokenizer.json"));
}

}  // namespace
}  // namespace moraine
