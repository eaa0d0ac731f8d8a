#include "model/constraint/token_trie.h"

#include <algorithm>

#include "base/check.h"
#include "model/constraint/expression.h"
#include "model/tokenizer/tokenizer.h"

namespace moraine {

TokenTrie::TokenTrie(std::vector<std::pair<std::string, int32_t>> tokens, uint32_t vocab_size)
    : bytes_(vocab_size), vocab_size_(vocab_size) {
  std::erase_if(tokens, [](const auto& token) { return token.first.empty(); });
  std::sort(tokens.begin(), tokens.end());
  // path[d]: the node of the d-th byte of the token before.
  std::vector<uint32_t> path;
  const auto close = [&](size_t depth) {
    for (; path.size() > depth; path.pop_back()) {
      nodes_[path.back()].subtree_end = static_cast<uint32_t>(nodes_.size());
    }
  };
  const std::string* before = nullptr;
  for (const auto& [bytes, token] : tokens) {
    CHECK(token >= 0 && static_cast<uint32_t>(token) < vocab_size, "a token of the vocabulary");
    CHECK(bytes.size() < UINT16_MAX, "a token's length");
    size_t shared = 0;
    if (before != nullptr) {
      shared = static_cast<size_t>(
          std::mismatch(bytes.begin(), bytes.end(), before->begin(), before->end()).first -
          bytes.begin());
      // Two tokens with the same bytes: a leaf of its own for the second.
      if (shared == bytes.size()) --shared;
    }
    close(shared);
    for (size_t depth = shared; depth < bytes.size(); ++depth) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({.depth = static_cast<uint16_t>(depth),
                        .byte = static_cast<uint8_t>(bytes[depth])});
    }
    nodes_.back().token = token;
    max_depth_ = std::max(max_depth_, static_cast<uint32_t>(bytes.size()));
    bytes_[static_cast<size_t>(token)] = bytes;
    before = &bytes;
  }
  close(0);
}

TokenTrie TokenTrie::FromTokenizer(const Tokenizer& tokenizer, uint32_t vocab_size) {
  std::vector<std::pair<std::string, int32_t>> tokens;
  const int32_t count =
      std::min(tokenizer.vocab_size(), static_cast<int32_t>(vocab_size));
  for (int32_t token = 0; token < count; ++token) {
    std::string bytes(tokenizer.TokenBytes(token));
    if (!bytes.empty() && tokenizer.IsSpecial(token)) bytes.insert(0, 1, kSpecialTokenByte);
    tokens.emplace_back(std::move(bytes), token);
  }
  return TokenTrie(std::move(tokens), vocab_size);
}

}  // namespace moraine
