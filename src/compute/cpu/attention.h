// Causal attention over a KV cache. Internal to compute.
//
// Positions are cut into splits of 512 counted from 0; each split is one online softmax from
// scratch, and splits are merged in order. Both ways of running it follow that definition, so they
// give the same bits: prefill has one task for each (KV head, token), which walks its splits;
// decode, which has too few of those for many cores, has one for each split, in waves of what
// scratch holds.
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

class AttentionRunner {
 public:
  AttentionRunner(const KernelTable& kernels, ThreadPool& pool);
  void Run(const AttentionCall& call);

 private:
  void RunWhole(const AttentionCall& call, uint32_t unit, uint32_t thread);
  float* Unpacked(uint32_t thread);
  void RunInSplits(const AttentionCall& call, uint32_t splits_per_wave);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  const size_t scratch_floats_;
  AlignedArray<float> scratch_;
  AlignedArray<float> unpacked_;  // a block of packed keys and values for each thread
};

}  // namespace moraine
