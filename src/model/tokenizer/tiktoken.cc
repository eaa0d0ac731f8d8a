#include "model/tokenizer/tiktoken.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "model/tokenizer/byte_level.h"
#include "model/tokenizer/published_patterns.h"
#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

// Kimi-K2's file has 2.8 MB.
constexpr size_t kMaxFileBytes = size_t{256} << 20;
// The longest published token has 128 bytes. Merging looks at pairs up to this length at each byte.
constexpr size_t kMaxTokenBytes = 4096;
constexpr int32_t kReservedTokens = 256;
// A named token may lie behind the reserved ones, but not anywhere.
constexpr int32_t kMaxSpecialTokens = 65536;

// The value of a base64 digit, -1 for another character.
int DigitOf(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  if (c == '/') return 63;
  return -1;
}

// False if `text` is not base64 with its padding.
bool DecodeBase64(std::string_view text, std::string& bytes) {
  bytes.clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  uint32_t bits = 0;
  int bit_count = 0;
  for (const char c : text.substr(0, text.size() - padding)) {
    const int digit = DigitOf(c);
    if (digit < 0) return false;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    bit_count += 6;
    if (bit_count < 8) continue;
    bit_count -= 8;
    bytes.push_back(static_cast<char>(bits >> bit_count & 0xFF));
  }
  return bytes.size() == text.size() / 4 * 3 - padding;
}

class Loader {
 public:
  Result<TokenizerParts> Load(std::string_view contents, std::span<const AddedToken> named) {
    if (contents.size() > kMaxFileBytes) return InvalidArgument("longer than 256 MiB");
    RETURN_IF_ERROR(ReadRanks(contents));
    RETURN_IF_ERROR(AddSpecialTokens(named));
    Vocabulary& vocabulary = parts_.vocabulary;
    for (size_t id = 0; id < vocabulary.spellings.size(); ++id) {
      vocabulary.ids[vocabulary.spellings[id]] = static_cast<int32_t>(id);  // special ones win
    }
    parts_.normalizer.emplace();
    ASSIGN_OR_RETURN(parts_.pre_tokenizer, PreTokenizer::FromPattern(kKimiPattern));
    return MakeBpe();
  }

 private:
  Status ReadRanks(std::string_view contents) {
    std::string bytes;
    for (size_t at = 0, line = 1; at < contents.size(); ++line) {
      const size_t end = std::min(contents.find('\n', at), contents.size());
      std::string_view text = contents.substr(at, end - at);
      at = end + 1;
      if (text.ends_with('\r')) text.remove_suffix(1);
      if (text.empty()) continue;
      RETURN_IF_ERROR(ReadLine(text, line, bytes));
    }
    if (parts_.vocabulary.bytes.empty()) return InvalidArgument("there is no token in it");
    return OkStatus();
  }

  Status ReadLine(std::string_view text, size_t line, std::string& bytes) {
    const auto error = [&](const std::string& why) {
      const std::string shown(text.substr(0, 80));
      return InvalidArgument("line " + std::to_string(line) + ": \"" + ToValidUtf8(shown) + "\": " +
                             why);
    };
    const size_t space = text.find(' ');
    if (space == text.npos || !DecodeBase64(text.substr(0, space), bytes)) {
      return error("expected base64, a blank and a rank");
    }
    if (bytes.size() > kMaxTokenBytes) return error("a token is longer than 4096 bytes");
    const std::string_view number = text.substr(space + 1);
    const size_t expected = parts_.vocabulary.bytes.size();
    uint64_t rank = 0;
    const auto [end, failure] = std::from_chars(number.data(), number.data() + number.size(), rank);
    if (failure != std::errc() || end != number.data() + number.size() || rank != expected) {
      return error("expected rank " + std::to_string(expected));
    }
    longest_ = std::max(longest_, bytes.size());
    std::string spelling;
    for (const char c : bytes) AppendUtf8(ByteSpellings()[static_cast<uint8_t>(c)], spelling);
    parts_.vocabulary.spellings.push_back(std::move(spelling));
    parts_.vocabulary.bytes.push_back(bytes);
    return OkStatus();
  }

  Status AddSpecialTokens(std::span<const AddedToken> named) {
    rank_count_ = static_cast<int32_t>(parts_.vocabulary.bytes.size());
    int32_t end = rank_count_ + kReservedTokens;
    for (const AddedToken& token : named) {
      if (token.id < rank_count_ || token.id >= rank_count_ + kMaxSpecialTokens) {
        return InvalidArgument("special token \"" + token.content +
                               "\" of tokenizer_config.json has id " +
                               std::to_string(token.id) + ", expected one from " +
                               std::to_string(rank_count_) + ", the number of ranks, to " +
                               std::to_string(rank_count_ + kMaxSpecialTokens - 1));
      }
      end = std::max(end, token.id + 1);
    }
    for (int32_t id = rank_count_; id < end; ++id) {
      AddedToken token;
      token.id = id;
      token.content = "<|reserved_token_" + std::to_string(id) + "|>";
      token.special = true;
      parts_.added_tokens.push_back(std::move(token));
    }
    for (const AddedToken& token : named) {
      AddedToken& slot = parts_.added_tokens[static_cast<size_t>(token.id - rank_count_)];
      slot = token;
      slot.normalized = false;  // there is no normalizer
    }
    for (const AddedToken& token : parts_.added_tokens) {
      parts_.vocabulary.spellings.push_back(token.content);
      parts_.vocabulary.bytes.push_back(token.content);
    }
    return OkStatus();
  }

  Result<TokenizerParts> MakeBpe() {
    std::unordered_map<std::string_view, int32_t> ids;
    ids.reserve(static_cast<size_t>(rank_count_));
    for (int32_t id = 0; id < rank_count_; ++id) {
      if (!ids.emplace(parts_.vocabulary.bytes[id], id).second) {
        return InvalidArgument("rank " + std::to_string(id) + " has the bytes of rank " +
                               std::to_string(ids[parts_.vocabulary.bytes[id]]));
      }
    }
    BpeOptions options;
    options.ignore_merges = true;
    options.merge_by_id_max_bytes = longest_;
    options.fallback_ids.fill(-1);
    for (int byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      const auto found = ids.find(std::string_view(&c, 1));
      if (found == ids.end()) {
        return InvalidArgument("byte " + std::to_string(byte) + " is not a token, expected all 256");
      }
      options.byte_ids[byte] = found->second;
    }
    MergeTable no_merges;
    no_merges.Reserve(0);
    parts_.bpe = std::make_unique<Bpe>(options, std::move(no_merges), std::move(ids));
    return std::move(parts_);
  }

  TokenizerParts parts_;
  size_t longest_ = 0;
  int32_t rank_count_ = 0;
};

}  // namespace

Result<TokenizerParts> ParseTiktoken(std::string_view contents, std::span<const AddedToken> named) {
  Result<TokenizerParts> parts = Loader().Load(contents, named);
  if (!parts.ok()) return parts.status().WithContext("tiktoken.model");
  return parts;
}

}  // namespace moraine
