// Reads tokenizer.json and tokenizer_config.json; everything about the files' format is here.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"

namespace moraine {

struct Vocabulary {
  // By id; empty where the file leaves a hole.
  std::vector<std::string> spellings;
  std::vector<std::string> bytes;
  // Views into `spellings`, which never changes after loading.
  std::unordered_map<std::string_view, int32_t> ids;
};

struct TokenizerParts {
  Vocabulary vocabulary;
  std::vector<AddedToken> added_tokens;
  std::optional<Normalizer> normalizer;      // always set after parsing
  std::optional<PreTokenizer> pre_tokenizer;  // always set after parsing
  std::unique_ptr<Bpe> bpe;
  // What the post-processor puts around a text.
  std::vector<int32_t> prefix_ids, suffix_ids;
};

Result<TokenizerParts> ParseTokenizerJson(std::string_view contents);

Result<TokenizerConfig> ParseTokenizerConfig(std::string_view contents);
// added_tokens_decoder of tokenizer_config.json, by rising id; empty if there is none. A tokenizer.json
// repeats them, so only a checkpoint without one needs this.
Result<std::vector<AddedToken>> ParseAddedTokensDecoder(std::string_view config_contents);

}  // namespace moraine
