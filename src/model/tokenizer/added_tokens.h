// Finding added tokens ("<|im_end|>", "<think>") in text: longest match, leftmost first, by a byte
// trie. All added tokens are matched, not only those marked special; which ones are control tokens,
// and may therefore be matched in trusted text only, is EncodeOptions::parse_special's rule.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moraine {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool special = false;
  bool normalized = false;   // matched after the normalizer, not before
  bool lstrip = false;       // swallows white space on its left
  bool rstrip = false;
  bool single_word = false;  // only between non-word characters

  bool is_control() const;
};

// Which bytes of a text came from the template; empty means that all did.
class TrustMap {
 public:
  void Append(size_t byte_count, bool trusted);
  bool IsTrusted(size_t begin, size_t end) const;
  // The part from `begin` to `end` as a map of its own.
  TrustMap Slice(size_t begin, size_t end) const;
  struct Run {
    size_t end;
    bool trusted;
  };
  const std::vector<Run>& runs() const { return runs_; }

 private:
  std::vector<Run> runs_;
};

// Thread-safe after construction.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() : nodes_(1) {}
  // `text` is what to look for; it differs from token.content if the normalizer changes that. The
  // token must outlive the matcher.
  void Add(const AddedToken* token, std::string_view text);
  bool empty() const { return nodes_.size() == 1; }

  struct Piece {
    size_t begin, end;
    const AddedToken* token;  // null: text between tokens
  };
  std::vector<Piece> Split(std::string_view text, const TrustMap& trust) const;

 private:
  struct Node {
    const AddedToken* token = nullptr;
    std::vector<std::pair<uint8_t, uint32_t>> children;
  };
  uint32_t Child(uint32_t node, uint8_t byte) const;  // 0: none
  const AddedToken* LongestAt(std::string_view text, size_t begin, const TrustMap& trust,
                              size_t& end) const;

  std::vector<Node> nodes_;  // the root is 0
  bool starts_token_[256] = {};
};

}  // namespace moraine
