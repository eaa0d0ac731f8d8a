// SequenceState: what a model remembers of one sequence, by layer.
//
// Two kinds of memory, of which a layer's mixer asks for what it needs:
//   by position   keys and values (kv_planes.h), or what stands for them. Positions at and beyond
//                 length() hold nothing of meaning: a chunk writes them, and Commit makes them count.
//   recurrent     replaced by each chunk as a whole (a linear attention's state, a convolution's
//                 window). Kept twice: a chunk reads `committed` and writes `pending`, all of it, and
//                 Commit swaps the two. At length 0 `committed` is zeros.
// So a chunk that failed or was cancelled anywhere has changed nothing that the next one reads: only
// Commit moves the sequence on, for all layers at once.
//
// Memory is reserved for the whole context at once but committed by the kernel only as it is written.
// Threads: owned by one thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "compute/kv_format.h"
#include "memory/host_arena.h"
#include "model/config.h"

namespace moraine {

struct LayerStateShape {
  uint64_t position_bytes = 0;   // a position
  uint64_t recurrent_bytes = 0;  // in all
};

class SequenceState {
 public:
  static uint64_t BytesFor(const ModelConfig& config, uint32_t max_positions,
                           KvFormat format = KvFormat::kF32);
  static Result<SequenceState> Allocate(const ModelConfig& config, uint32_t max_positions,
                                        KvFormat format = KvFormat::kF32);
  // The same for any shapes.
  static Result<SequenceState> Allocate(std::vector<LayerStateShape> layers,
                                        uint32_t max_positions, KvFormat format);

  KvFormat format() const { return format_; }
  uint32_t max_positions() const { return max_positions_; }
  uint32_t length() const { return length_; }

  // position_bytes x max_positions of a layer, 64-byte aligned, in the mixer's own order.
  std::byte* positions(uint32_t layer);
  const std::byte* committed(uint32_t layer) const;  // recurrent_bytes
  std::byte* pending(uint32_t layer);                // recurrent_bytes

  // The chunk of `count` tokens that was computed counts from now on.
  void Commit(uint32_t count);
  // Length 0.
  void Reset();
  // Drops the positions from `length` (at most length()) on. kFailedPrecondition if a layer has
  // recurrent state, which cannot go back, unless nothing or all is dropped.
  Status Truncate(uint32_t length);

 private:
  struct Layer {
    uint64_t position_offset = 0, recurrent_offset = 0, recurrent_bytes = 0;
  };

  std::byte* recurrent(uint32_t layer, uint32_t half) const;

  HostArena arena_;
  KvFormat format_ = KvFormat::kF32;
  std::vector<Layer> layers_;
  uint32_t max_positions_ = 0, length_ = 0;
  uint32_t committed_half_ = 0;
};

}  // namespace moraine
