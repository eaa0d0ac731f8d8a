// Sizes as people write and read them, and alignment arithmetic.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

inline constexpr uint64_t kKiB = 1ull << 10;
inline constexpr uint64_t kMiB = 1ull << 20;
inline constexpr uint64_t kGiB = 1ull << 30;

// alignment: a power of two.
constexpr uint64_t AlignUp(uint64_t value, uint64_t alignment) {
  return (value + alignment - 1) & ~(alignment - 1);
}

// "8GiB", "512MiB", "1.5GB", "4096": binary and decimal units, case-insensitive, B optional.
Result<uint64_t> ParseByteSize(std::string_view text);
// "1.50 GiB", "96.0 KiB", "17 B".
std::string FormatByteSize(uint64_t bytes);

}  // namespace moraine
