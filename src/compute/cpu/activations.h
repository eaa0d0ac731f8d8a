// Activations in the forms the panel kernels read. Internal to compute.
#pragma once

#include <cstdint>

#include "compute/aligned_array.h"
#include "compute/cpu/kernel_table.h"
#include "compute/encoding.h"
#include "compute/thread_pool.h"

namespace moraine {

// Rows of activations: floats padded to whole tiles (borrowed from the caller when they need no
// padding) and, for quantised weights, int8 codes with a scale and an offset for every 32.
class Activations {
 public:
  Activations(uint32_t max_rows, uint32_t max_cols)
      : max_rows_(max_rows),
        max_padded_cols_(TileCount(max_cols) * kTileCols),
        q_(size_t{max_rows} * (max_padded_cols_ + kRowGap)),
        groups_(size_t{max_rows} * max_padded_cols_ / kGroupCols),
        padded_(size_t{max_rows} * max_padded_cols_) {}

  // Takes `rows` rows of x over. Borrows x if floats are wanted and cols is a multiple of 64.
  void Prepare(const KernelTable& kernels, ThreadPool& pool, const float* x, size_t x_stride,
               uint32_t rows, uint32_t cols, bool want_floats, bool want_codes);
  // Sets the shape for rows that are filled in by their producer (through the accessors below).
  void Shape(uint32_t rows, uint32_t cols);

  uint32_t rows() const { return rows_; }
  uint32_t cols() const { return cols_; }
  uint32_t padded_cols() const { return padded_cols_; }
  float* floats(size_t row) { return padded_.data() + row * padded_cols_; }
  int8_t* codes(size_t row) const { return q_.data() + row * (padded_cols_ + kRowGap); }
  ActivationGroup* groups(size_t row) const {
    return groups_.data() + row * (padded_cols_ / kGroupCols);
  }

  // The activation fields of a panel call, from row first_row on.
  void FillArguments(size_t first_row, PanelArguments* arguments);

 private:
  // Between rows of codes: at a distance of a power of two the same columns of all tokens would share
  // a few sets of L1 and evict the weights that lie there.
  static constexpr uint32_t kRowGap = 64;

  const uint32_t max_rows_, max_padded_cols_;
  uint32_t rows_ = 0, cols_ = 0, padded_cols_ = 0;
  const float* x_ = nullptr;
  size_t x_stride_ = 0;
  AlignedArray<int8_t> q_;
  AlignedArray<ActivationGroup> groups_;
  AlignedArray<float> padded_;
};

// The same codes for the kernels of many tokens: kernel_table.h's blocks of 16 rows.
class PackedActivations {
 public:
  PackedActivations(uint32_t max_blocks, uint32_t max_cols)
      : max_blocks_(max_blocks),
        max_groups_(GroupCount(max_cols)),
        data_(size_t{max_blocks} * max_groups_) {}

  void Shape(uint32_t blocks, uint32_t cols);
  void Put(size_t row, uint32_t group, const int8_t* codes, const ActivationGroup& scaled);
  // A block from up to 16 rows of `from`: rows[0], rows[1], ... or, if null, 0, 1, ... after `first`.
  void PackBlock(uint32_t block, const Activations& from, const uint32_t* rows, uint32_t first,
                 uint32_t count);
  // first_row: a multiple of 16.
  void FillArguments(size_t first_row, PanelArguments* arguments) const;

 private:
  static uint32_t GroupCount(uint32_t cols) { return TileCount(cols) * (kTileCols / kGroupCols); }

  const uint32_t max_blocks_, max_groups_;
  uint32_t groups_ = 0;  // a block
  AlignedArray<PackedGroup> data_;
};

}  // namespace moraine
