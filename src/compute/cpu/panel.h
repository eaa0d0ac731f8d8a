// How a product of a matrix and some tokens is cut into tasks. Internal to compute.
#pragma once

#include <algorithm>
#include <cstdint>

#include "compute/cpu/kernel_table.h"
#include "compute/encoding.h"

namespace moraine {

inline PanelFunction PanelKernel(const KernelTable& kernels, Encoding encoding) {
  switch (encoding) {
    case Encoding::kF32: return kernels.panel_f32;
    case Encoding::kBf16: return kernels.panel_bf16;
    case Encoding::kQ8: return kernels.panel_q8;
    case Encoding::kQ4: return kernels.panel_q4;
    case Encoding::kQ4Bf16: return kernels.panel_q4_bf16;
    case Encoding::kMxfp4: return kernels.panel_mxfp4;
    case Encoding::kIq4Nl: return kernels.panel_iq4_nl;
  }
  return nullptr;
}

// Of packed activations.
constexpr uint32_t BlockCount(uint32_t tokens) {
  return (tokens + kPackedTokens - 1) / kPackedTokens;
}

// The weight side of a kernel call: `count` panels of w from `panel` on, whose output for a token
// starts at y with row 0 of the first.
inline PanelArguments ArgumentsForPanels(const MatrixView& w, uint32_t panel, uint32_t count,
                                         float* y) {
  PanelArguments arguments;
  for (uint32_t p = 0; p < count; ++p) {
    arguments.panels[p] = {reinterpret_cast<const uint8_t*>(w.tile(panel + p, 0)),
                           std::min(kTileRows, w.rows - (panel + p) * kTileRows),
                           y + p * kTileRows};
  }
  arguments.panel_count = count;
  arguments.tile_stride = w.tile_stride;
  arguments.tile_count = TileCount(w.cols);
  arguments.next_panel = count * w.panel_stride;
  return arguments;
}

// Panels are cut into runs, so that a thread streams contiguous memory; tokens only when there are
// too few panels for the threads. A cut never changes a result, only who computes it.
struct PanelSplit {
  // Runs a thread: enough that the last one to finish is at most about 1/8 late.
  static constexpr uint32_t kTasksPerThread = 8;
  // Fewer tokens than this would read a panel more often than they pay for it; and a cut is where a
  // packed block begins.
  static constexpr uint32_t kMinTokens = kPackedTokens;

  struct Part {
    uint32_t panel_begin, panel_end, token_begin, token_end;
  };

  static PanelSplit Choose(uint32_t panels, uint32_t tokens, uint32_t threads) {
    PanelSplit split;
    split.panels = panels;
    split.tokens = tokens;
    const uint32_t wanted = threads * kTasksPerThread;
    split.panels_per_task = std::max(1u, panels / wanted);
    split.panel_tasks = (panels + split.panels_per_task - 1) / split.panels_per_task;
    const uint32_t token_cuts = std::clamp(wanted / split.panel_tasks, 1u,
                                           std::max(1u, tokens / kMinTokens));
    const uint32_t even_cut = (tokens + token_cuts - 1) / token_cuts;
    split.tokens_per_task = (even_cut + kMinTokens - 1) / kMinTokens * kMinTokens;
    split.token_tasks = (tokens + split.tokens_per_task - 1) / split.tokens_per_task;
    return split;
  }
  uint32_t task_count() const { return panel_tasks * token_tasks; }
  Part part(uint32_t task) const {
    const uint32_t panel = task / token_tasks * panels_per_task;
    const uint32_t token = task % token_tasks * tokens_per_task;
    return {panel, std::min(panels, panel + panels_per_task), token,
            std::min(tokens, token + tokens_per_task)};
  }

  uint32_t panels = 0, tokens = 0;
  uint32_t panels_per_task = 1, tokens_per_task = 1;
  uint32_t panel_tasks = 0, token_tasks = 0;
};

}  // namespace moraine
