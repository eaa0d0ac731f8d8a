#include "model/tokenizer/tokenizer.h"

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "model/tokenizer/tiktoken.h"
#include "model/tokenizer/tokenizer_json.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

Result<std::string> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return IoErrorFromErrno("open " + path.string(), errno);
  std::ostringstream contents;
  contents << file.rdbuf();
  if (file.bad() || contents.fail()) return IoErrorFromErrno("read " + path.string(), errno);
  return std::move(contents).str();
}

}  // namespace

struct Tokenizer::Impl {
  TokenizerParts parts;
  TokenizerConfig config;
  AddedTokenMatcher before_normalizer, after_normalizer;
  std::vector<bool> is_special;

  Status Prepare(TokenizerConfig parsed);
  Result<std::vector<int32_t>> Encode(std::string_view text, const TrustMap& trust,
                                      bool add_special_tokens) const;
  // Text without `normalized:false` tokens.
  Status EncodeRaw(std::string_view text, const TrustMap& trust, std::vector<int32_t>& ids) const;
  Result<std::string> Normalize(std::string_view text, TrustMap& trust) const;
  Status EncodePlain(std::string_view text, std::vector<int32_t>& ids) const;
  std::optional<int32_t> Find(std::string_view token) const;
};

Status Tokenizer::Impl::Prepare(TokenizerConfig parsed) {
  config = std::move(parsed);
  is_special.resize(parts.vocabulary.spellings.size());
  for (const AddedToken& token : parts.added_tokens) {
    is_special[token.id] = is_special[token.id] || token.special;
    if (!token.normalized) {
      before_normalizer.Add(&token, token.content);
      continue;
    }
    ASSIGN_OR_RETURN(const std::string text, parts.normalizer->Apply(token.content));
    after_normalizer.Add(&token, text);
  }
  // The Llama class of transformers adds bos by the config, whatever tokenizer.json says, and does so
  // unless told otherwise. DeepSeek's files rely on it.
  const bool is_llama = config.tokenizer_class.starts_with("LlamaTokenizer");
  if (config.add_bos_token.value_or(is_llama) && !config.bos_token.empty() &&
      parts.prefix_ids.empty()) {
    if (const auto id = Find(config.bos_token)) parts.prefix_ids.push_back(*id);
  }
  if (config.add_eos_token.value_or(false) && !config.eos_token.empty() &&
      parts.suffix_ids.empty()) {
    if (const auto id = Find(config.eos_token)) parts.suffix_ids.push_back(*id);
  }
  return OkStatus();
}

std::optional<int32_t> Tokenizer::Impl::Find(std::string_view token) const {
  const auto found = parts.vocabulary.ids.find(token);
  if (found == parts.vocabulary.ids.end()) return std::nullopt;
  return found->second;
}

Result<std::vector<int32_t>> Tokenizer::Impl::Encode(std::string_view text, const TrustMap& trust,
                                                     bool add_special_tokens) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special_tokens) ids = parts.prefix_ids;
  for (const AddedTokenMatcher::Piece& piece : before_normalizer.Split(text, trust)) {
    if (piece.token != nullptr) {
      ids.push_back(piece.token->id);
    } else {
      RETURN_IF_ERROR(EncodeRaw(text.substr(piece.begin, piece.end - piece.begin),
                                trust.Slice(piece.begin, piece.end), ids));
    }
  }
  if (add_special_tokens) {
    ids.insert(ids.end(), parts.suffix_ids.begin(), parts.suffix_ids.end());
  }
  return ids;
}

Status Tokenizer::Impl::EncodeRaw(std::string_view text, const TrustMap& trust,
                                  std::vector<int32_t>& ids) const {
  if (parts.normalizer->is_identity() && after_normalizer.empty()) return EncodePlain(text, ids);
  TrustMap normalized_trust = trust;
  ASSIGN_OR_RETURN(const std::string normalized, Normalize(text, normalized_trust));
  for (const auto& piece : after_normalizer.Split(normalized, normalized_trust)) {
    if (piece.token != nullptr) {
      ids.push_back(piece.token->id);
    } else {
      RETURN_IF_ERROR(EncodePlain(
          std::string_view(normalized).substr(piece.begin, piece.end - piece.begin), ids));
    }
  }
  return OkStatus();
}

// Normalizes and carries the marks over. Run by run, the marks are exact; where that is not the same
// as normalizing the whole (a combining mark at the start of a run), nothing of it is trusted.
Result<std::string> Tokenizer::Impl::Normalize(std::string_view text, TrustMap& trust) const {
  ASSIGN_OR_RETURN(std::string whole, parts.normalizer->Apply(text));
  if (whole == text || after_normalizer.empty() || trust.runs().empty()) return whole;
  TrustMap by_run;
  std::string joined;
  size_t begin = 0;
  for (const TrustMap::Run& run : trust.runs()) {
    ASSIGN_OR_RETURN(const std::string part,
                     parts.normalizer->Apply(text.substr(begin, run.end - begin)));
    joined += part;
    by_run.Append(part.size(), run.trusted);
    begin = run.end;
  }
  trust = TrustMap();
  if (joined == whole) {
    trust = by_run;
  } else {
    trust.Append(whole.size(), false);
  }
  return whole;
}

Status Tokenizer::Impl::EncodePlain(std::string_view text, std::vector<int32_t>& ids) const {
  std::string buffer(text);
  std::vector<TextSpan> spans;
  RETURN_IF_ERROR(parts.pre_tokenizer->Apply(buffer, spans));
  for (const TextSpan span : spans) {
    parts.bpe->Encode(std::string_view(buffer).substr(span.begin, span.end - span.begin), ids);
  }
  return OkStatus();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Result<Tokenizer> Tokenizer::FromContents(std::string_view tokenizer_json,
                                          std::string_view config_json) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->parts, ParseTokenizerJson(tokenizer_json));
  ASSIGN_OR_RETURN(TokenizerConfig config, ParseTokenizerConfig(config_json));
  RETURN_IF_ERROR(impl->Prepare(std::move(config)));
  return Tokenizer(std::move(impl));
}

Result<Tokenizer> Tokenizer::FromTiktoken(std::string_view tiktoken_model,
                                          std::string_view config_json) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(const std::vector<AddedToken> added, ParseAddedTokensDecoder(config_json));
  ASSIGN_OR_RETURN(impl->parts, ParseTiktoken(tiktoken_model, added));
  ASSIGN_OR_RETURN(TokenizerConfig config, ParseTokenizerConfig(config_json));
  RETURN_IF_ERROR(impl->Prepare(std::move(config)));
  return Tokenizer(std::move(impl));
}

Result<Tokenizer> Tokenizer::FromFiles(const std::filesystem::path& tokenizer_json,
                                       const std::filesystem::path& config_path) {
  ASSIGN_OR_RETURN(const std::string json, ReadFile(tokenizer_json));
  std::string config;
  std::error_code error;
  if (!config_path.empty() && std::filesystem::exists(config_path, error)) {
    ASSIGN_OR_RETURN(config, ReadFile(config_path));
  }
  Result<Tokenizer> tokenizer = FromContents(json, config);
  if (!tokenizer.ok()) return tokenizer.status().WithContext(tokenizer_json.parent_path().string());
  return tokenizer;
}

Result<std::vector<int32_t>> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  const std::string valid = ToValidUtf8(text);
  TrustMap trust;
  if (!options.parse_special) trust.Append(valid.size(), false);
  return impl_->Encode(valid, trust, options.add_special_tokens);
}

Result<std::vector<int32_t>> Tokenizer::EncodeSegments(std::span<const PromptSegment> segments,
                                                       bool add_special_tokens) const {
  std::string joined;
  TrustMap trust;
  for (const PromptSegment& segment : segments) {
    const std::string valid = ToValidUtf8(segment.text);
    joined += valid;
    trust.Append(valid.size(), segment.trusted);
  }
  return impl_->Encode(joined, trust, add_special_tokens);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!(skip_special_tokens && IsSpecial(id))) bytes += TokenBytes(id);
  }
  return ToValidUtf8(bytes);
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  return impl_->Find(token);
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return impl_->parts.vocabulary.bytes[id];
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->is_special[id];
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(impl_->parts.vocabulary.spellings.size());
}

const TokenizerConfig& Tokenizer::config() const { return impl_->config; }

std::optional<int32_t> Tokenizer::bos_id() const { return impl_->Find(impl_->config.bos_token); }

std::vector<int32_t> Tokenizer::eos_ids() const {
  const auto id = impl_->Find(impl_->config.eos_token);
  return id.has_value() ? std::vector<int32_t>{*id} : std::vector<int32_t>{};
}

std::string StreamingDecoder::Push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return {};
  pending_ += tokenizer_->TokenBytes(id);
  std::string text;
  pending_.erase(0, AppendValidUtf8(pending_, text));
  return text;
}

std::string StreamingDecoder::Flush() {
  std::string text = ToValidUtf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace moraine
