#include "store/profile_section.h"

#include <xxhash.h>

#include <algorithm>
#include <cctype>
#include <cstring>

namespace moraine {
namespace {

constexpr char kMagic[8] = {'M', 'P', 'S', '1', 0, 0, 0, 0};
constexpr size_t kHeaderBytes = 24;

}  // namespace

std::string WrapProfileSection(std::string_view payload) {
  const uint64_t fields[2] = {payload.size(), XXH3_64bits(payload.data(), payload.size())};
  std::string value(kMagic, sizeof(kMagic));
  value.append(reinterpret_cast<const char*>(fields), sizeof(fields));
  value.append(payload);
  return value;
}

Result<std::string> UnwrapProfileSection(std::string_view value) {
  if (value.size() < kHeaderBytes || std::memcmp(value.data(), kMagic, sizeof(kMagic)) != 0) {
    return Corruption("expected a section that begins with MPS1, found " +
                      std::to_string(value.size()) + " other bytes");
  }
  uint64_t fields[2];
  std::memcpy(fields, value.data() + sizeof(kMagic), sizeof(fields));
  const std::string_view payload = value.substr(kHeaderBytes);
  if (payload.size() != fields[0]) {
    return Corruption("the payload has " + std::to_string(payload.size()) + " bytes, expected " +
                      std::to_string(fields[0]));
  }
  if (XXH3_64bits(payload.data(), payload.size()) != fields[1]) {
    return Corruption("the payload does not have the checksum in its header");
  }
  return std::string(payload);
}

Status CheckProfileName(std::string_view what, std::string_view name) {
  const bool ok = !name.empty() && name.size() <= 64 &&
                  std::all_of(name.begin(), name.end(), [](unsigned char c) {
                    return std::isalnum(c) || c == '.' || c == '_' || c == '-';
                  });
  if (ok) return OkStatus();
  return InvalidArgument(std::string(what) + " '" + std::string(name) +
                         "': expected 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'");
}

}  // namespace moraine
