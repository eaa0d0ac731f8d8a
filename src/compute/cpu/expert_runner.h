// The MoE block's experts: gate, up, SwiGLU, down, over all tasks of a batch in two parallel
// regions (and one before them that packs the input of tasks with many tokens). Internal to compute.
//
// Gate and up are computed for 32 intermediate rows at a time, because 32 is the group in which
// `down` wants its input quantised: a unit ends with finished int8 codes and nothing in float32 is
// written to memory in between. Scratch holds a fixed number of intermediate rows; a batch that
// needs more runs in waves, so nothing is ever allocated after construction.
#pragma once

#include <cstdint>
#include <span>

#include "compute/aligned_array.h"
#include "compute/cpu/activations.h"
#include "compute/cpu/panel.h"
#include "compute/cpu_backend.h"

namespace moraine {

class ExpertRunner {
 public:
  ExpertRunner(const KernelTable& kernels, ThreadPool& pool, uint32_t max_tokens,
               uint32_t max_cols);

  void SetInput(const float* x, size_t x_stride, uint32_t token_count, uint32_t hidden,
                Encoding encoding);
  void Run(std::span<const ExpertTask> tasks);

 private:
  // Where one task of a wave stands among the wave's rows and units.
  struct Place {
    const ExpertTask* task;
    uint32_t first_row;
    uint32_t first_block;  // of its packed activations; it has some if it packs
    uint32_t first_gate_unit, first_down_unit;
  };
  // Units of one region: `per_unit` panels or panel pairs each, cut at task borders.
  struct Region {
    uint32_t per_unit = 1;
    uint32_t unit_count = 0;
  };

  size_t PlanWave(std::span<const ExpertTask> tasks);
  void CheckTask(const ExpertTask& task) const;
  // Whether a task has enough tokens for kernels that want int8 activations packed.
  bool Packs(const ExpertTask& task) const { return task.token_count >= kernels_.packed_tokens; }
  bool PacksInput(const ExpertTask& task) const { return input_has_codes_ && Packs(task); }
  bool PacksIntermediate(const ExpertTask& task) const {
    return IsQuantised(task.weights.down.encoding) && Packs(task);
  }
  void PackInput(uint32_t block);
  void RunGateUnit(uint32_t unit, uint32_t thread);
  void RunPair(const Place& place, uint32_t pair, uint32_t thread);
  void Activate(const ExpertActivation& activation, float* gate, const float* up,
                size_t count) const;
  void FinishRow(const Place& place, uint32_t pair, uint32_t token, const float* values);
  void RunDownUnit(uint32_t unit, uint32_t thread);
  void RunDown(const Place& place, const PanelSplit::Part& part, uint32_t thread);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  const uint32_t row_capacity_, block_capacity_;
  Activations input_;
  bool input_has_codes_ = false;
  Activations intermediate_;
  // Of the wave's tasks that pack, one behind the other, each from a block of its own on.
  PackedActivations packed_input_, packed_intermediate_;
  uint32_t block_count_ = 0;
  AlignedArray<Place> places_;
  uint32_t place_count_ = 0;
  Region gate_, down_;
  AlignedArray<float> thread_scratch_;
};

}  // namespace moraine
