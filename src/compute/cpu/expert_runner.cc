#include "compute/cpu/expert_runner.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "compute/cpu/panel.h"

namespace moraine {
namespace {

// Intermediate rows that fit at once even for a backend of one token: decode with up to 64 experts
// a token (the largest top-k in use is 12) is one wave.
constexpr uint32_t kMinRows = 64;
// Tokens that one pass handles: whole blocks of 16 and of 7, AVX-512's, and few enough that their
// intermediates (28 KiB) and the activations of a stretch (77 KiB) stay in L2.
constexpr uint32_t kTokenChunk = 7 * kPackedTokens;
constexpr uint32_t kPairRows = 2 * kTileRows;
static_assert(kPairRows == kGroupCols, "a unit of gate and up fills whole groups of down's input");
constexpr size_t kThreadScratchFloats = 2 * kTokenChunk * kPairRows;
// Units a thread and region: the tail of a region is one unit, 1/16 of a thread's work.
constexpr uint32_t kUnitsPerThread = 16;

uint32_t PairCount(const ExpertTask& task) {
  return TileCount(task.weights.down.cols) * (kTileCols / kPairRows);
}

// The panels of gate and up whose rows are intermediates 32 * pair .. + 31, as far as they exist.
PanelArguments ArgumentsForPair(const ExpertView& w, uint32_t pair, float* gate, float* up) {
  const uint32_t first = 2 * pair, panels = PanelCount(w.gate.rows);
  const uint32_t count = first < panels ? std::min(2u, panels - first) : 0;
  PanelArguments arguments = ArgumentsForPanels(w.gate, first, count, gate);
  const PanelArguments more = ArgumentsForPanels(w.up, first, count, up);
  std::copy(more.panels, more.panels + count, arguments.panels + count);
  arguments.panel_count = 2 * count;
  // Padding rows are zeros, which is what `down` needs in its padding columns.
  for (Panel& panel : arguments.panels) panel.row_count = kTileRows;
  return arguments;
}

uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// x[t][i] += bias[i]; nothing for none.
void AddBias(const float* bias, uint32_t rows, uint32_t cols, uint32_t stride, float* x) {
  if (bias == nullptr) return;
  for (uint32_t t = 0; t < rows; ++t) {
    for (uint32_t i = 0; i < cols; ++i) x[size_t{t} * stride + i] += bias[i];
  }
}

const float* BiasAt(const float* bias, uint32_t row) {
  return bias == nullptr ? nullptr : bias + row;
}

}  // namespace

ExpertRunner::ExpertRunner(const KernelTable& kernels, ThreadPool& pool, uint32_t max_tokens,
                           uint32_t max_cols)
    : kernels_(kernels),
      pool_(pool),
      row_capacity_(std::max(max_tokens, kMinRows)),
      block_capacity_(2 * BlockCount(row_capacity_)),
      input_(max_tokens, max_cols),
      intermediate_(row_capacity_, max_cols),
      packed_input_(block_capacity_, max_cols),
      packed_intermediate_(block_capacity_, max_cols),
      places_(row_capacity_),
      thread_scratch_(kThreadScratchFloats * static_cast<size_t>(pool.thread_count())) {}

void ExpertRunner::SetInput(const float* x, size_t x_stride, uint32_t token_count, uint32_t hidden,
                            Encoding encoding) {
  input_has_codes_ = IsQuantised(encoding);
  input_.Prepare(kernels_, pool_, x, x_stride, token_count, hidden, !input_has_codes_,
                 input_has_codes_);
}

void ExpertRunner::Run(std::span<const ExpertTask> tasks) {
  while (!tasks.empty()) {
    tasks = tasks.subspan(PlanWave(tasks));
    if (place_count_ == 0) continue;
    if (input_has_codes_) {
      pool_.ParallelFor(block_count_, [this](uint32_t block, uint32_t) { PackInput(block); });
    }
    pool_.ParallelFor(gate_.unit_count,
                      [this](uint32_t unit, uint32_t thread) { RunGateUnit(unit, thread); });
    pool_.ParallelFor(down_.unit_count,
                      [this](uint32_t unit, uint32_t thread) { RunDownUnit(unit, thread); });
  }
}

void ExpertRunner::CheckTask(const ExpertTask& task) const {
  const ExpertView& w = task.weights;
  CHECK(w.gate.cols == input_.cols() && w.up.cols == input_.cols() && w.down.rows == w.gate.cols,
        "an expert's hidden size differs from its input's");
  CHECK(w.gate.rows == w.down.cols && w.up.rows == w.down.cols);
  CHECK(w.gate.encoding == w.up.encoding && IsQuantised(w.gate.encoding) == input_has_codes_,
        "SetExpertInput was called for another encoding");
  CHECK(task.token_count <= row_capacity_, "more tokens than the backend was built for");
}

// Takes as many tasks from the front as scratch has rows for; returns how many. Fills places_,
// gate_ and down_.
size_t ExpertRunner::PlanWave(std::span<const ExpertTask> tasks) {
  uint32_t rows = 0, pairs = 0, panels = 0, max_intermediate = 1;
  size_t taken = 0;
  place_count_ = block_count_ = 0;
  for (; taken < tasks.size(); ++taken) {
    const ExpertTask& task = tasks[taken];
    CheckTask(task);
    const uint32_t blocks = Packs(task) ? BlockCount(task.token_count) : 0;
    if (rows + task.token_count > row_capacity_ || block_count_ + blocks > block_capacity_) break;
    if (task.token_count == 0) continue;
    places_[place_count_++] = {&task, rows, block_count_, 0, 0};
    rows += task.token_count;
    block_count_ += blocks;
    pairs += PairCount(task);
    panels += PanelCount(task.weights.down.rows);
    max_intermediate = std::max(max_intermediate, task.weights.down.cols);
  }
  const uint32_t units = static_cast<uint32_t>(pool_.thread_count()) * kUnitsPerThread;
  gate_ = {std::max(1u, pairs / units), 0};
  down_ = {std::max(1u, panels / units), 0};
  for (uint32_t i = 0; i < place_count_; ++i) {
    Place& place = places_[i];
    place.first_gate_unit = gate_.unit_count;
    place.first_down_unit = down_.unit_count;
    gate_.unit_count += CeilDivide(PairCount(*place.task), gate_.per_unit);
    down_.unit_count += CeilDivide(PanelCount(place.task->weights.down.rows), down_.per_unit);
  }
  intermediate_.Shape(rows, max_intermediate);
  packed_input_.Shape(block_count_, input_.cols());
  packed_intermediate_.Shape(block_count_, max_intermediate);
  return taken;
}

// Block `block` of the wave's packed input.
void ExpertRunner::PackInput(uint32_t block) {
  const Place* places = places_.data();
  const Place& place = *(std::upper_bound(places, places + place_count_, block,
                                          [](uint32_t value, const Place& p) {
                                            return value < p.first_block;
                                          }) - 1);
  const uint32_t first = (block - place.first_block) * kPackedTokens;
  packed_input_.PackBlock(block, input_, place.task->token_rows + first, 0,
                          std::min(kPackedTokens, place.task->token_count - first));
}

void ExpertRunner::RunGateUnit(uint32_t unit, uint32_t thread) {
  const Place* places = places_.data();
  const Place& place = *(std::upper_bound(places, places + place_count_, unit,
                                          [](uint32_t value, const Place& p) {
                                            return value < p.first_gate_unit;
                                          }) - 1);
  const uint32_t begin = (unit - place.first_gate_unit) * gate_.per_unit;
  const uint32_t end = std::min(begin + gate_.per_unit, PairCount(*place.task));
  for (uint32_t pair = begin; pair < end; ++pair) RunPair(place, pair, thread);
}

// Intermediate rows 32 * pair .. + 31 of one expert for all its tokens.
void ExpertRunner::RunPair(const Place& place, uint32_t pair, uint32_t thread) {
  const ExpertTask& task = *place.task;
  float* gate = thread_scratch_.data() + thread * kThreadScratchFloats;
  float* up = gate + kTokenChunk * kPairRows;
  const PanelFunction kernel = PanelKernel(kernels_, task.weights.gate.encoding);
  for (uint32_t begin = 0; begin < task.token_count; begin += kTokenChunk) {
    const uint32_t count = std::min(kTokenChunk, task.token_count - begin);
    PanelArguments arguments = ArgumentsForPair(task.weights, pair, gate, up);
    if (arguments.panel_count < kMaxPanels) {  // columns that only pad `down`'s last tile
      std::memset(gate, 0, count * kPairRows * sizeof(float));
      std::memset(up, 0, count * kPairRows * sizeof(float));
    }
    if (arguments.panel_count > 0) {
      input_.FillArguments(0, &arguments);
      if (PacksInput(task)) {
        packed_input_.FillArguments(place.first_block * kPackedTokens + begin, &arguments);
      }
      arguments.token_rows = task.token_rows + begin;
      arguments.token_count = count;
      arguments.y_stride = kPairRows;
      kernel(arguments);
    }
    AddBias(BiasAt(task.weights.gate_bias, pair * kPairRows), count, kPairRows, kPairRows, gate);
    AddBias(BiasAt(task.weights.up_bias, pair * kPairRows), count, kPairRows, kPairRows, up);
    Activate(task.activation, gate, up, size_t{count} * kPairRows);
    for (uint32_t t = 0; t < count; ++t) FinishRow(place, pair, begin + t, gate + t * kPairRows);
  }
}

void ExpertRunner::Activate(const ExpertActivation& activation, float* gate, const float* up,
                            size_t count) const {
  switch (activation.kind) {
    case ActivationKind::kSwiGlu: kernels_.silu_mul(gate, up, count, gate); break;
    case ActivationKind::kClampedSwiGlu:
      kernels_.clamped_swiglu(gate, up, count, activation.limit, gate);
      break;
  }
}

// Hands 32 values of one token over to `down`, in the form its kernel reads.
void ExpertRunner::FinishRow(const Place& place, uint32_t pair, uint32_t token,
                             const float* values) {
  const size_t row = place.first_row + token;
  if (PacksIntermediate(*place.task)) {
    int8_t codes[kGroupCols];
    ActivationGroup scaled;
    kernels_.quantise(values, kPairRows, kPairRows, codes, &scaled);
    packed_intermediate_.Put(place.first_block * kPackedTokens + token, pair, codes, scaled);
  } else if (IsQuantised(place.task->weights.down.encoding)) {
    kernels_.quantise(values, kPairRows, kPairRows, intermediate_.codes(row) + pair * kPairRows,
                      intermediate_.groups(row) + pair);
  } else {
    std::memcpy(intermediate_.floats(row) + pair * kPairRows, values, kPairRows * sizeof(float));
  }
}

void ExpertRunner::RunDownUnit(uint32_t unit, uint32_t thread) {
  const Place* places = places_.data();
  const Place& place = *(std::upper_bound(places, places + place_count_, unit,
                                          [](uint32_t value, const Place& p) {
                                            return value < p.first_down_unit;
                                          }) - 1);
  const ExpertTask& task = *place.task;
  const MatrixView& w = task.weights.down;
  const uint32_t begin = (unit - place.first_down_unit) * down_.per_unit;
  const uint32_t end = std::min(begin + down_.per_unit, PanelCount(w.rows));
  for (uint32_t panel = begin; panel < end; panel += kMaxPanels) {
    for (uint32_t token = 0; token < task.token_count; token += kTokenChunk) {
      RunDown(place, {panel, std::min(panel + kMaxPanels, end), token,
                      std::min(token + kTokenChunk, task.token_count)}, thread);
    }
  }
}

// Up to kMaxPanels panels of one expert's down matrix. The kernels of many tokens come back to their
// output after every stretch of columns: rows of the output itself, a power of two apart, share a few
// sets of the caches (5 to 10 % at 128 to 512 tokens).
void ExpertRunner::RunDown(const Place& place, const PanelSplit::Part& part, uint32_t thread) {
  const ExpertTask& task = *place.task;
  const MatrixView& w = task.weights.down;
  const uint32_t count = part.token_end - part.token_begin;
  float* output = task.output + size_t{part.token_begin} * w.rows + part.panel_begin * kTileRows;
  const bool direct = count < kPackedTokens;
  constexpr uint32_t kStride = kMaxPanels * kTileRows;
  static_assert(kStride * kTokenChunk <= kThreadScratchFloats);
  float* scratch = thread_scratch_.data() + thread * kThreadScratchFloats;
  PanelArguments arguments = ArgumentsForPanels(w, part.panel_begin,
                                                part.panel_end - part.panel_begin,
                                                direct ? output : scratch);
  intermediate_.FillArguments(place.first_row + part.token_begin, &arguments);
  if (PacksIntermediate(task)) {
    packed_intermediate_.FillArguments(place.first_block * kPackedTokens + part.token_begin,
                                       &arguments);
  }
  arguments.token_count = count;
  arguments.y_stride = direct ? w.rows : kStride;
  PanelKernel(kernels_, w.encoding)(arguments);
  const uint32_t rows = std::min(kStride, w.rows - part.panel_begin * kTileRows);
  const uint32_t width = std::min(rows, (part.panel_end - part.panel_begin) * kTileRows);
  AddBias(BiasAt(task.weights.down_bias, part.panel_begin * kTileRows), count, width,
          direct ? w.rows : kStride, direct ? output : scratch);
  if (direct) return;
  for (uint32_t t = 0; t < count; ++t) {
    std::memcpy(output + size_t{t} * w.rows, scratch + t * kStride, width * sizeof(float));
  }
}

}  // namespace moraine
