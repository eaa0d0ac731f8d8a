#include "store/record_checksum.h"

// For a state on the stack; and XXH3 for the widest registers that the CPU has, chosen at run time.
#define XXH_STATIC_LINKING_ONLY
#include <xxh_x86dispatch.h>

#include <algorithm>

namespace moraine {

uint64_t ChecksumPiece(std::span<const std::byte> record, uint32_t piece) {
  const uint64_t begin = piece * kChecksumPieceBytes;
  return XXH3_64bits(record.data() + begin, std::min(kChecksumPieceBytes, record.size() - begin));
}

uint64_t CombineChecksumPieces(std::span<const uint64_t> pieces) {
  return XXH3_64bits(pieces.data(), pieces.size_bytes());
}

uint64_t RecordChecksum(std::span<const std::byte> record) {
  XXH3_state_t combined;
  XXH3_64bits_reset(&combined);
  for (uint32_t piece = 0; piece < ChecksumPieceCount(record.size()); ++piece) {
    const uint64_t hash = ChecksumPiece(record, piece);
    XXH3_64bits_update(&combined, &hash, sizeof(hash));
  }
  return XXH3_64bits_digest(&combined);
}

}  // namespace moraine
