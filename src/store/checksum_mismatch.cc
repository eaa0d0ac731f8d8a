#include "store/checksum_mismatch.h"

#include <cstdio>

namespace moraine {
namespace {

std::string Hex(uint64_t value) {
  char text[19];
  std::snprintf(text, sizeof(text), "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

Status ChecksumMismatch(const std::string& pack, uint64_t offset, const std::string& what,
                        uint64_t expected, uint64_t found) {
  return Corruption(pack + " at offset " + std::to_string(offset) + ": " + what +
                    ": checksum is " + Hex(found) + ", expected " + Hex(expected));
}

}  // namespace moraine
