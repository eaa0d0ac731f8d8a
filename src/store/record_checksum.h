// The checksum of a record: XXH3-64 over the XXH3-64s of its pieces of 128 KiB (the last one shorter).
//
// Not one XXH3 over everything, because that is one serial stream: a record of 2.5 MiB then costs one
// thread some 0.3 ms between its arrival and its use, and nothing of that can be shared. Pieces are
// hashed by all compute threads, and leave their bytes in the caches of the threads that compute next.
// 128 KiB: a single XXH3 for small experts, at least eight pieces for those of a megabyte.
//
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace moraine {

inline constexpr uint64_t kChecksumPieceBytes = 128 * 1024;

constexpr uint32_t ChecksumPieceCount(uint64_t record_bytes) {
  return static_cast<uint32_t>((record_bytes + kChecksumPieceBytes - 1) / kChecksumPieceBytes);
}
uint64_t ChecksumPiece(std::span<const std::byte> record, uint32_t piece);
// `pieces` in order; all of them.
uint64_t CombineChecksumPieces(std::span<const uint64_t> pieces);
// All of it on the calling thread.
uint64_t RecordChecksum(std::span<const std::byte> record);

}  // namespace moraine
