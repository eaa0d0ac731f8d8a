// What GroupedGemm hands to a kernel: one matrix product over all experts. Internal to
// compute/cuda.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "compute/cuda/grouped_gemm.h"

namespace moraine::gpu {

// Warps of a block that multiply; each has two tiles of 16 rows at a time: gate and up of one
// panel, or two panels of down.
inline constexpr uint32_t kComputeWarps = 8;

struct GemmArguments {
  const std::byte* const* records;
  uint64_t matrix_offset;  // of the matrix in a record
  uint32_t expert_count;
  uint32_t panel_count;  // panels of gate (= of up), or of down
  uint32_t k_tiles;
  const uint32_t* offsets;
  uint32_t row_count;
  const uint16_t* operand;  // row_count x k_tiles * 64
  void* output;
  // A multiple of 16. Gate and up's columns beyond the panels are written as zeros.
  uint32_t output_stride;
  DenseProduct::Output kind = DenseProduct::Output::kBf16;  // down's
  const std::byte* dense = nullptr;  // one matrix for all rows: no records, no offsets
};

struct GemmKind {
  Encoding encoding;
  bool gate_up;
};

cudaError_t LaunchMmaSyncGemm(const GemmKind& kind, const GemmArguments& arguments,
                              uint32_t multiprocessors, Stream stream);
cudaError_t LaunchWgmmaGemm(const GemmKind& kind, const GemmArguments& arguments,
                            uint32_t multiprocessors, Stream stream);
cudaError_t LaunchGather(const RowGather& gather, Stream stream);
cudaError_t LaunchCombine(const RowCombination& combination, Stream stream);

}  // namespace moraine::gpu
