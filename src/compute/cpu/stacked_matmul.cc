#include "compute/cpu/stacked_matmul.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "compute/cpu/panel.h"

namespace moraine {
namespace {

// Tokens of a task: whole blocks of 16 and of 7, as ExpertRunner's, and with 512 columns their
// packed activations (79 KiB) stay in L2 beside the matrix.
constexpr uint32_t kTokenChunk = 7 * kPackedTokens;
// Tasks a thread, so that the last one to finish is at most about 1/4 late.
constexpr uint32_t kTasksPerThread = 4;

uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

}  // namespace

StackedMatMul::Scratch::Scratch(uint32_t max_cols)
    : input(kTokenChunk, max_cols), packed(BlockCount(kTokenChunk), max_cols) {}

StackedMatMul::StackedMatMul(const KernelTable& kernels, ThreadPool& pool, uint32_t max_cols)
    : kernels_(kernels), pool_(pool) {
  scratch_.reserve(static_cast<size_t>(pool.thread_count()));
  for (int i = 0; i < pool.thread_count(); ++i) scratch_.emplace_back(max_cols);
}

void StackedMatMul::Run(const StackedMatMulCall& call) {
  if (call.token_count == 0 || call.weights.count == 0) return;
  const uint32_t panels = PanelCount(call.weights.first.rows);
  const uint32_t chunks = CeilDivide(call.token_count, kTokenChunk);
  const uint32_t wanted = static_cast<uint32_t>(pool_.thread_count()) * kTasksPerThread;
  const uint32_t cuts = std::clamp(wanted / (call.weights.count * chunks), 1u, panels);
  const uint32_t panels_per_task = CeilDivide(panels, cuts);
  const uint32_t runs = CeilDivide(panels, panels_per_task);
  pool_.ParallelFor(call.weights.count * chunks * runs, [&](uint32_t task, uint32_t thread) {
    const uint32_t run = task % runs, chunk = task / runs % chunks;
    const uint32_t token = chunk * kTokenChunk;
    RunPart(call, task / runs / chunks, run * panels_per_task,
            std::min(panels, (run + 1) * panels_per_task), token,
            std::min(kTokenChunk, call.token_count - token), &scratch_[thread]);
  });
}

void StackedMatMul::RunPart(const StackedMatMulCall& call, uint32_t part, uint32_t panel_begin,
                            uint32_t panel_end, uint32_t token_begin, uint32_t token_count,
                            Scratch* scratch) {
  const MatrixView w = call.weights.part(part);
  const float* x = call.x + token_begin * call.x_stride + part * call.x_part_stride;
  float* const y = call.y + token_begin * call.y_stride + part * call.y_part_stride;
  Activations& input = scratch->input;
  input.Shape(token_count, w.cols);
  const bool quantised = IsQuantised(w.encoding);
  const bool packs = quantised && token_count >= kernels_.packed_tokens;
  for (uint32_t t = 0; t < token_count; ++t, x += call.x_stride) {
    if (quantised) {
      kernels_.quantise(x, w.cols, input.padded_cols(), input.codes(t), input.groups(t));
    } else {
      std::memcpy(input.floats(t), x, w.cols * sizeof(float));
      std::memset(input.floats(t) + w.cols, 0, (input.padded_cols() - w.cols) * sizeof(float));
    }
  }
  if (packs) {
    scratch->packed.Shape(BlockCount(token_count), w.cols);
    for (uint32_t t = 0; t < token_count; t += kPackedTokens) {
      scratch->packed.PackBlock(t / kPackedTokens, input, nullptr, t,
                                std::min(kPackedTokens, token_count - t));
    }
  }
  for (uint32_t panel = panel_begin; panel < panel_end; panel += kMaxPanels) {
    const uint32_t count = std::min(kMaxPanels, panel_end - panel);
    PanelArguments arguments = ArgumentsForPanels(w, panel, count, y + panel * kTileRows);
    input.FillArguments(0, &arguments);
    if (packs) scratch->packed.FillArguments(0, &arguments);
    arguments.token_count = token_count;
    arguments.y_stride = call.y_stride;
    PanelKernel(kernels_, w.encoding)(arguments);
  }
}

}  // namespace moraine
