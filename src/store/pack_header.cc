#include "store/pack_header.h"

#include <xxhash.h>

#include <cstring>

#include "store/manifest.h"

namespace moraine {
namespace {

constexpr char kMagic[8] = {'M', 'O', 'R', 'A', 'I', 'N', 'E', 'P'};
constexpr size_t kUuidBytes = 36;

// As it lies in the file, little-endian.
struct RawHeader {
  char magic[8];
  uint32_t format;
  uint32_t kind;
  uint32_t number;
  char uuid[kUuidBytes];
  uint64_t checksum;  // XXH3 of what stands above
};
static_assert(sizeof(RawHeader) == 64 && offsetof(RawHeader, checksum) == 56);

}  // namespace

PackHeader::Page PackHeader::ToPage() const {
  CHECK(store_uuid.size() == kUuidBytes);
  RawHeader raw;
  std::memcpy(raw.magic, kMagic, sizeof(kMagic));
  raw.format = kStoreFormatVersion;
  raw.kind = static_cast<uint32_t>(kind);
  raw.number = number;
  std::memcpy(raw.uuid, store_uuid.data(), kUuidBytes);
  raw.checksum = XXH3_64bits(&raw, offsetof(RawHeader, checksum));
  Page page{};
  std::memcpy(page.data(), &raw, sizeof(raw));
  return page;
}

Status PackHeader::CheckPage(std::span<const std::byte, kPackAlignment> page,
                             const std::string& path) const {
  RawHeader raw;
  std::memcpy(&raw, page.data(), sizeof(raw));
  if (std::memcmp(raw.magic, kMagic, sizeof(kMagic)) != 0) {
    return Corruption(path + ": no pack header at offset 0");
  }
  if (raw.checksum != XXH3_64bits(&raw, offsetof(RawHeader, checksum))) {
    return Corruption(path + ": the pack header does not match its checksum");
  }
  if (raw.format != kStoreFormatVersion) {
    return Unsupported(path + ": pack format " + std::to_string(raw.format) +
                       ", but this program reads format " + std::to_string(kStoreFormatVersion));
  }
  const std::string uuid(raw.uuid, kUuidBytes);
  if (uuid != store_uuid) {
    return Corruption(path + ": a pack of another store: expected store " + store_uuid +
                      ", found " + uuid);
  }
  if (raw.kind != static_cast<uint32_t>(kind) || raw.number != number) {
    return Corruption(path + ": expected " + (kind == PackKind::kDense ? "dense" : "expert") +
                      " pack " + std::to_string(number) + ", found pack " +
                      std::to_string(raw.number) + " of kind " + std::to_string(raw.kind));
  }
  return OkStatus();
}

}  // namespace moraine
