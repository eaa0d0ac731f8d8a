// The live residency stream: snapshots as frames of bytes. web/src/data/frame.js is the reading side;
// tests/page/residency_frames.json holds vectors for both.
//
//   stream   frame*
//   frame    u32 length, little-endian; then so many bytes. Length 0: nothing, to keep a connection alive
//   bytes    u8 kind (1 full, 2 delta), varint sequence of the snapshot,
//            full only: varint length, JSON header,
//            numbers:   a difference for each of header.numbers,
//            layers:    for each layer a difference for each of header.layer_numbers,
//            cells:     varint runs; each: varint cells skipped, varint cells n, n cells, n heats,
//            steps:     varint steps; each: a varint for each of header.step_numbers
//   cell     Residence in the low three bits; kCell marks: what has happened since the frame before
//   varint   LEB128: seven bits a byte, low ones first;  difference: a zigzag varint
//
// Steps are those that the stream has not had yet: all of a snapshot's in a full frame. A reader so slow that more
// have passed than a snapshot keeps loses the oldest.
//
// A full frame is the difference from nothing (all numbers and bytes 0), a delta the difference from the
// frame before it in the stream: one rule for both. Names of numbers and residences are in the header, so
// that neither side counts positions. What changes between two snapshots is mostly heat and the experts
// that were used: 12 KB for 6144 experts (48 layers of 128) and three tokens.
//
// Why not JSON over EventSource: the picture would be ten times as large and cost the I/O thread as many
// times the work, and EventSource cannot send an API key. Why not a WebSocket: nothing flows the other way.
//
// Threads: thread-compatible. One encoder a stream.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/residency_snapshot.h"

namespace moraine {

inline constexpr uint8_t kCellResidenceMask = 7;
inline constexpr uint8_t kCellUsed = 8;      // a lookup has named it
inline constexpr uint8_t kCellMissed = 16;   // and at least once it was not ready
inline constexpr uint8_t kCellEvicted = 32;  // it was in memory, and is not any more

class ResidencyFrameEncoder {
 public:
  // The frame, its length included, that leads a reader from the last snapshot to this one. The first is
  // full; a full frame has no marks (used, missed, evicted), which are of the time before.
  std::string Encode(const ResidencySnapshot& snapshot);

  // Length 0.
  static std::string KeepAlive() { return std::string(4, '\0'); }

 private:
  void MarkCells(const ResidencySnapshot& snapshot, std::vector<uint8_t>* cells) const;

  bool started_ = false;
  std::vector<int64_t> numbers_;       // of the last frame; layers' numbers follow
  std::vector<uint8_t> cells_, heats_;
  std::vector<uint16_t> lookups_, misses_;
  uint64_t steps_sent_ = 0;  // of ResidencySnapshot::step_count
};

}  // namespace moraine
