// PackHeader: the first 4 KiB page of every pack file, which ties it to its store, so that a pack
// copied over from another store, or swapped with its neighbour, is noticed when the store opens.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/status.h"

namespace moraine {

// Records and dense tensors begin at multiples of this: O_DIRECT's coarsest alignment.
inline constexpr uint64_t kPackAlignment = 4096;

enum class PackKind : uint32_t { kDense = 0, kExperts = 1 };

struct PackHeader {
  PackKind kind = PackKind::kDense;
  uint32_t number = 0;     // among the packs of its kind
  std::string store_uuid;  // 36 characters

  using Page = std::array<std::byte, kPackAlignment>;
  Page ToPage() const;
  // kCorruption (kUnsupported for another format) naming path and field if `page` is not this header.
  Status CheckPage(std::span<const std::byte, kPackAlignment> page, const std::string& path) const;
};

}  // namespace moraine
