#include "model/kv_pool.h"

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "base/check.h"

namespace moraine {
namespace {

constexpr uint64_t kAlignment = 64;

uint64_t BlockBytes(const LayerStateShape& shape) {
  return AlignUp(shape.position_bytes * kKvBlockPositions, kAlignment);
}

// FNV-1a over words; where it collides, tokens and parents are compared.
uint64_t HashOf(uint32_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = 0xcbf29ce484222325u ^ parent;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

uint64_t KvPool::BytesFor(std::span<const LayerStateShape> layers, uint32_t blocks) {
  uint64_t block_bytes = sizeof(Block) + 3 * sizeof(uint32_t) + kKvBlockPositions * sizeof(int32_t);
  for (const LayerStateShape& shape : layers) block_bytes += BlockBytes(shape);
  return block_bytes * blocks;
}

Result<std::unique_ptr<KvPool>> KvPool::Create(std::span<const LayerStateShape> layers,
                                               KvFormat format, uint32_t blocks) {
  std::unique_ptr<KvPool> pool(new KvPool());
  uint64_t offset = 0;
  for (const LayerStateShape& shape : layers) {
    pool->layers_.push_back({offset, BlockBytes(shape)});
    offset += BlockBytes(shape) * blocks;
  }
  ASSIGN_OR_RETURN(pool->arena_, HostArena::Allocate(std::max<uint64_t>(offset, kAlignment),
                                                     {.huge_pages = false, .populate = false}));
  pool->format_ = format;
  pool->blocks_.resize(blocks);
  pool->buckets_.assign(std::max(2 * blocks, 1u), kNoBlock);
  pool->tokens_.resize(size_t{blocks} * kKvBlockPositions);
  for (uint32_t i = 0; i < blocks; ++i) pool->free_.push_back(blocks - 1 - i);
  return pool;
}

std::span<int32_t> KvPool::TokensOf(uint32_t block) {
  return {&tokens_[size_t{block} * kKvBlockPositions], kKvBlockPositions};
}

uint64_t KvPool::content_bytes() const {
  uint64_t bytes = 0;
  for (const Layer& layer : layers_) bytes += layer.block_bytes;
  return bytes;
}

void KvPool::CopyOut(uint32_t block, std::byte* content) const {
  for (const Layer& layer : layers_) {
    std::memcpy(content, arena_.data() + layer.offset + block * layer.block_bytes, layer.block_bytes);
    content += layer.block_bytes;
  }
}

void KvPool::CopyIn(uint32_t block, const std::byte* content) {
  CHECK(blocks_[block].holders == 1 && !blocks_[block].published);
  for (const Layer& layer : layers_) {
    std::memcpy(arena_.data() + layer.offset + block * layer.block_bytes, content, layer.block_bytes);
    content += layer.block_bytes;
  }
}

uint32_t KvPool::Take() {
  uint32_t block = kNoBlock;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (oldest_ != kNoBlock) {
    block = oldest_;
    Delist(block);
    Forget(block);
    ++evicted_;
  } else {
    return kNoBlock;
  }
  blocks_[block].holders = 1;
  return block;
}

void KvPool::Hold(uint32_t block) {
  Block& b = blocks_[block];
  CHECK(b.holders > 0 || b.published, "a free block is taken, not held");
  if (b.holders++ == 0) Delist(block);
}

void KvPool::Release(uint32_t block) {
  Block& b = blocks_[block];
  CHECK(b.holders > 0, "a block is released more often than it was held");
  if (--b.holders > 0) return;
  if (b.published) {
    Enlist(block);
  } else {
    free_.push_back(block);
  }
}

uint32_t KvPool::Find(uint32_t parent, std::span<const int32_t> tokens) const {
  CHECK(tokens.size() == kKvBlockPositions);
  const uint64_t hash = HashOf(parent, tokens);
  for (uint32_t i = buckets_[hash % buckets_.size()]; i != kNoBlock; i = blocks_[i].next) {
    if (blocks_[i].hash == hash && blocks_[i].parent == parent &&
        std::equal(tokens.begin(), tokens.end(), &tokens_[size_t{i} * kKvBlockPositions])) {
      return i;
    }
  }
  return kNoBlock;
}

uint32_t KvPool::Publish(uint32_t block, uint32_t parent, std::span<const int32_t> tokens) {
  Block& b = blocks_[block];
  CHECK(b.holders == 1 && !b.published, "only what one sequence alone has written is published");
  const uint32_t same = Find(parent, tokens);
  if (same != kNoBlock) {
    Hold(same);
    Release(block);
    return same;
  }
  if (parent != kNoBlock) {
    CHECK(blocks_[parent].published && blocks_[parent].holders > 0);
    ++blocks_[parent].children;
  }
  std::copy(tokens.begin(), tokens.end(), TokensOf(block).begin());
  b.hash = HashOf(parent, tokens);
  b.parent = parent;
  b.published = true;
  b.next = Bucket(b.hash);
  Bucket(b.hash) = block;
  return block;
}

void KvPool::DropCached() {
  while (oldest_ != kNoBlock) {
    const uint32_t block = oldest_;
    Delist(block);
    Forget(block);
    free_.push_back(block);
  }
}

void KvPool::Enlist(uint32_t block) {
  Block& b = blocks_[block];
  b.older = newest_;
  b.newer = kNoBlock;
  (newest_ == kNoBlock ? oldest_ : blocks_[newest_].newer) = block;
  newest_ = block;
  ++cached_;
}

void KvPool::Delist(uint32_t block) {
  Block& b = blocks_[block];
  (b.older == kNoBlock ? oldest_ : blocks_[b.older].newer) = b.newer;
  (b.newer == kNoBlock ? newest_ : blocks_[b.newer].older) = b.older;
  b.older = b.newer = kNoBlock;
  --cached_;
}

void KvPool::Forget(uint32_t block) {
  Block& b = blocks_[block];
  CHECK(b.published && b.holders == 0 && b.children == 0, "a block goes after those behind it");
  uint32_t* link = &Bucket(b.hash);
  while (*link != block) link = &blocks_[*link].next;
  *link = b.next;
  if (b.parent != kNoBlock) --blocks_[b.parent].children;
  b = {};
}

KvPoolStats KvPool::stats() const {
  return {block_count(), block_count() - available(), cached_, evicted_};
}

void KvPool::CheckInvariants() const {
  uint32_t free = 0, cached = 0;
  std::vector<uint32_t> children(blocks_.size());
  for (const Block& b : blocks_) {
    free += b.holders == 0 && !b.published;
    cached += b.holders == 0 && b.published;
    if (!b.published || b.parent == kNoBlock) continue;
    const Block& parent = blocks_[b.parent];
    CHECK(parent.published, "a published block behind one that is not");
    CHECK(parent.holders > 0 || b.holders == 0, "who holds a block holds its parents");
    ++children[b.parent];
  }
  CHECK(free == free_.size() && cached == cached_, "a block is lost");
  for (uint32_t i = 0; i < blocks_.size(); ++i) CHECK(blocks_[i].children == children[i]);
  uint32_t listed = 0;
  for (uint32_t i = oldest_; i != kNoBlock; i = blocks_[i].newer) {
    ++listed;
    CHECK(blocks_[i].holders == 0 && blocks_[i].published);
    if (blocks_[i].newer != kNoBlock) CHECK(blocks_[blocks_[i].newer].older == i);
  }
  CHECK(listed == cached_, "a cached block is in no list");
  uint32_t found = 0;
  for (const uint32_t bucket : buckets_) {
    for (uint32_t i = bucket; i != kNoBlock; i = blocks_[i].next) ++found;
  }
  const auto published = std::ranges::count_if(blocks_, [](const Block& b) { return b.published; });
  CHECK(found == published, "a published block is in no bucket");
}

}  // namespace moraine
