#include "engine/token_expert_table.h"

#include <fmt/format.h>

#include <cstring>

namespace moraine {

void TokenExpertTable::Learn(int32_t token, const uint32_t* experts) {
  uint16_t* const row = &experts_[static_cast<size_t>(token) * top_k_];
  for (uint32_t i = 0; i < top_k_; ++i) row[i] = static_cast<uint16_t>(experts[i]);
}

void TokenExpertTable::Append(int32_t token, std::vector<ExpertId>* experts) const {
  const uint16_t* const row = &experts_[static_cast<size_t>(token) * top_k_];
  if (row[0] == kUnknown) return;
  for (uint32_t i = 0; i < top_k_; ++i) experts->emplace_back(row[i]);
}

std::string TokenExpertTable::Serialize() const {
  std::string bytes;
  for (uint32_t token = 0; token < vocab_size(); ++token) {
    const uint16_t* const row = &experts_[size_t{token} * top_k_];
    if (row[0] == kUnknown) continue;
    bytes.append(reinterpret_cast<const char*>(&token), sizeof(token));
    bytes.append(reinterpret_cast<const char*>(row), top_k_ * sizeof(uint16_t));
  }
  return bytes;
}

Status TokenExpertTable::Restore(std::string_view bytes, uint32_t expert_count) {
  const size_t entry_bytes = sizeof(uint32_t) + top_k_ * sizeof(uint16_t);
  if (bytes.size() % entry_bytes != 0) {
    return Corruption(fmt::format("token table: {} bytes, expected a multiple of {}", bytes.size(),
                                  entry_bytes));
  }
  std::vector<uint16_t> restored = experts_;
  for (size_t at = 0; at < bytes.size(); at += entry_bytes) {
    uint32_t token = 0;
    std::memcpy(&token, &bytes[at], sizeof(token));
    if (token >= vocab_size()) {
      return Corruption(fmt::format("token table: token {}, the vocabulary has {}", token,
                                    vocab_size()));
    }
    uint16_t* const row = &restored[size_t{token} * top_k_];
    std::memcpy(row, &bytes[at + sizeof(token)], top_k_ * sizeof(uint16_t));
    for (uint32_t i = 0; i < top_k_; ++i) {
      if (row[i] < expert_count) continue;
      return Corruption(fmt::format("token table: expert {} of token {}, the layer has {}", row[i],
                                    token, expert_count));
    }
  }
  experts_ = std::move(restored);
  return OkStatus();
}

}  // namespace moraine
