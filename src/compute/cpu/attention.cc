#include "compute/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "base/check.h"

namespace moraine {
namespace {

// Positions of a split: at head_dim 128 its K and V are 512 KiB, some 40 us of memory traffic, long
// against the hand-over of a task; 4096 positions still give 8 tasks a KV head.
constexpr uint32_t kSplit = 512;
static_assert(kSplit % kAttentionBlock == 0);
// Floats of one state: all rows of a unit at 128 value dimensions, 72 KiB; fewer rows of more.
constexpr size_t kStateFloats = kAttentionMaxRows * size_t{AttentionStateStride(128)};
static_assert(AttentionStateStride(kAttentionMaxDim) <= kStateFloats);
// A running state and a split's state for RunWhole; in RunInSplits the same memory gives each unit
// a running one and those of a wave of splits.
constexpr size_t kStatesPerThread = 2;
// Of all queries of a unit, which may have more dimensions than values have (MLA: 576 and 512, 34
// rows, so 128 heads on one latent are 4 slices of 32).
constexpr size_t kQueryFloats = kStateFloats + kAttentionMaxRows * kAttentionStateHeader;
// AttentionScratchFloats for every head_dim and the rows that a unit then has.
constexpr size_t kScratchFloats =
    AttentionScratchFloats(kAttentionMaxDim, 0) + kQueryFloats +
    kAttentionMaxRows * kAttentionBlock;
// Bringing in a block costs as much as computing some 10 rows with it: units of fewer rows than
// this only where there are no more.
constexpr uint32_t kFewRows = 32;
// So that the last ones, which see most, do not leave threads waiting.
constexpr uint32_t kUnitsPerThread = 4;
static_assert(kAttentionBlock == kKvBlockPositions);
static_assert(static_cast<int>(KvPacking::kFp8) == static_cast<int>(KvFormat::kFp8) &&
              static_cast<int>(KvPacking::kQ8) == static_cast<int>(KvFormat::kQ8) &&
              static_cast<int>(KvPacking::kBf16) == static_cast<int>(KvFormat::kBf16));

uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

uint32_t ValueDim(const AttentionShape& shape) {
  return shape.value_dim != 0 ? shape.value_dim : shape.head_dim;
}

// Rows that a unit can have: their states and their queries are bounded.
uint32_t MostRows(const AttentionShape& shape) {
  const uint32_t padded = AttentionStateStride(shape.head_dim) - kAttentionStateHeader;
  return static_cast<uint32_t>(std::min({size_t{kAttentionMaxRows}, kQueryFloats / padded,
                                         kStateFloats / AttentionStateStride(ValueDim(shape))}));
}

}  // namespace

// How a call is cut: by KV head, by slices of the query heads of one where they are more than a
// state holds, and by tokens.
class AttentionUnits {
 public:
  struct Unit {
    uint32_t token, token_count;
    uint32_t kv_head, head, head_count;  // head: among all query heads
    uint32_t begin, end;                 // positions that one of the tokens sees
  };

  AttentionUnits(const AttentionCall& call, uint32_t threads) : call_(call) {
    const AttentionShape& shape = call.shape;
    const uint32_t group = shape.query_heads / shape.kv_heads;
    const uint32_t rows = MostRows(shape);
    slices_ = CeilDivide(group, rows);
    heads_ = CeilDivide(group, slices_);
    const uint32_t columns = shape.kv_heads * slices_;
    const uint32_t most = rows / heads_;
    uint32_t tokens = call.token_count * columns / (kUnitsPerThread * threads);
    tokens = std::min(most, std::max(tokens, CeilDivide(kFewRows, heads_)));
    tokens_ = CeilDivide(call.token_count, CeilDivide(call.token_count, tokens));
    token_tiles_ = CeilDivide(call.token_count, tokens_);
    count_ = columns * token_tiles_;
  }

  uint32_t count() const { return count_; }
  size_t state_floats() const {
    return size_t{tokens_} * heads_ * AttentionStateStride(ValueDim(call_.shape));
  }

  Unit At(uint32_t index) const {
    const AttentionShape& shape = call_.shape;
    const uint32_t group = shape.query_heads / shape.kv_heads;
    const uint32_t column = index / token_tiles_, slice = column % slices_;
    Unit unit;
    // The last tokens see most positions and go first, so that the region ends evenly.
    unit.token = (token_tiles_ - 1 - index % token_tiles_) * tokens_;
    unit.token_count = std::min(tokens_, call_.token_count - unit.token);
    unit.kv_head = column / slices_;
    unit.head = unit.kv_head * group + slice * heads_;
    unit.head_count = std::min(heads_, group - slice * heads_);
    const uint32_t first_end = call_.first_position + unit.token + 1;
    const uint32_t window = shape.sliding_window;
    unit.begin = window != 0 && first_end > window ? first_end - window : 0;
    unit.end = first_end + unit.token_count - 1;
    return unit;
  }

  // For one split of a unit.
  AttentionArguments Arguments(const Unit& unit, uint32_t split, float* state,
                               float* scratch) const {
    const uint32_t dim = call_.shape.head_dim;
    const size_t kv_head = unit.kv_head * call_.kv.strides.head;
    AttentionArguments arguments;
    arguments.q = call_.q + unit.token * call_.q_stride + size_t{unit.head} * dim;
    arguments.q_stride = call_.q_stride;
    arguments.keys = call_.kv.keys + kv_head;
    arguments.values = call_.kv.values + kv_head;
    arguments.kv_stride = call_.kv.strides.position;
    arguments.blocks = call_.kv.blocks;
    arguments.block_bytes = call_.kv.block_bytes;
    arguments.packing = static_cast<KvPacking>(call_.kv.format);
    arguments.scratch = scratch;
    arguments.token_count = unit.token_count;
    arguments.heads = unit.head_count;
    arguments.head_dim = dim;
    arguments.value_dim = ValueDim(call_.shape);
    arguments.scale = call_.shape.scale;
    arguments.first_end = call_.first_position + unit.token + 1;
    arguments.window = call_.shape.sliding_window;
    arguments.begin = split * kSplit;
    arguments.end = std::min(unit.end, (split + 1) * kSplit);
    arguments.state = state;
    return arguments;
  }

  void Finish(const KernelTable& kernels, const Unit& unit, float* state) const {
    const uint32_t dim = ValueDim(call_.shape);
    for (uint32_t t = 0; t < unit.token_count; ++t) {
      if (call_.shape.sinks != nullptr) AddSinks(unit, state);
      kernels.finish(state, unit.head_count, dim,
                     call_.out + (unit.token + t) * call_.out_stride + size_t{unit.head} * dim);
      state += size_t{unit.head_count} * AttentionStateStride(dim);
    }
  }

 private:
  // A sink is one more score, of a position whose value is zero: it only adds to the sum of weights, which
  // are powers of two below the state's maximum. One far above it makes the sum infinite, the output zero.
  void AddSinks(const Unit& unit, float* state) const {
    for (uint32_t head = 0; head < unit.head_count; ++head) {
      const float sink = call_.shape.sinks[unit.head + head] * std::numbers::log2e_v<float>;
      state[1] += std::exp2(sink - state[0]);
      state += AttentionStateStride(ValueDim(call_.shape));
    }
  }

  const AttentionCall& call_;
  uint32_t slices_, heads_;        // of a KV head; query heads of a slice
  uint32_t tokens_, token_tiles_;  // of a unit; of the call
  uint32_t count_;
};

AttentionRunner::AttentionRunner(const KernelTable& kernels, ThreadPool& pool)
    : kernels_(kernels),
      pool_(pool),
      state_floats_(static_cast<size_t>(pool.thread_count()) * kStatesPerThread * kStateFloats),
      states_(state_floats_),
      kernel_scratch_(static_cast<size_t>(pool.thread_count()) * kScratchFloats) {}

void AttentionRunner::Run(const AttentionCall& call) {
  const AttentionShape& shape = call.shape;
  if (call.token_count == 0) return;
  CHECK(shape.kv_heads > 0 && shape.query_heads % shape.kv_heads == 0,
        "query heads must be a multiple of KV heads");
  CHECK(shape.head_dim <= kAttentionMaxDim, "head_dim is too large");
  CHECK(ValueDim(shape) <= shape.head_dim, "values have at most the dimensions of keys");
  const uint32_t threads = static_cast<uint32_t>(pool_.thread_count());
  const AttentionUnits units(call, threads);
  const size_t states_per_unit = state_floats_ / units.state_floats() / units.count();
  const bool several_splits = call.first_position + call.token_count > kSplit;
  if (threads > 1 && units.count() < 2 * threads && several_splits && states_per_unit >= 2) {
    RunInSplits(call, units, static_cast<uint32_t>(states_per_unit - 1));
    return;
  }
  pool_.ParallelFor(units.count(), [&](uint32_t index, uint32_t thread) {
    RunWhole(units, index, thread);
  });
}

float* AttentionRunner::KernelScratch(uint32_t thread) {
  return kernel_scratch_.data() + thread * kScratchFloats;
}

void AttentionRunner::RunWhole(const AttentionUnits& units, uint32_t index, uint32_t thread) {
  const AttentionUnits::Unit unit = units.At(index);
  float* const running = states_.data() + thread * kStatesPerThread * kStateFloats;
  float* const part = running + kStateFloats;
  const uint32_t first_split = unit.begin / kSplit;
  for (uint32_t split = first_split; split * kSplit < unit.end; ++split) {
    float* const state = split == first_split ? running : part;
    AttentionArguments arguments = units.Arguments(unit, split, state, KernelScratch(thread));
    arguments.queries_packed = split != first_split;
    kernels_.attend(arguments);
    if (split == first_split) continue;
    kernels_.merge(running, part, unit.token_count * unit.head_count, arguments.value_dim);
  }
  units.Finish(kernels_, unit, running);
}

void AttentionRunner::RunInSplits(const AttentionCall& call, const AttentionUnits& units,
                                  uint32_t splits_per_wave) {
  const size_t state_floats = units.state_floats();
  const uint32_t split_count = CeilDivide(call.first_position + call.token_count, kSplit);
  // The running state of each unit, then splits_per_wave states of each unit.
  const auto running = [&](uint32_t unit) { return states_.data() + unit * state_floats; };
  const auto part = [&](uint32_t unit, uint32_t i) {
    return states_.data() + (units.count() + size_t{unit} * splits_per_wave + i) * state_floats;
  };
  const auto sees = [](const AttentionUnits::Unit& unit, uint32_t split) {
    return split * kSplit < unit.end && (split + 1) * kSplit > unit.begin;
  };
  uint32_t first_split = split_count;
  for (uint32_t i = 0; i < units.count(); ++i) {
    first_split = std::min(first_split, units.At(i).begin / kSplit);
  }
  for (uint32_t wave = first_split; wave < split_count; wave += splits_per_wave) {
    const uint32_t count = std::min(splits_per_wave, split_count - wave);
    pool_.ParallelFor(units.count() * count, [&](uint32_t task, uint32_t thread) {
      const AttentionUnits::Unit unit = units.At(task / count);
      const uint32_t split = wave + task % count;
      if (!sees(unit, split)) return;
      kernels_.attend(
          units.Arguments(unit, split, part(task / count, task % count), KernelScratch(thread)));
    });
    pool_.ParallelFor(units.count(), [&](uint32_t index, uint32_t) {
      const AttentionUnits::Unit unit = units.At(index);
      for (uint32_t i = 0; i < count; ++i) {
        if (!sees(unit, wave + i)) continue;
        if (wave + i == unit.begin / kSplit) {
          std::memcpy(running(index), part(index, i), state_floats * sizeof(float));
        } else {
          kernels_.merge(running(index), part(index, i), unit.token_count * unit.head_count,
                         ValueDim(call.shape));
        }
      }
      if (wave + count == split_count) units.Finish(kernels_, unit, running(index));
    });
  }
}

}  // namespace moraine
