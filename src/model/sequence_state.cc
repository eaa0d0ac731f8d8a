#include "model/sequence_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/bytes.h"
#include "base/check.h"
#include "model/blocks/mixer.h"

namespace moraine {
namespace {

constexpr uint64_t kAlignment = 64;

uint64_t BothHalves(const LayerStateShape& shape) {
  return 2 * AlignUp(shape.recurrent_bytes, kAlignment);
}

}  // namespace

std::vector<LayerStateShape> StateShapesOf(const ModelConfig& config, KvFormat format) {
  std::vector<LayerStateShape> shapes;
  for (const LayerConfig& layer : config.layers) {
    shapes.push_back(StateShapeOf(layer.mixer, format));
  }
  return shapes;
}

uint64_t SequenceState::RecurrentBytes(std::span<const LayerStateShape> layers) {
  uint64_t bytes = 0;
  for (const LayerStateShape& shape : layers) bytes += BothHalves(shape);
  return bytes;
}

Result<SequenceState> SequenceState::Create(std::span<const LayerStateShape> layers, KvPool* pool,
                                            uint32_t max_positions) {
  SequenceState state;
  uint64_t offset = 0;
  for (const LayerStateShape& shape : layers) {
    state.layers_.push_back({offset, shape.recurrent_bytes});
    offset += BothHalves(shape);
  }
  state.recurrent_ = offset > 0;
  if (state.recurrent_) {
    ASSIGN_OR_RETURN(state.arena_,
                     HostArena::Allocate(offset, {.huge_pages = false, .populate = false}));
  }
  state.pool_ = pool;
  state.max_positions_ = max_positions;
  state.table_.reserve(KvPool::BlocksFor(max_positions));
  return state;
}

Result<SequenceState> SequenceState::Allocate(std::span<const LayerStateShape> layers,
                                              uint32_t max_positions, KvFormat format) {
  ASSIGN_OR_RETURN(std::unique_ptr<KvPool> pool,
                   KvPool::Create(layers, format, KvPool::BlocksFor(max_positions)));
  ASSIGN_OR_RETURN(SequenceState state, Create(layers, pool.get(), max_positions));
  state.own_pool_ = std::move(pool);
  return state;
}

Result<SequenceState> SequenceState::Allocate(const ModelConfig& config, uint32_t max_positions,
                                              KvFormat format) {
  return Allocate(StateShapesOf(config, format), max_positions, format);
}

SequenceState::~SequenceState() { ReleaseFrom(0); }

bool SequenceState::Reserve(uint32_t count) {
  CHECK(length_ + count <= max_positions_, "more than max_positions");
  const uint32_t blocks = KvPool::BlocksFor(length_ + count);
  while (table_.size() < blocks) {
    const uint32_t block = pool_->Take();
    if (block == KvPool::kNoBlock) return false;
    table_.push_back(block);
  }
  return true;
}

PositionBlocks SequenceState::positions(uint32_t layer) const {
  return {pool_->layer(layer), table_.data(), pool_->block_bytes(layer)};
}

std::byte* SequenceState::recurrent(uint32_t layer, uint32_t half) const {
  const Layer& l = layers_[layer];
  return arena_.data() + l.offset + half * AlignUp(l.bytes, kAlignment);
}

const std::byte* SequenceState::committed(uint32_t layer) const {
  return recurrent(layer, committed_half_);
}
std::byte* SequenceState::pending(uint32_t layer) { return recurrent(layer, 1 - committed_half_); }

void SequenceState::Commit(uint32_t count) {
  CHECK(length_ + count <= max_positions_);
  length_ += count;
  committed_half_ = 1 - committed_half_;
}

// The last first: a published block is given back before those in front of it (kv_pool.h).
void SequenceState::ReleaseFrom(uint32_t block) {
  while (table_.size() > block) {
    pool_->Release(table_.back());
    table_.pop_back();
  }
}

void SequenceState::Reset() {
  ReleaseFrom(0);
  const bool changed = length_ > 0;
  length_ = published_ = 0;
  for (uint32_t i = 0; changed && i < layers_.size(); ++i) {
    if (layers_[i].bytes == 0) continue;
    std::memset(recurrent(i, committed_half_), 0, layers_[i].bytes);
  }
}

Status SequenceState::Truncate(uint32_t length) {
  CHECK(length <= length_, "a sequence is cut, not extended");
  if (length == length_) return OkStatus();
  if (length == 0) {
    Reset();
    return OkStatus();
  }
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].bytes == 0) continue;
    return FailedPrecondition(fmt::format(
        "layer {} has recurrent state, which cannot go back from {} tokens to {}", i, length_,
        length));
  }
  CHECK(length >= published_ * kKvBlockPositions, "what was published does not change");
  ReleaseFrom(KvPool::BlocksFor(length));
  length_ = length;
  return OkStatus();
}

uint32_t SequenceState::TakePrefix(std::span<const int32_t> tokens) {
  CHECK(length_ == 0 && !tokens.empty());
  if (recurrent_) return 0;
  ReleaseFrom(0);  // of a chunk that was not committed
  const size_t most = std::min<size_t>(tokens.size() - 1, max_positions_) / kKvBlockPositions;
  uint32_t parent = KvPool::kNoBlock;
  while (table_.size() < most) {
    const uint32_t block = pool_->Find(
        parent, tokens.subspan(table_.size() * kKvBlockPositions, kKvBlockPositions));
    if (block == KvPool::kNoBlock) break;
    pool_->Hold(block);
    table_.push_back(parent = block);
  }
  published_ = static_cast<uint32_t>(table_.size());
  length_ = published_ * kKvBlockPositions;
  return length_;
}

void SequenceState::Restore(const std::byte* content) {
  CHECK(!recurrent_ && length_ % kKvBlockPositions == 0);
  CHECK(length_ + kKvBlockPositions <= max_positions_, "more than max_positions");
  pool_->CopyIn(table_.at(length_ / kKvBlockPositions), content);
  length_ += kKvBlockPositions;
}

void SequenceState::Publish(std::span<const int32_t> tokens) {
  CHECK(tokens.size() >= length_);
  if (recurrent_) return;
  for (; (published_ + 1) * kKvBlockPositions <= length_; ++published_) {
    const uint32_t parent = published_ == 0 ? KvPool::kNoBlock : table_[published_ - 1];
    table_[published_] = pool_->Publish(
        table_[published_], parent,
        tokens.subspan(size_t{published_} * kKvBlockPositions, kKvBlockPositions));
  }
}

}  // namespace moraine
