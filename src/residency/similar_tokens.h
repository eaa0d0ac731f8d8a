// SimilarTokens: what followed the tokens that were routed most like the current one.
//
// A token's experts, over all layers, say what it is about better than those of one layer do. So
// the picks of the last kTokens tokens are kept, and each access of the current token raises the
// similarity of those that took the same expert. What a layer will take next is what it took one
// token after the similar ones, each counting as its similarity to the fourth power. Text repeats
// itself: this expects more of what is taken than any average does (docs/policies.md).
//
// Cost: an access visits the remembered tokens with the same expert, 16 with 8 of 128 experts
// taken; a question adds up to kTokens x top_k numbers. Memory: kTokens bits an expert and 4 bytes
// a pick (0.6 MB for 48 x 128, top 8).
//
// Threads: as EvictionPolicy. No allocation after construction.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "residency/policy_base.h"

namespace moraine {

class SimilarTokens {
 public:
  // Four times as many gain up to 0.5 points, half as many lose up to 0.4 (docs/policies.md).
  static constexpr uint32_t kTokens = 256;

  SimilarTokens(const ExpertIndex& index, uint32_t top_k);
  // The next token begins. A chunk, whose inner order is unknown, counts as one without experts.
  void BeginToken();
  // The current token takes expert `expert` of the layer, `i` in the index. More than top_k are not
  // kept.
  void Add(uint32_t layer, uint32_t expert, uint32_t i);
  // Writes what the layer, just visited, takes at its next visit: shares that sum to top_k. False,
  // and nothing written, if no token is similar.
  bool Expect(uint32_t layer, std::span<float> shares) const;

 private:
  static constexpr uint32_t kWords = kTokens / 64;
  static constexpr uint32_t kNoPick = 0xffffffff;
  using TokenSet = std::array<uint64_t, kWords>;

  std::span<uint32_t> Picks(uint32_t token, uint32_t layer) {
    return std::span(picks_).subspan((size_t{token} * layers_ + layer) * top_k_, top_k_);
  }
  std::span<const uint32_t> Picks(uint32_t token, uint32_t layer) const {
    return std::span(picks_).subspan((size_t{token} * layers_ + layer) * top_k_, top_k_);
  }

  const uint32_t layers_, top_k_;
  std::vector<uint32_t> first_;     // in the index, by layer
  std::vector<uint32_t> picks_;     // [token][layer][top_k], experts; kNoPick fills up
  std::vector<TokenSet> taken_by_;  // by index
  std::array<uint32_t, kTokens> similarity_{};
  uint32_t current_ = 0;
};

}  // namespace moraine
