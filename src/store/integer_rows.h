// Rows of a weight of integers behind scales, unpacked: the layouts of GPTQ, AWQ and compressed-tensors
// (packed_weight.h) differ in where codes, zero points and scales lie, and mean the same.
//
//   weight(r, c) = values[r, c] * scales[r, GroupOf(c)], values = code - zero point
//
// Cost: two bytes a weight while it is read, and what is read.
// Threads: a value; reading is as thread-safe as the checkpoint. Errors name file, tensor and place.
#pragma once

#include <cstdint>
#include <vector>

#include "store/packed_weight.h"

namespace moraine {

struct IntegerRows {
  // Rows [first_row, first_row + row_count) of a weight of one of those kinds.
  static Result<IntegerRows> Read(const Checkpoint& raw, const PackedWeight& weight,
                                  uint64_t first_row, uint64_t row_count);

  uint64_t GroupOf(uint64_t col) const {
    return group_index.empty() ? col / group_cols : group_index[col];
  }
  // Whether the columns of a group are neighbours, group after group.
  bool InOrder() const;

  uint64_t cols = 0, groups = 0, group_cols = 0;
  std::vector<int16_t> values;          // rows x cols
  std::vector<int16_t> zeros;           // rows x groups
  std::vector<std::byte> scale_bytes;   // rows x groups, of the scales' own type
  std::vector<float> scales;            // the same
  std::vector<uint32_t> group_index;    // of each column; empty: in order
};

}  // namespace moraine
