// Products with a stack of matrices, each with its own part of the input. Internal to compute.
//
// MLA multiplies each head's query with that head's absorbed key matrix, and each head's attended
// latent with that head's value matrix: 16 to 128 products of 512 x 128 or so, each on its own few
// columns. A task is some panels of one matrix and some tokens, and it brings its activations into
// the form the kernels read by itself: they are a few hundred values a token, quantising them twice
// costs less than a parallel region that does it once, and no scratch grows with tokens x heads.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/aligned_array.h"
#include "compute/cpu/activations.h"
#include "compute/cpu_backend.h"

namespace moraine {

class StackedMatMul {
 public:
  StackedMatMul(const KernelTable& kernels, ThreadPool& pool, uint32_t max_cols);
  void Run(const StackedMatMulCall& call);

 private:
  struct Scratch {
    explicit Scratch(uint32_t max_cols);
    Activations input;
    PackedActivations packed;
  };
  void RunPart(const StackedMatMulCall& call, uint32_t part, uint32_t panel_begin,
               uint32_t panel_end, uint32_t token_begin, uint32_t token_count, Scratch* scratch);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // one a thread
};

}  // namespace moraine
