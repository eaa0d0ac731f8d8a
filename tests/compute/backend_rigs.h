// Backends of every ISA and thread count, which must all compute the same bits.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "compute/cpu_backend.h"
#include "compute_test_support.h"

namespace moraine {

inline constexpr uint32_t kMaxTokens = 40;
inline constexpr uint32_t kMaxCols = 256;

struct Rig {
  Rig(Isa isa, int threads)
      : pool(TopologyOf(2), {.thread_count = threads, .pin = false}),
        backend(isa, pool, kMaxTokens, kMaxCols) {}
  ThreadPool pool;
  CpuBackend backend;
};

// Runs `compute` on every ISA with 1, 2 and 5 threads; all results must have the same bits. Returns
// them.
template <typename Compute>
std::vector<float> SameOnAllRigs(Compute compute) {
  std::vector<float> first;
  for (const Isa isa : SupportedIsas()) {
    for (const int threads : {1, 2, 5}) {
      Rig rig(isa, threads);
      const std::vector<float> result = compute(rig.backend);
      if (first.empty()) first = result;
      EXPECT_EQ(result.size(), first.size());
      EXPECT_EQ(std::memcmp(result.data(), first.data(), first.size() * 4), 0)
          << IsaName(isa) << ", " << threads << " threads";
    }
  }
  return first;
}

}  // namespace moraine
