#include "model/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>
#include <cctype>

#include "model/tokenizer/utf8.h"

namespace moraine {
namespace {

bool IsWhiteSpace(uint32_t codepoint) {
  return (codepoint >= 0x09 && codepoint <= 0x0D) || codepoint == 0x20 || codepoint == 0x85 ||
         codepoint == 0xA0 || codepoint == 0x1680 || (codepoint >= 0x2000 && codepoint <= 0x200A) ||
         codepoint == 0x2028 || codepoint == 0x2029 || codepoint == 0x202F || codepoint == 0x205F ||
         codepoint == 0x3000;
}

bool IsWordCharacter(uint32_t codepoint) {
  switch (utf8proc_category(static_cast<int32_t>(codepoint))) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

// Start of the last character that ends at `end` > 0; the text is valid UTF-8.
size_t PreviousCharacter(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool WordBefore(std::string_view text, size_t at) {
  return at > 0 && IsWordCharacter(NextUtf8(text.substr(PreviousCharacter(text, at))).codepoint);
}

bool WordAfter(std::string_view text, size_t at) {
  return at < text.size() && IsWordCharacter(NextUtf8(text.substr(at)).codepoint);
}

size_t SkipSpaceLeft(std::string_view text, size_t at, size_t limit) {
  while (at > limit) {
    const size_t previous = PreviousCharacter(text, at);
    if (!IsWhiteSpace(NextUtf8(text.substr(previous)).codepoint)) break;
    at = previous;
  }
  return std::max(at, limit);
}

size_t SkipSpaceRight(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!IsWhiteSpace(step.codepoint)) break;
    at += step.length;
  }
  return at;
}

}  // namespace

bool AddedToken::is_control() const {
  const auto is_punctuation = [](char c) { return std::ispunct(static_cast<unsigned char>(c)) != 0; };
  return special ||
         (content.size() >= 2 && is_punctuation(content.front()) && is_punctuation(content.back()));
}

void TrustMap::Append(size_t byte_count, bool trusted) {
  if (byte_count == 0) return;
  const size_t end = (runs_.empty() ? 0 : runs_.back().end) + byte_count;
  if (!runs_.empty() && runs_.back().trusted == trusted) {
    runs_.back().end = end;
  } else {
    runs_.push_back({end, trusted});
  }
}

bool TrustMap::IsTrusted(size_t begin, size_t end) const {
  if (runs_.empty()) return true;
  // Neighbouring runs differ, so a trusted span lies in one run.
  const auto run = std::upper_bound(runs_.begin(), runs_.end(), begin,
                                    [](size_t at, const Run& r) { return at < r.end; });
  return run != runs_.end() && run->trusted && end <= run->end;
}

TrustMap TrustMap::Slice(size_t begin, size_t end) const {
  TrustMap slice;
  auto run = std::upper_bound(runs_.begin(), runs_.end(), begin,
                              [](size_t at, const Run& r) { return at < r.end; });
  for (size_t at = begin; at < end && run != runs_.end(); ++run) {
    const size_t stop = std::min(end, run->end);
    slice.Append(stop - at, run->trusted);
    at = stop;
  }
  return slice;
}

void AddedTokenMatcher::Add(const AddedToken* token, std::string_view text) {
  if (text.empty()) return;
  uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    uint32_t child = Child(node, byte);
    if (child == 0) {
      child = static_cast<uint32_t>(nodes_.size());
      nodes_[node].children.emplace_back(byte, child);
      nodes_.emplace_back();
    }
    node = child;
  }
  nodes_[node].token = token;
  starts_token_[static_cast<uint8_t>(text.front())] = true;
}

uint32_t AddedTokenMatcher::Child(uint32_t node, uint8_t byte) const {
  for (const auto& [label, child] : nodes_[node].children) {
    if (label == byte) return child;
  }
  return 0;
}

const AddedToken* AddedTokenMatcher::LongestAt(std::string_view text, size_t begin,
                                               const TrustMap& trust, size_t& end) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (size_t at = begin; at < text.size(); ++at) {
    node = Child(node, static_cast<uint8_t>(text[at]));
    if (node == 0) break;
    const AddedToken* token = nodes_[node].token;
    if (token == nullptr || (token->is_control() && !trust.IsTrusted(begin, at + 1))) continue;
    longest = token;
    end = at + 1;
  }
  return longest;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::Split(std::string_view text,
                                                               const TrustMap& trust) const {
  std::vector<Piece> pieces;
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = 0;
    const AddedToken* token = nullptr;
    if (starts_token_[static_cast<uint8_t>(text[at])]) token = LongestAt(text, at, trust, end);
    if (token == nullptr) {
      ++at;
      continue;
    }
    if (token->single_word && (WordBefore(text, at) || WordAfter(text, end))) {
      at = end;
      continue;
    }
    const size_t begin = token->lstrip ? SkipSpaceLeft(text, at, done) : at;
    if (token->rstrip) end = SkipSpaceRight(text, end);
    if (done < begin) pieces.push_back({done, begin, nullptr});
    pieces.push_back({begin, end, token});
    done = at = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), nullptr});
  return pieces;
}

}  // namespace moraine
