#include "residency/similar_tokens.h"

#include <bit>

namespace moraine {

SimilarTokens::SimilarTokens(const ExpertIndex& index, uint32_t top_k)
    : layers_(index.layers()),
      top_k_(top_k),
      picks_(size_t{kTokens} * index.layers() * top_k, kNoPick),
      taken_by_(index.size(), TokenSet{}) {
  uint32_t first = 0;
  for (uint32_t l = 0; l < layers_; ++l) {
    first_.push_back(first);
    first += index.experts_in(l);
  }
}

void SimilarTokens::BeginToken() {
  current_ = (current_ + 1) % kTokens;
  for (uint32_t l = 0; l < layers_; ++l) {
    for (uint32_t& pick : Picks(current_, l)) {
      if (pick == kNoPick) continue;
      taken_by_[first_[l] + pick][current_ / 64] &= ~(uint64_t{1} << current_ % 64);
      pick = kNoPick;
    }
  }
  similarity_.fill(0);
}

void SimilarTokens::Add(uint32_t layer, uint32_t expert, uint32_t i) {
  const std::span<uint32_t> picks = Picks(current_, layer);
  const auto place = std::find(picks.begin(), picks.end(), kNoPick);
  if (place == picks.end()) return;
  *place = expert;
  for (uint32_t word = 0; word < kWords; ++word) {
    for (uint64_t left = taken_by_[i][word]; left != 0; left &= left - 1) {
      ++similarity_[word * 64 + static_cast<uint32_t>(std::countr_zero(left))];
    }
  }
  taken_by_[i][current_ / 64] |= uint64_t{1} << current_ % 64;
}

bool SimilarTokens::Expect(uint32_t layer, std::span<float> shares) const {
  // Nothing has followed the current token yet, and what follows the one before is the current one,
  // which the averages know.
  const uint32_t previous = (current_ + kTokens - 1) % kTokens;
  const auto usable = [&](uint32_t token) {
    return token != current_ && token != previous &&
           Picks((token + 1) % kTokens, layer).front() != kNoPick;
  };
  uint32_t most = 0;
  for (uint32_t token = 0; token < kTokens; ++token) {
    if (similarity_[token] > most && usable(token)) most = similarity_[token];
  }
  if (most == 0) return false;
  std::fill(shares.begin(), shares.end(), 0.0f);
  float total = 0;
  for (uint32_t token = 0; token < kTokens; ++token) {
    // Half as similar counts a sixteenth: not worth the look.
    if (2 * similarity_[token] < most || !usable(token)) continue;
    const float relative = static_cast<float>(similarity_[token]) / static_cast<float>(most);
    const float weight = relative * relative * relative * relative;
    total += weight;
    for (const uint32_t expert : Picks((token + 1) % kTokens, layer)) {
      if (expert != kNoPick) shares[expert] += weight;
    }
  }
  for (float& share : shares) share /= total;
  return true;
}

}  // namespace moraine
