#include "model/sequence_state.h"

#include <fmt/format.h>

#include <cstring>

#include "base/bytes.h"
#include "base/check.h"
#include "model/blocks/mixer.h"

namespace moraine {
namespace {

constexpr uint64_t kAlignment = 64;

uint64_t PositionBytes(const LayerStateShape& shape, uint32_t max_positions) {
  return AlignUp(shape.position_bytes * max_positions, kAlignment);
}
uint64_t RecurrentBytes(const LayerStateShape& shape) {
  return 2 * AlignUp(shape.recurrent_bytes, kAlignment);
}

std::vector<LayerStateShape> ShapesOf(const ModelConfig& config, KvFormat format) {
  std::vector<LayerStateShape> shapes;
  for (const LayerConfig& layer : config.layers) {
    shapes.push_back(StateShapeOf(layer.mixer, format));
  }
  return shapes;
}

}  // namespace

uint64_t SequenceState::BytesFor(const ModelConfig& config, uint32_t max_positions,
                                 KvFormat format) {
  uint64_t bytes = 0;
  for (const LayerStateShape& shape : ShapesOf(config, format)) {
    bytes += PositionBytes(shape, max_positions) + RecurrentBytes(shape);
  }
  return bytes;
}

Result<SequenceState> SequenceState::Allocate(const ModelConfig& config, uint32_t max_positions,
                                              KvFormat format) {
  return Allocate(ShapesOf(config, format), max_positions, format);
}

Result<SequenceState> SequenceState::Allocate(std::vector<LayerStateShape> layers,
                                              uint32_t max_positions, KvFormat format) {
  SequenceState state;
  uint64_t offset = 0;
  for (const LayerStateShape& shape : layers) {
    Layer layer;
    layer.position_offset = offset;
    offset += PositionBytes(shape, max_positions);
    layer.recurrent_offset = offset;
    layer.recurrent_bytes = shape.recurrent_bytes;
    offset += RecurrentBytes(shape);
    state.layers_.push_back(layer);
  }
  ASSIGN_OR_RETURN(state.arena_,
                   HostArena::Allocate(offset, {.huge_pages = false, .populate = false}));
  state.format_ = format;
  state.max_positions_ = max_positions;
  return state;
}

std::byte* SequenceState::positions(uint32_t layer) {
  return arena_.data() + layers_[layer].position_offset;
}

std::byte* SequenceState::recurrent(uint32_t layer, uint32_t half) const {
  const Layer& l = layers_[layer];
  return const_cast<std::byte*>(arena_.data()) + l.recurrent_offset +
         half * AlignUp(l.recurrent_bytes, kAlignment);
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

void SequenceState::Reset() {
  length_ = 0;
  for (uint32_t i = 0; i < layers_.size(); ++i) {
    if (layers_[i].recurrent_bytes == 0) continue;
    std::memset(recurrent(i, committed_half_), 0, layers_[i].recurrent_bytes);
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
    if (layers_[i].recurrent_bytes == 0) continue;
    return FailedPrecondition(fmt::format(
        "layer {} has recurrent state, which cannot go back from {} tokens to {}", i, length_,
        length));
  }
  length_ = length;
  return OkStatus();
}

}  // namespace moraine
