#include "compute/cpu/attention.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace moraine {
namespace {

// Positions of a split: at head_dim 128 its K and V are 512 KiB, some 40 us of memory traffic, long
// against the hand-over of a task; 4096 positions still give 8 tasks a KV head.
constexpr uint32_t kSplit = 512;
static_assert(kSplit % kAttentionBlock == 0);
// Floats of one state (all heads of a group): 32 KiB, half of what a thread keeps in L1 and L2
// beside K and V. Groups with more heads run in slices.
constexpr size_t kStateFloats = 8192;
// A running state and a split's state for RunWhole; in RunInSplits the same memory gives at least
// one running and one split's state to each of fewer than 2 * threads units.
constexpr size_t kStatesPerThread = 4;
// Of a packed cache: a block is then 64 KiB of floats, which all query heads of the group read.
constexpr uint32_t kMaxPackedDim = 256;
static_assert(static_cast<int>(KvPacking::kQ8) == static_cast<int>(KvFormat::kQ8) &&
              static_cast<int>(KvPacking::kBf16) == static_cast<int>(KvFormat::kBf16));

// Heads are processed in groups of those that share a KV head.
struct Unit {
  uint32_t token, kv_head;
  uint32_t begin, end;  // positions it sees
};

Unit UnitAt(const AttentionCall& call, uint32_t index) {
  Unit unit;
  unit.kv_head = index / call.token_count;
  // The last tokens see most positions and go first, so that the region ends evenly.
  unit.token = call.token_count - 1 - index % call.token_count;
  unit.end = call.first_position + unit.token + 1;
  const uint32_t window = call.shape.sliding_window;
  unit.begin = window != 0 && unit.end > window ? unit.end - window : 0;
  return unit;
}

AttentionArguments ArgumentsFor(const AttentionCall& call, const Unit& unit, uint32_t first_head,
                                uint32_t heads) {
  const uint32_t dim = call.shape.head_dim;
  const uint32_t group = call.shape.query_heads / call.shape.kv_heads;
  AttentionArguments arguments;
  arguments.q = call.q + unit.token * call.q_stride + size_t{unit.kv_head * group + first_head} * dim;
  const size_t head = unit.kv_head * KvHeadBytes(call.kv.format, dim);
  arguments.keys = call.kv.keys + head;
  arguments.values = call.kv.values + head;
  arguments.kv_stride = call.kv.stride;
  arguments.packing = static_cast<KvPacking>(call.kv.format);
  arguments.heads = heads;
  arguments.head_dim = dim;
  arguments.scale = call.shape.scale;
  return arguments;
}

float* OutputOf(const AttentionCall& call, const Unit& unit, uint32_t first_head) {
  const uint32_t group = call.shape.query_heads / call.shape.kv_heads;
  return call.out + unit.token * call.out_stride +
         size_t{unit.kv_head * group + first_head} * call.shape.head_dim;
}

}  // namespace

AttentionRunner::AttentionRunner(const KernelTable& kernels, ThreadPool& pool)
    : kernels_(kernels),
      pool_(pool),
      scratch_floats_(static_cast<size_t>(pool.thread_count()) * kStatesPerThread * kStateFloats),
      scratch_(scratch_floats_),
      unpacked_(static_cast<size_t>(pool.thread_count()) * AttentionScratchFloats(kMaxPackedDim)) {
}

void AttentionRunner::Run(const AttentionCall& call) {
  const AttentionShape& shape = call.shape;
  if (call.token_count == 0) return;
  CHECK(shape.kv_heads > 0 && shape.query_heads % shape.kv_heads == 0,
        "query heads must be a multiple of KV heads");
  CHECK(AttentionStateStride(shape.head_dim) <= kStateFloats, "head_dim is too large");
  CHECK(call.kv.format == KvFormat::kF32 || shape.head_dim <= kMaxPackedDim,
        "head_dim is too large for a packed KV cache");
  const uint32_t units = call.token_count * shape.kv_heads;
  const uint32_t threads = static_cast<uint32_t>(pool_.thread_count());
  const size_t state = size_t{shape.query_heads / shape.kv_heads} * AttentionStateStride(shape.head_dim);
  const size_t states_per_unit = scratch_floats_ / state / units;
  const bool several_splits = call.first_position + call.token_count > kSplit;
  if (threads > 1 && units < 2 * threads && several_splits && states_per_unit >= 2) {
    RunInSplits(call, static_cast<uint32_t>(states_per_unit - 1));
    return;
  }
  pool_.ParallelFor(units, [&](uint32_t unit, uint32_t thread) { RunWhole(call, unit, thread); });
}

float* AttentionRunner::Unpacked(uint32_t thread) {
  return unpacked_.data() + size_t{thread} * AttentionScratchFloats(kMaxPackedDim);
}

void AttentionRunner::RunWhole(const AttentionCall& call, uint32_t index, uint32_t thread) {
  const Unit unit = UnitAt(call, index);
  const uint32_t dim = call.shape.head_dim;
  const uint32_t group = call.shape.query_heads / call.shape.kv_heads;
  const uint32_t slice = std::min(group, static_cast<uint32_t>(kStateFloats / AttentionStateStride(dim)));
  float* running = scratch_.data() + thread * kStatesPerThread * kStateFloats;
  float* part = running + kStateFloats;
  for (uint32_t first = 0; first < group; first += slice) {
    const uint32_t heads = std::min(slice, group - first);
    AttentionArguments arguments = ArgumentsFor(call, unit, first, heads);
    arguments.unpacked = Unpacked(thread);
    const uint32_t first_split = unit.begin / kSplit;
    for (uint32_t split = first_split; split * kSplit < unit.end; ++split) {
      arguments.begin = std::max(unit.begin, split * kSplit);
      arguments.end = std::min(unit.end, (split + 1) * kSplit);
      arguments.state = split == first_split ? running : part;
      kernels_.attend(arguments);
      if (split != first_split) kernels_.merge(running, part, heads, dim);
    }
    kernels_.finish(running, heads, dim, OutputOf(call, unit, first));
  }
}

void AttentionRunner::RunInSplits(const AttentionCall& call, uint32_t splits_per_wave) {
  const uint32_t dim = call.shape.head_dim;
  const uint32_t group = call.shape.query_heads / call.shape.kv_heads;
  const size_t state_floats = size_t{group} * AttentionStateStride(dim);
  const uint32_t units = call.token_count * call.shape.kv_heads;
  const uint32_t split_count = (call.first_position + call.token_count + kSplit - 1) / kSplit;
  // scratch: the running state of each unit, then splits_per_wave states of each unit.
  const auto running = [&](uint32_t unit) { return scratch_.data() + unit * state_floats; };
  const auto part = [&](uint32_t unit, uint32_t i) {
    return scratch_.data() + (units + size_t{unit} * splits_per_wave + i) * state_floats;
  };
  const auto sees = [](const Unit& unit, uint32_t split) {
    return split * kSplit < unit.end && (split + 1) * kSplit > unit.begin;
  };
  for (uint32_t wave = UnitAt(call, units - 1).begin / kSplit; wave < split_count;
       wave += splits_per_wave) {
    const uint32_t count = std::min(splits_per_wave, split_count - wave);
    pool_.ParallelFor(units * count, [&](uint32_t task, uint32_t thread) {
      const Unit unit = UnitAt(call, task / count);
      const uint32_t split = wave + task % count;
      if (!sees(unit, split)) return;
      AttentionArguments arguments = ArgumentsFor(call, unit, 0, group);
      arguments.begin = std::max(unit.begin, split * kSplit);
      arguments.end = std::min(unit.end, (split + 1) * kSplit);
      arguments.state = part(task / count, task % count);
      arguments.unpacked = Unpacked(thread);
      kernels_.attend(arguments);
    });
    pool_.ParallelFor(units, [&](uint32_t index, uint32_t) {
      const Unit unit = UnitAt(call, index);
      for (uint32_t i = 0; i < count; ++i) {
        if (!sees(unit, wave + i)) continue;
        if (wave + i == unit.begin / kSplit) {
          std::memcpy(running(index), part(index, i), state_floats * sizeof(float));
        } else {
          kernels_.merge(running(index), part(index, i), group, dim);
        }
      }
      if (wave + count == split_count) {
        kernels_.finish(running(index), group, dim, OutputOf(call, unit, 0));
      }
    });
  }
}

}  // namespace moraine
