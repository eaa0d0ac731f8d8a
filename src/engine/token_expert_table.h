// TokenExpertTable: which experts of the first MoE layer a token went to when it was last seen.
//
// Before that layer there is no router to ask ahead, but its routing follows mostly from the token itself,
// which is known as soon as it has been sampled: a layer's attention, and the first reads are on their
// way. For the layers behind, the routers' lookahead is better (a table for all layers would also be as
// large as the vocabulary times the depth).
//
// Cost: 2 bytes a token of the vocabulary and expert of the top-k: 2.4 MB for 151,936 tokens of top-8.
//
// Threads: owned by the engine thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace moraine {

class TokenExpertTable {
 public:
  TokenExpertTable(uint32_t vocab_size, uint32_t top_k)
      : top_k_(top_k), experts_(size_t{vocab_size} * top_k, kUnknown) {}

  static uint64_t BytesFor(uint32_t vocab_size, uint32_t top_k) {
    return uint64_t{vocab_size} * top_k * sizeof(uint16_t);
  }

  // experts: top_k of them.
  void Learn(int32_t token, const uint32_t* experts);
  // Appends what is known of the token, best first: top_k experts or none.
  void Append(int32_t token, std::vector<ExpertId>* experts) const;

  // The tokens that are known, for persistence: 'token, experts...' as little-endian 32 and 16 bits.
  std::string Serialize() const;
  // Adds what was saved. kCorruption, changing nothing, for bytes that are none of this model's:
  // expert_count bounds the experts.
  Status Restore(std::string_view bytes, uint32_t expert_count);

 private:
  static constexpr uint16_t kUnknown = 0xFFFF;
  uint32_t vocab_size() const { return static_cast<uint32_t>(experts_.size() / top_k_); }

  const uint32_t top_k_;
  std::vector<uint16_t> experts_;
};

}  // namespace moraine
