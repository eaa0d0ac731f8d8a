#include "model/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <vector>

#include "model/tokenizer/published_patterns.h"

namespace moraine {
namespace {

using nlohmann::json;

// What llama.cpp's names in tokenizer.ggml.pre stand for: the steps of the tokenizer.json that the
// models were published with. llama.cpp itself does not normalize.
struct KnownPreTokenizer {
  const char* name;
  const char* normalizer;  // null: none
  std::span<const std::string_view> patterns = {};  // none: ByteLevel's own, GPT-2's
  bool single_digits = false;
  bool ignore_merges = false;
  bool adds_bos = false;  // unless tokenizer.ggml.add_bos_token says otherwise
  const char* tokenizer_class = "PreTrainedTokenizerFast";
};
constexpr std::string_view kQwen2[] = {kQwen2Pattern}, kQwen35[] = {kQwen35Pattern},
                           kLlama3[] = {kLlama3Pattern}, kO200k[] = {kO200kPattern},
                           kKimi[] = {kKimiPattern};
constexpr KnownPreTokenizer kPreTokenizers[] = {
    {.name = "gpt-2", .normalizer = nullptr},
    {.name = "olmo", .normalizer = "NFC"},  // OLMo, OLMoE
    {.name = "qwen2", .normalizer = "NFC", .patterns = kQwen2},  // Qwen2 to Qwen3-Next
    {.name = "deepseek-r1-qwen", .normalizer = nullptr, .patterns = kQwen2},
    {.name = "qwen35", .normalizer = "NFC", .patterns = kQwen35},
    {.name = "llama-bpe", .normalizer = nullptr, .patterns = kLlama3, .ignore_merges = true,
     .adds_bos = true},
    {.name = "llama3", .normalizer = nullptr, .patterns = kLlama3, .ignore_merges = true,
     .adds_bos = true},
    {.name = "glm4", .normalizer = nullptr, .patterns = kLlama3},
    {.name = "chatglm-bpe", .normalizer = nullptr, .patterns = kLlama3},
    {.name = "gpt-4o", .normalizer = nullptr, .patterns = kO200k},  // gpt-oss
    {.name = "minimax-m2", .normalizer = nullptr, .patterns = kO200k},
    {.name = "deepseek-llm", .normalizer = nullptr, .patterns = kDeepSeekV2Patterns,
     .single_digits = true},  // V2, V2-Lite
    {.name = "deepseek-v3", .normalizer = nullptr, .patterns = kDeepSeekV3Patterns},
    {.name = "kimi-k2", .normalizer = nullptr, .patterns = kKimi, .ignore_merges = true,
     .tokenizer_class = "TikTokenTokenizer"},
};

json StepsOf(const KnownPreTokenizer& pre) {
  json steps = json::array();
  for (const std::string_view pattern : pre.patterns) {
    steps.push_back({{"type", "Split"}, {"pattern", {{"Regex", pattern}}},
                     {"behavior", "Isolated"}, {"invert", false}});
  }
  if (pre.single_digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  steps.push_back({{"type", "ByteLevel"}, {"add_prefix_space", false},
                   {"use_regex", pre.patterns.empty()}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

// Control tokens at which the families stop, whatever eos is; llama.cpp has the same list. gpt-oss
// goes on after its <|end|>.
constexpr const char* kEndTokens[] = {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>",
                                      "<|return|>", "<|call|>", "<｜end▁of▁sentence｜>",
                                      "[EOS]", "[EOT]"};

// tokenizer.ggml.token_type
enum TokenType : int64_t {
  kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6
};

std::string Show(const json& value) {
  if (value.is_array()) return "an array of " + std::to_string(value.size());
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

class Converter {
 public:
  Converter(const json& metadata, const std::string& file) : metadata_(metadata), file_(file) {}

  Result<TokenizerFiles> Convert() {
    const json* model = Find("model");
    if (model == nullptr) return NotFound(file_ + ": metadata has no tokenizer");
    if (*model != "gpt2") return Refuse("model", "\"gpt2\"");
    ASSIGN_OR_RETURN(const KnownPreTokenizer* pre, FindPreTokenizer());
    RETURN_IF_ERROR(ReadTokens());
    json root;
    RETURN_IF_ERROR(SplitVocabulary(&root));
    RETURN_IF_ERROR(ReadMerges(&root));
    root["normalizer"] = pre->normalizer == nullptr ? json() : json({{"type", pre->normalizer}});
    root["pre_tokenizer"] = StepsOf(*pre);
    root["decoder"] = {{"type", "ByteLevel"}};
    root["model"]["type"] = "BPE";
    root["model"]["ignore_merges"] = pre->ignore_merges;
    TokenizerFiles files;
    files.tokenizer_json = root.dump();
    ASSIGN_OR_RETURN(files.tokenizer_config_json, ConfigJson(*pre));
    ASSIGN_OR_RETURN(files.generation_config_json, GenerationJson());
    return files;
  }

 private:
  static constexpr const char* kPrefix = "tokenizer.ggml.";

  const json* Find(const std::string& key) const {
    const auto found = metadata_.find(kPrefix + key);
    return found == metadata_.end() ? nullptr : &*found;
  }
  std::string Found(const std::string& key) const {
    const json* value = Find(key);
    return file_ + ": metadata key '" + kPrefix + key + "' is " +
           (value == nullptr ? "missing" : Show(*value));
  }
  Status Bad(const std::string& key, const std::string& expected) const {
    return InvalidArgument(Found(key) + ", expected " + expected);
  }
  Status Refuse(const std::string& key, const std::string& supported) const {
    return Unsupported(Found(key) + ", supported: " + supported);
  }

  Result<const KnownPreTokenizer*> FindPreTokenizer() const {
    std::string names;
    const json* name = Find("pre");
    for (const KnownPreTokenizer& pre : kPreTokenizers) {
      if (name != nullptr && *name == pre.name) return &pre;
      names += (names.empty() ? "\"" : ", \"") + std::string(pre.name) + "\"";
    }
    return Refuse("pre", names);
  }

  Status ReadTokens() {
    const json* tokens = Find("tokens");
    if (tokens == nullptr || !tokens->is_array() || tokens->empty()) {
      return Bad("tokens", "an array of strings");
    }
    for (const json& token : *tokens) {
      if (!token.is_string()) return Bad("tokens", "an array of strings");
      tokens_.push_back(token.get<std::string>());
    }
    const json* types = Find("token_type");
    if (types == nullptr || !types->is_array() || types->size() != tokens_.size()) {
      return Bad("token_type", "an array of " + std::to_string(tokens_.size()));
    }
    for (const json& type : *types) {
      if (!type.is_number_integer() || type.get<int64_t>() < kNormal ||
          type.get<int64_t>() > kByte) {
        return Bad("token_type", "an array of integers from 1 to 6, not " + Show(type));
      }
      types_.push_back(static_cast<TokenType>(type.get<int64_t>()));
    }
    return OkStatus();
  }

  Status SplitVocabulary(json* root) const {
    json vocab = json::object(), added = json::array();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const TokenType type = types_[id];
      if (type == kUnused) continue;
      if (type == kControl || type == kUserDefined) {
        added.push_back({{"id", id}, {"content", tokens_[id]}, {"special", type == kControl},
                         {"normalized", false}, {"lstrip", false}, {"rstrip", false},
                         {"single_word", false}});
      } else if (!vocab.emplace(tokens_[id], id).second) {
        return Bad("tokens", "different strings: " + std::to_string(id) + " is '" + tokens_[id] +
                                 "' as " + vocab[tokens_[id]].dump() + " is");
      }
    }
    (*root)["added_tokens"] = std::move(added);
    (*root)["model"]["vocab"] = std::move(vocab);
    return OkStatus();
  }

  Status ReadMerges(json* root) const {
    const json* merges = Find("merges");
    if (merges == nullptr || !merges->is_array()) return Bad("merges", "an array of strings");
    (*root)["model"]["merges"] = *merges;
    return OkStatus();
  }

  // The id that a key names; nullopt if there is no such key.
  Result<std::optional<size_t>> IdOf(const std::string& key) const {
    const json* value = Find(key);
    if (value == nullptr) return std::optional<size_t>();
    if (!value->is_number_unsigned() || value->get<uint64_t>() >= tokens_.size()) {
      return Bad(key, "an id below " + std::to_string(tokens_.size()));
    }
    return std::optional<size_t>(value->get<size_t>());
  }

  Result<std::string> ConfigJson(const KnownPreTokenizer& pre) const {
    json config;
    if (pre.adds_bos) config["add_bos_token"] = true;
    for (const auto& [key, field] : {std::pair("bos_token_id", "bos_token"),
                                     std::pair("eos_token_id", "eos_token"),
                                     std::pair("padding_token_id", "pad_token"),
                                     std::pair("unknown_token_id", "unk_token")}) {
      ASSIGN_OR_RETURN(const std::optional<size_t> id, IdOf(key));
      if (id) config[field] = tokens_[*id];
    }
    for (const char* key : {"add_bos_token", "add_eos_token"}) {
      const json* value = Find(key);
      if (value == nullptr) continue;
      if (!value->is_boolean()) return Bad(key, "a bool");
      config[key] = *value;
    }
    config["tokenizer_class"] = pre.tokenizer_class;
    ASSIGN_OR_RETURN(json chat_template, ChatTemplates());
    if (!chat_template.is_null()) config["chat_template"] = std::move(chat_template);
    return config.dump(1);
  }

  // tokenizer.chat_template, or a list with the ones that tokenizer.chat_templates names; null if there
  // is none.
  Result<json> ChatTemplates() const {
    const auto source = [&](const std::string& key) -> Result<json> {
      const auto found = metadata_.find(key);
      if (found == metadata_.end()) return json();
      if (found->is_string()) return *found;
      return InvalidArgument(file_ + ": metadata key '" + key + "' is " + Show(*found) +
                             ", expected a string");
    };
    ASSIGN_OR_RETURN(const json main, source("tokenizer.chat_template"));
    const auto names = metadata_.find("tokenizer.chat_templates");
    if (names == metadata_.end()) return main;
    json list = json::array();
    if (!main.is_null()) list.push_back({{"name", "default"}, {"template", main}});
    for (const json& name : *names) {
      if (!names->is_array() || !name.is_string()) {
        return InvalidArgument(file_ + ": metadata key 'tokenizer.chat_templates' is " +
                               Show(*names) + ", expected an array of strings");
      }
      ASSIGN_OR_RETURN(const json named,
                       source("tokenizer.chat_template." + name.get<std::string>()));
      if (!named.is_null()) list.push_back({{"name", name}, {"template", named}});
    }
    return list;
  }

  Result<std::string> GenerationJson() const {
    std::vector<size_t> ends;
    for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
      ASSIGN_OR_RETURN(const std::optional<size_t> id, IdOf(key));
      if (id) ends.push_back(*id);
    }
    for (const char* name : kEndTokens) {
      const auto found = std::find(tokens_.begin(), tokens_.end(), name);
      const size_t id = static_cast<size_t>(found - tokens_.begin());
      if (found != tokens_.end() && types_[id] == kControl) ends.push_back(id);
    }
    std::vector<size_t> unique;
    for (const size_t id : ends) {
      if (std::find(unique.begin(), unique.end(), id) == unique.end()) unique.push_back(id);
    }
    return json({{"eos_token_id", unique}}).dump(1);
  }

  const json& metadata_;
  const std::string& file_;
  std::vector<std::string> tokens_;
  std::vector<TokenType> types_;
};

}  // namespace

Result<TokenizerFiles> TokenizerFromGguf(std::string_view metadata_json,
                                         const std::string& file_name) {
  const json metadata = json::parse(metadata_json, nullptr, /*allow_exceptions=*/false);
  if (!metadata.is_object()) return InvalidArgument(file_name + ": metadata is not an object");
  return Converter(metadata, file_name).Convert();
}

}  // namespace moraine
