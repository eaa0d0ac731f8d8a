// KvPool: the memory that sequences keep by position, shared by all of them, and what may be found in it
// again: the prefix cache.
//
// Memory is cut into blocks of kKvBlockPositions positions, one index for the same block of all layers. A
// sequence has a table of blocks (sequence_state.h), so that one long and many short ones share what there
// is, and attention looks up one address a block (compute/cpu_backend.h, KvView). A region for the longest
// context of each sequence would hold as many sequences as contexts fit, however short they are.
//
//   free --Take--> held --Release--> free
//                   | Publish
//                   v
//             held, published --last Release--> cached --Hold--> held, published
//                                                  | evicted by Take when nothing is free
//                                                  v
//                                                 held
//
// Published blocks form a tree: a block is found by its parent (the block before it) and its tokens, which
// are compared, not only their hash: what somebody else has asked can never be taken for one's own prompt.
// Who holds a block holds its parents, and gives it back before them, so that the least recently held
// cached block never has a cached child. The content of a published block does not change any more.
//
// Memory is committed by the kernel as it is written. Besides: 4 bytes a position for the tokens, 40 a block.
// Threads: owned by one thread. Nothing allocates after Create.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "compute/kv_format.h"
#include "memory/host_arena.h"

namespace moraine {

struct LayerStateShape {
  uint64_t position_bytes = 0;   // a position
  uint64_t recurrent_bytes = 0;  // in all
};

struct KvPoolStats {
  uint32_t blocks = 0, held = 0, cached = 0;
  uint64_t evicted = 0;
};

class KvPool {
 public:
  static constexpr uint32_t kNoBlock = UINT32_MAX;
  static constexpr uint32_t BlocksFor(uint32_t positions) {
    return positions / kKvBlockPositions + (positions % kKvBlockPositions != 0);
  }
  static uint64_t BytesFor(std::span<const LayerStateShape> layers, uint32_t blocks);
  static Result<std::unique_ptr<KvPool>> Create(std::span<const LayerStateShape> layers,
                                                KvFormat format, uint32_t blocks);

  KvFormat format() const { return format_; }
  uint32_t block_count() const { return static_cast<uint32_t>(blocks_.size()); }
  // Block 0 of a layer, and how far apart its blocks are: position_bytes x kKvBlockPositions, in the mixer's
  // own order, 64-byte aligned.
  std::byte* layer(uint32_t layer) const { return arena_.data() + layers_[layer].offset; }
  uint64_t block_bytes(uint32_t layer) const { return layers_[layer].block_bytes; }
  // What a block has in all layers, one behind the other: how it is kept elsewhere. CopyIn: of a block that the
  // caller has taken and not published.
  uint64_t content_bytes() const;
  void CopyOut(uint32_t block, std::byte* content) const;
  void CopyIn(uint32_t block, const std::byte* content);
  std::span<std::byte> memory() const { return arena_.span(); }  // of all layers

  // Blocks that Take can give: free and cached ones.
  uint32_t available() const { return static_cast<uint32_t>(free_.size()) + cached_; }
  // A block for the caller alone, with whatever is in it; kNoBlock if all are held.
  uint32_t Take();
  void Hold(uint32_t block);
  void Release(uint32_t block);

  // The published block with these kKvBlockPositions tokens behind `parent` (kNoBlock: at the beginning of
  // a sequence), or kNoBlock.
  uint32_t Find(uint32_t parent, std::span<const int32_t> tokens) const;
  // Makes a held block, all of it written, findable. If there is one like it already, that is held instead
  // and `block` released; returns the one to go on with. `parent` is published and held.
  uint32_t Publish(uint32_t block, uint32_t parent, std::span<const int32_t> tokens);
  bool published(uint32_t block) const { return blocks_[block].published; }
  // Forgets what is cached; held blocks stay published.
  void DropCached();

  KvPoolStats stats() const;
  // CHECKs what the comment above says; O(blocks).
  void CheckInvariants() const;

 private:
  struct Layer {
    uint64_t offset = 0, block_bytes = 0;
  };
  struct Block {
    uint32_t holders = 0, children = 0;  // children: published ones
    uint32_t parent = kNoBlock;
    uint32_t next = kNoBlock;                     // in the bucket
    uint32_t older = kNoBlock, newer = kNoBlock;  // while cached
    uint64_t hash = 0;
    bool published = false;
  };

  KvPool() = default;
  std::span<int32_t> TokensOf(uint32_t block);
  uint32_t& Bucket(uint64_t hash) { return buckets_[hash % buckets_.size()]; }
  void Enlist(uint32_t block);   // as the most recently held of the cached
  void Delist(uint32_t block);
  void Forget(uint32_t block);   // is not published any more

  HostArena arena_;
  KvFormat format_ = KvFormat::kF32;
  std::vector<Layer> layers_;
  std::vector<Block> blocks_;
  std::vector<uint32_t> free_, buckets_;
  std::vector<int32_t> tokens_;  // of published blocks
  uint32_t oldest_ = kNoBlock, newest_ = kNoBlock, cached_ = 0;
  uint64_t evicted_ = 0;
};

}  // namespace moraine
