// DeviceMatrix: a dense matrix of the store in device memory, byte for byte as in the pack
// (encoding.h). Does not own.
//
// Matrices of one encoding and width, of rows a multiple of 16, that lie one behind the other are
// one matrix of the sum of their rows: query, key and value projections are best uploaded so, and
// gate and up of a dense feed-forward, too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/encoding.h"

struct CUstream_st;

namespace moraine::gpu {

using Stream = CUstream_st*;

struct DeviceMatrix {
  const std::byte* data = nullptr;  // 16-byte aligned
  Encoding encoding = Encoding::kBf16;
  uint32_t rows = 0, cols = 0;

  constexpr uint64_t bytes() const { return MatrixBytes(encoding, rows, cols); }
};

}  // namespace moraine::gpu
