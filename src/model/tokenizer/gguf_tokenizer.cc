#include "model/tokenizer/gguf_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace moraine {
namespace {

using nlohmann::json;

// tokenizer.ggml.pre -> normalizer and pattern of the models that it was made from. Qwen2, Qwen2.5
// and Qwen3 publish the same.
struct KnownPreTokenizer {
  const char* name;
  const char* normalizer;
  const char* pattern;
};
constexpr KnownPreTokenizer kPreTokenizers[] = {
    {"qwen2", "NFC",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)"},
};

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
    root["normalizer"] = {{"type", pre->normalizer}};
    root["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pre->pattern}}}, {"behavior", "Isolated"},
           {"invert", false}},
          {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
    root["decoder"] = {{"type", "ByteLevel"}};
    root["model"]["type"] = "BPE";
    TokenizerFiles files;
    files.tokenizer_json = root.dump();
    ASSIGN_OR_RETURN(files.tokenizer_config_json, ConfigJson());
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

  Result<std::string> ConfigJson() const {
    json config;
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
    config["tokenizer_class"] = "Qwen2Tokenizer";
    const auto chat = metadata_.find("tokenizer.chat_template");
    if (chat != metadata_.end()) {
      if (!chat->is_string()) {
        return InvalidArgument(file_ + ": metadata key 'tokenizer.chat_template' is " +
                               Show(*chat) + ", expected a string");
      }
      config["chat_template"] = *chat;
    }
    return config.dump(1);
  }

  Result<std::string> GenerationJson() const {
    std::vector<size_t> ends;
    for (const char* key : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
      ASSIGN_OR_RETURN(const std::optional<size_t> id, IdOf(key));
      if (id) ends.push_back(*id);
    }
    for (const char* name : {"<|im_end|>", "<|endoftext|>"}) {
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
