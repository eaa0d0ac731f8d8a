// SequenceState: what a model remembers of one sequence, by layer.
//
// Two kinds of memory, of which a layer's mixer asks for what it needs:
//   by position   keys and values (kv_planes.h), or what stands for them, in blocks of a KvPool that many
//                 sequences share. Positions at and beyond length() hold nothing of meaning: a chunk writes
//                 them, and Commit makes them count.
//   recurrent     replaced by each chunk as a whole (a linear attention's state, a convolution's
//                 window). Kept twice: a chunk reads `committed` and writes `pending`, all of it, and
//                 Commit swaps the two. At length 0 `committed` is zeros.
// So a chunk that failed or was cancelled anywhere has changed nothing that the next one reads: only
// Commit moves the sequence on, for all layers at once.
//
// A sequence that begins with tokens whose blocks another one has published may take those blocks instead
// of computing them (TakePrefix). Recurrent state is of one position only and cannot be shared so: a model
// that has it computes every prompt from its first token.
//
// Threads: owned by one thread. Nothing allocates after construction.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "compute/kv_format.h"
#include "memory/host_arena.h"
#include "model/config.h"
#include "model/kv_pool.h"

namespace moraine {

std::vector<LayerStateShape> StateShapesOf(const ModelConfig& config, KvFormat format);

// Where the positions of one layer of one sequence are.
struct PositionBlocks {
  std::byte* first = nullptr;        // block 0 of the pool
  const uint32_t* blocks = nullptr;  // of the sequence: [position / kKvBlockPositions]
  size_t block_bytes = 0;

  std::byte* BlockOf(uint32_t position) const {
    return first + blocks[position / kKvBlockPositions] * block_bytes;
  }
};

// Calls function(position, count, index) for the positions [first, first + count) block by block; index:
// of the position in its block.
template <typename Function>
void ForBlocks(uint32_t first, uint32_t count, Function&& function) {
  for (uint32_t end = first + count; first < end;) {
    const uint32_t index = first % kKvBlockPositions;
    const uint32_t part = std::min(end - first, kKvBlockPositions - index);
    function(first, part, index);
    first += part;
  }
}

class SequenceState {
 public:
  // Of one sequence, beside the pool.
  static uint64_t RecurrentBytes(std::span<const LayerStateShape> layers);
  // At most max_positions, of the pool's format and layers. The pool must outlive it.
  static Result<SequenceState> Create(std::span<const LayerStateShape> layers, KvPool* pool,
                                      uint32_t max_positions);
  // With a pool of its own for all of them.
  static Result<SequenceState> Allocate(std::span<const LayerStateShape> layers,
                                        uint32_t max_positions, KvFormat format);
  static Result<SequenceState> Allocate(const ModelConfig& config, uint32_t max_positions,
                                        KvFormat format = KvFormat::kF32);
  ~SequenceState();
  SequenceState(SequenceState&&) = default;

  KvFormat format() const { return pool_->format(); }
  uint32_t max_positions() const { return max_positions_; }
  uint32_t length() const { return length_; }

  // Takes the blocks that `count` more tokens need. False if the pool has none left; those it got stay.
  bool Reserve(uint32_t count);
  PositionBlocks positions(uint32_t layer) const;
  const std::byte* committed(uint32_t layer) const;  // recurrent_bytes
  std::byte* pending(uint32_t layer);                // recurrent_bytes

  // The chunk of `count` tokens that was computed counts from now on.
  void Commit(uint32_t count);
  // Length 0. Gives all blocks back; what was published stays findable until the pool needs it.
  void Reset();
  // Drops the positions from `length` (at most length()) on. kFailedPrecondition if a layer has
  // recurrent state, which cannot go back, unless nothing or all is dropped. Not into what was published.
  Status Truncate(uint32_t length);

  // At length 0: takes what the pool has of `tokens`, whole blocks from the first on and at least one token
  // less than all, whose logits are wanted. Returns length().
  uint32_t TakePrefix(std::span<const int32_t> tokens);
  // Between two blocks: takes the next one's content (KvPool::CopyOut) instead of computing it. Its block has been
  // reserved.
  void Restore(const std::byte* content);
  // Lets others find the blocks that are full. `tokens`: the sequence's, at least length() of them.
  void Publish(std::span<const int32_t> tokens);

 private:
  struct Layer {
    uint64_t offset = 0, bytes = 0;  // of recurrent state
  };

  SequenceState() = default;
  std::byte* recurrent(uint32_t layer, uint32_t half) const;
  void ReleaseFrom(uint32_t block);  // of the table

  std::unique_ptr<KvPool> own_pool_;  // of Allocate
  KvPool* pool_ = nullptr;
  HostArena arena_;  // recurrent
  std::vector<Layer> layers_;
  std::vector<uint32_t> table_;
  bool recurrent_ = false;
  uint32_t max_positions_ = 0, length_ = 0, published_ = 0;  // published_: blocks
  uint32_t committed_half_ = 0;
};

}  // namespace moraine
