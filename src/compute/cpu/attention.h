// Causal attention over a KV cache. Internal to compute.
//
// Positions are cut into splits of 512 counted from 0; each split is one online softmax from
// scratch, and splits are merged in order. A unit of work is some tokens of one KV head: as many as
// let a block of keys and values, once it is in cache, serve up to 128 rows (prefill). Where that
// gives too few units for the threads, each split of a unit is a task, in waves of what scratch
// holds (decode). A row's result depends on neither: its splits and blocks are the same, and the
// kernel (attention_kernels.h) computes each row by itself.
#pragma once

#include <cstdint>

#include "compute/aligned_array.h"
#include "compute/cpu/kernel_table.h"
#include "compute/cpu_backend.h"

namespace moraine {

struct AttentionCall {
  AttentionShape shape;
  const float* q;
  size_t q_stride;
  KvView kv;
  uint32_t first_position, token_count;
  float* out;
  size_t out_stride;
};

class AttentionUnits;

class AttentionRunner {
 public:
  AttentionRunner(const KernelTable& kernels, ThreadPool& pool);
  void Run(const AttentionCall& call);

 private:
  void RunWhole(const AttentionUnits& units, uint32_t index, uint32_t thread);
  void RunInSplits(const AttentionCall& call, const AttentionUnits& units,
                   uint32_t splits_per_wave);
  float* KernelScratch(uint32_t thread);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  const size_t state_floats_;
  AlignedArray<float> states_;
  AlignedArray<float> kernel_scratch_;
};

}  // namespace moraine
