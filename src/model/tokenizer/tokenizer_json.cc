#include "model/tokenizer/tokenizer_json.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// Tables are indexed by id, so a file with one token of id 2^31 must not allocate them. Published
// vocabularies have no holes but a few reserved ids.
constexpr int64_t kMaxHoles = 65536;
// The largest published tokenizer.json has 33 MB.
constexpr size_t kMaxFileBytes = size_t{512} << 20;

std::optional<element> Find(element json, std::string_view key) {
  element value;
  if (json.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

// What the two files say of an added token, but for the place of its id.
Result<AddedToken> AddedTokenFromJson(element json, int64_t id, const std::string& field) {
  if (id < 0 || id > INT32_MAX) {
    return InvalidArgument(field + ".id: expected a whole number from 0");
  }
  AddedToken token;
  token.id = static_cast<int32_t>(id);
  ASSIGN_OR_RETURN(const std::string_view content, JsonString(json, "content", field));
  token.content = std::string(content);
  ASSIGN_OR_RETURN(token.special, JsonBool(json, "special", false, field));
  ASSIGN_OR_RETURN(token.normalized, JsonBool(json, "normalized", !token.special, field));
  ASSIGN_OR_RETURN(token.lstrip, JsonBool(json, "lstrip", false, field));
  ASSIGN_OR_RETURN(token.rstrip, JsonBool(json, "rstrip", false, field));
  ASSIGN_OR_RETURN(token.single_word, JsonBool(json, "single_word", false, field));
  return token;
}

class Loader {
 public:
  Result<TokenizerParts> Load(element root) {
    const std::optional<element> model = Find(root, "model");
    if (!model.has_value() || !model->is_object()) {
      return InvalidArgument("model: expected an object");
    }
    RETURN_IF_ERROR(CheckModelIsBytePairEncoding(*model));
    RETURN_IF_ERROR(ReadVocabulary(*model));
    RETURN_IF_ERROR(ReadAddedTokens(root));
    IndexVocabulary();
    RETURN_IF_ERROR(ReadTextSteps(root));
    RETURN_IF_ERROR(ReadMerges(*model));
    RETURN_IF_ERROR(CheckDecoder(root));
    if (const auto json = Find(root, "post_processor")) {
      RETURN_IF_ERROR(ReadPostProcessor(*json, "post_processor", 0));
    }
    return std::move(parts_);
  }

 private:
  static Status CheckModelIsBytePairEncoding(element model) {
    if (const auto type = Find(model, "type"); type.has_value()) {
      ASSIGN_OR_RETURN(const std::string_view name, JsonString(model, "type", "model"));
      if (name != "BPE") {
        return Unsupported("model.type: \"" + std::string(name) + "\" is not supported, only BPE is");
      }
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!Find(model, key).has_value()) continue;
      ASSIGN_OR_RETURN(const std::string_view value, JsonString(model, key, "model"));
      if (!value.empty()) return Unsupported(std::string("model.") + key + " is not supported");
    }
    if (const auto dropout = Find(model, "dropout"); dropout.has_value()) {
      double rate = -1;
      if (dropout->get(rate) != simdjson::SUCCESS || rate != 0) {
        return Unsupported("model.dropout: expected null or 0");
      }
    }
    return OkStatus();
  }

  Status ReadVocabulary(element model) {
    object vocab;
    if (model.at_key("vocab").get(vocab) != simdjson::SUCCESS) {
      return InvalidArgument("model.vocab: expected an object of token to id");
    }
    for (const auto [token, value] : vocab) {
      int64_t id = -1;
      if (value.get(id) != simdjson::SUCCESS || id < 0) {
        return InvalidArgument("model.vocab[\"" + std::string(token) +
                               "\"]: expected a whole number from 0");
      }
      entries_.push_back({id, std::string(token), /*is_added=*/false});
    }
    if (entries_.empty()) return InvalidArgument("model.vocab is empty");
    return OkStatus();
  }

  Status ReadAddedTokens(element root) {
    const auto json = Find(root, "added_tokens");
    if (json.has_value()) {
      array tokens;
      if (json->get(tokens) != simdjson::SUCCESS) {
        return InvalidArgument("added_tokens: expected an array");
      }
      size_t index = 0;
      for (const element token : tokens) {
        RETURN_IF_ERROR(ReadAddedToken(token, "added_tokens[" + std::to_string(index++) + "]"));
      }
    }
    int64_t largest = 0;
    for (const Entry& entry : entries_) largest = std::max(largest, entry.id);
    const auto limit = static_cast<int64_t>(entries_.size()) + kMaxHoles;
    if (largest >= limit) {
      return InvalidArgument("model.vocab and added_tokens: id " + std::to_string(largest) +
                             " is absurd for " + std::to_string(entries_.size()) + " tokens");
    }
    parts_.vocabulary.spellings.resize(static_cast<size_t>(largest) + 1);
    return OkStatus();
  }

  Status ReadAddedToken(element json, const std::string& field) {
    if (!json.is_object()) return InvalidArgument(field + ": expected an object");
    int64_t id = -1;
    if (json.at_key("id").get(id) != simdjson::SUCCESS) id = -1;
    ASSIGN_OR_RETURN(AddedToken token, AddedTokenFromJson(json, id, field));
    entries_.push_back({id, token.content, /*is_added=*/true});
    parts_.added_tokens.push_back(std::move(token));
    return OkStatus();
  }

  void IndexVocabulary() {
    Vocabulary& vocabulary = parts_.vocabulary;
    vocabulary.bytes.resize(vocabulary.spellings.size());
    for (Entry& entry : entries_) {
      // An added token stands for its own text; any other for the bytes that it spells.
      std::optional<std::string> bytes;
      if (!entry.is_added) bytes = BytesOfSpelling(entry.token);
      vocabulary.bytes[entry.id] = bytes.has_value() ? *std::move(bytes) : entry.token;
      vocabulary.spellings[entry.id] = std::move(entry.token);
    }
    entries_.clear();
    vocabulary.ids.reserve(vocabulary.spellings.size());
    for (size_t id = 0; id < vocabulary.spellings.size(); ++id) {
      const std::string& spelling = vocabulary.spellings[id];
      if (!spelling.empty()) vocabulary.ids.emplace(spelling, static_cast<int32_t>(id));
    }
  }

  Status ReadTextSteps(element root) {
    parts_.normalizer.emplace();
    if (const auto json = Find(root, "normalizer")) {
      ASSIGN_OR_RETURN(parts_.normalizer, Normalizer::FromJson(*json, "normalizer"));
    }
    const auto json = Find(root, "pre_tokenizer");
    if (!json.has_value()) {
      return Unsupported("pre_tokenizer: there is none, and only byte-level BPE is supported");
    }
    ASSIGN_OR_RETURN(parts_.pre_tokenizer, PreTokenizer::FromJson(*json, "pre_tokenizer"));
    return OkStatus();
  }

  int32_t IdOf(std::string_view spelling) const {
    const auto found = parts_.vocabulary.ids.find(spelling);
    return found == parts_.vocabulary.ids.end() ? -1 : found->second;
  }

  Status ReadMerges(element model) {
    array json;
    if (model.at_key("merges").get(json) != simdjson::SUCCESS) {
      return InvalidArgument("model.merges: expected an array");
    }
    MergeTable merges;
    merges.Reserve(json.size() == 0xFFFFFF ? CountOf(json) : json.size());
    int32_t rank = 0;
    for (const element merge : json) {
      RETURN_IF_ERROR(ReadMerge(merge, rank, merges));
      ++rank;
    }
    BpeOptions options;
    ASSIGN_OR_RETURN(options.ignore_merges, JsonBool(model, "ignore_merges", false, "model"));
    ASSIGN_OR_RETURN(options.fuse_unknown, JsonBool(model, "fuse_unk", false, "model"));
    ASSIGN_OR_RETURN(const bool byte_fallback, JsonBool(model, "byte_fallback", false, "model"));
    if (Find(model, "unk_token").has_value()) {
      ASSIGN_OR_RETURN(const std::string_view unknown, JsonString(model, "unk_token", "model"));
      options.unknown_id = IdOf(unknown);
    }
    for (int byte = 0; byte < 256; ++byte) {
      std::string spelling;
      AppendUtf8(ByteSpellings()[byte], spelling);
      options.byte_ids[byte] = IdOf(spelling);
      char fallback[8];
      std::snprintf(fallback, sizeof(fallback), "<0x%02X>", byte);
      options.fallback_ids[byte] = byte_fallback ? IdOf(fallback) : -1;
    }
    std::unordered_map<std::string_view, int32_t> ids_of_bytes;
    if (options.ignore_merges) ids_of_bytes = IdsOfBytes();
    parts_.bpe = std::make_unique<Bpe>(options, std::move(merges), std::move(ids_of_bytes));
    return OkStatus();
  }

  // simdjson's size() saturates at 0xFFFFFF.
  static size_t CountOf(const array& json) {
    size_t count = 0;
    for (const element merge : json) {
      (void)merge;
      ++count;
    }
    return count;
  }

  Status ReadMerge(element json, int32_t rank, MergeTable& merges) const {
    const auto error = [&](const std::string& why) {
      return InvalidArgument("model.merges[" + std::to_string(rank) + "]: " + why);
    };
    std::string_view left, right;
    if (json.is_string()) {
      const std::string_view both = json.get_string().value_unsafe();
      const size_t space = both.find(' ');
      if (space == both.npos) return error("expected \"left right\"");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      array pair;
      if (json.get(pair) != simdjson::SUCCESS || pair.size() != 2 ||
          pair.at(0).get(left) != simdjson::SUCCESS || pair.at(1).get(right) != simdjson::SUCCESS) {
        return error("expected a string or a pair of strings");
      }
    }
    const std::string merged = std::string(left) + std::string(right);
    for (const std::string_view token : {left, right, std::string_view(merged)}) {
      if (IdOf(token) < 0) return error("\"" + std::string(token) + "\" is not in model.vocab");
    }
    merges.Insert(IdOf(left), IdOf(right), {rank, IdOf(merged)});
    return OkStatus();
  }

  std::unordered_map<std::string_view, int32_t> IdsOfBytes() const {
    std::unordered_map<std::string_view, int32_t> ids;
    std::vector<bool> is_added(parts_.vocabulary.bytes.size());
    for (const AddedToken& token : parts_.added_tokens) is_added[token.id] = true;
    for (size_t id = 0; id < parts_.vocabulary.bytes.size(); ++id) {
      const std::string& bytes = parts_.vocabulary.bytes[id];
      if (!is_added[id] && !bytes.empty()) ids.emplace(bytes, static_cast<int32_t>(id));
    }
    return ids;
  }

  static Status CheckDecoder(element root) {
    const auto json = Find(root, "decoder");
    if (!json.has_value()) return OkStatus();
    if (!json->is_object()) return InvalidArgument("decoder: expected an object or null");
    ASSIGN_OR_RETURN(const std::string_view type, JsonString(*json, "type", "decoder"));
    if (type == "ByteLevel") return OkStatus();
    return Unsupported("decoder.type: \"" + std::string(type) +
                       "\" is not supported, only ByteLevel is");
  }

  Status ReadPostProcessor(element json, const std::string& field, int depth) {
    if (depth > 4) return InvalidArgument(field + ": nested too deeply");
    if (!json.is_object()) return InvalidArgument(field + ": expected an object or null");
    ASSIGN_OR_RETURN(const std::string_view type, JsonString(json, "type", field));
    if (type == "ByteLevel") return OkStatus();  // it changes offsets only
    if (type == "TemplateProcessing") return ReadTemplate(json, field);
    if (type != "Sequence") {
      return Unsupported(field + ".type: \"" + std::string(type) + "\" is not supported");
    }
    array processors;
    if (json.at_key("processors").get(processors) != simdjson::SUCCESS) {
      return InvalidArgument(field + ".processors: expected an array");
    }
    size_t index = 0;
    for (const element member : processors) {
      RETURN_IF_ERROR(ReadPostProcessor(
          member, field + ".processors[" + std::to_string(index++) + "]", depth + 1));
    }
    return OkStatus();
  }

  Status ReadTemplate(element json, const std::string& field) {
    array items;
    if (json.at_key("single").get(items) != simdjson::SUCCESS) {
      return InvalidArgument(field + ".single: expected an array");
    }
    bool after_text = false;
    size_t index = 0;
    for (const element item : items) {
      const std::string place = field + ".single[" + std::to_string(index++) + "]";
      if (Find(item, "Sequence").has_value()) {
        if (after_text) return Unsupported(place + ": the text appears twice");
        after_text = true;
        continue;
      }
      const auto token = Find(item, "SpecialToken");
      if (!token.has_value()) return InvalidArgument(place + ": expected Sequence or SpecialToken");
      ASSIGN_OR_RETURN(const std::string_view name,
                       JsonString(*token, "id", place + ".SpecialToken"));
      RETURN_IF_ERROR(AppendTemplateIds(json, name, field,
                                        after_text ? parts_.suffix_ids : parts_.prefix_ids));
    }
    return OkStatus();
  }

  Status AppendTemplateIds(element json, std::string_view name, const std::string& field,
                           std::vector<int32_t>& ids) const {
    const std::string place = field + ".special_tokens[\"" + std::string(name) + "\"].ids";
    element tokens, token;
    array values;
    if (json.at_key("special_tokens").get(tokens) != simdjson::SUCCESS ||
        tokens.at_key(name).get(token) != simdjson::SUCCESS ||
        token.at_key("ids").get(values) != simdjson::SUCCESS) {
      return InvalidArgument(place + ": expected an array of ids");
    }
    const auto id_count = static_cast<int64_t>(parts_.vocabulary.spellings.size());
    for (const element value : values) {
      int64_t id = -1;
      if (value.get(id) != simdjson::SUCCESS || id < 0 || id >= id_count) {
        return InvalidArgument(place + ": expected ids of the vocabulary");
      }
      ids.push_back(static_cast<int32_t>(id));
    }
    return OkStatus();
  }

  struct Entry {
    int64_t id;
    std::string token;
    bool is_added;
  };
  std::vector<Entry> entries_;  // until IndexVocabulary
  TokenizerParts parts_;
};

Result<element> ParseObject(simdjson::dom::parser& parser, std::string_view contents) {
  if (contents.size() > kMaxFileBytes) return InvalidArgument("longer than 512 MiB");
  element root;
  const simdjson::error_code error =
      parser.parse(simdjson::padded_string(contents)).get(root);
  if (error != simdjson::SUCCESS) {
    return InvalidArgument(std::string("not valid JSON: ") + simdjson::error_message(error));
  }
  if (!root.is_object()) return InvalidArgument("expected a JSON object");
  return root;
}

// "bos_token": "<s>" or {"content": "<s>", ...} or null
Result<std::string> TokenOfConfig(element root, std::string_view key) {
  const auto json = Find(root, key);
  if (!json.has_value()) return std::string();
  if (json->is_object()) {
    ASSIGN_OR_RETURN(const std::string_view content, JsonString(*json, "content", std::string(key)));
    return std::string(content);
  }
  std::string_view value;
  if (json->get(value) != simdjson::SUCCESS) {
    return InvalidArgument(std::string(key) + ": expected a string, an object or null");
  }
  return std::string(value);
}

// A string, or a list of {"name", "template"}.
Status ReadChatTemplates(element root, TokenizerConfig& config) {
  const auto json = Find(root, "chat_template");
  if (!json.has_value()) return OkStatus();
  if (json->is_string()) {
    config.chat_template = std::string(json->get_string().value_unsafe());
    return OkStatus();
  }
  array templates;
  if (json->get(templates) != simdjson::SUCCESS) {
    return InvalidArgument("chat_template: expected a string or an array");
  }
  for (const element entry : templates) {
    ASSIGN_OR_RETURN(const std::string_view name, JsonString(entry, "name", "chat_template[]"));
    ASSIGN_OR_RETURN(const std::string_view text, JsonString(entry, "template", "chat_template[]"));
    if (name == "default") config.chat_template = std::string(text);
    if (name == "tool_use") config.tool_use_template = std::string(text);
  }
  return OkStatus();
}

Result<std::optional<bool>> OptionalBool(element root, std::string_view key) {
  if (!Find(root, key).has_value()) return std::optional<bool>();
  ASSIGN_OR_RETURN(const bool value, JsonBool(root, key, false, "tokenizer_config"));
  return std::optional<bool>(value);
}

}  // namespace

Result<TokenizerParts> ParseTokenizerJson(std::string_view contents) {
  simdjson::dom::parser parser;
  const Result<element> root = ParseObject(parser, contents);
  if (!root.ok()) return root.status().WithContext("tokenizer.json");
  Result<TokenizerParts> parts = Loader().Load(*root);
  if (!parts.ok()) return parts.status().WithContext("tokenizer.json");
  return parts;
}

Result<TokenizerConfig> ParseTokenizerConfig(std::string_view contents) {
  TokenizerConfig config;
  if (contents.empty()) return config;
  const auto parse = [&]() -> Status {
    simdjson::dom::parser parser;
    ASSIGN_OR_RETURN(const element root, ParseObject(parser, contents));
    ASSIGN_OR_RETURN(config.bos_token, TokenOfConfig(root, "bos_token"));
    ASSIGN_OR_RETURN(config.eos_token, TokenOfConfig(root, "eos_token"));
    ASSIGN_OR_RETURN(config.pad_token, TokenOfConfig(root, "pad_token"));
    ASSIGN_OR_RETURN(config.unk_token, TokenOfConfig(root, "unk_token"));
    ASSIGN_OR_RETURN(config.add_bos_token, OptionalBool(root, "add_bos_token"));
    ASSIGN_OR_RETURN(config.add_eos_token, OptionalBool(root, "add_eos_token"));
    ASSIGN_OR_RETURN(config.tokenizer_class, TokenOfConfig(root, "tokenizer_class"));
    return ReadChatTemplates(root, config);
  };
  const Status status = parse();
  if (!status.ok()) return status.WithContext("tokenizer_config.json");
  return config;
}

Result<std::vector<AddedToken>> ParseAddedTokensDecoder(std::string_view config_contents) {
  std::vector<AddedToken> added;
  if (config_contents.empty()) return added;
  const auto parse = [&]() -> Status {
    simdjson::dom::parser parser;
    ASSIGN_OR_RETURN(const element root, ParseObject(parser, config_contents));
    const auto json = Find(root, "added_tokens_decoder");
    if (!json.has_value()) return OkStatus();
    object tokens;
    if (json->get(tokens) != simdjson::SUCCESS) {
      return InvalidArgument("added_tokens_decoder: expected an object of id to token");
    }
    for (const auto [key, token] : tokens) {
      const std::string field = "added_tokens_decoder[\"" + std::string(key) + "\"]";
      int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size()) id = -1;
      ASSIGN_OR_RETURN(AddedToken read, AddedTokenFromJson(token, id, field));
      added.push_back(std::move(read));
    }
    return OkStatus();
  };
  const Status status = parse();
  if (!status.ok()) return status.WithContext("tokenizer_config.json");
  std::sort(added.begin(), added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return added;
}

}  // namespace moraine
