// A weight that a checkpoint has in several tensors: codes and scales, sometimes zero points and a
// group index. Read as rows of floats, or as the blocks of a SourceType that say the same.
//
//   FP8         X.weight F8_E4M3 [.., R, C], X.weight_scale_inv (or _scale): a grid of blocks, of
//               rows, or one number. value = code * scale, rounded to float32 once: the product
//               has 28 bits if the scale uses all of its own, and none is lost if the scale is
//               bf16 or a power of two.
//   INT4        X.weight_packed I32 [R, C / 8], element 8 j + i in bits 4 i of word j, 8 added;
//               X.weight_scale [R, C / group]; X.weight_shape. Blocks of kInt4 under a bf16 scale,
//               of Q4_0 under an f16 one.
//   MXFP4       X_blocks U8 [.., R, C / 32, 16], elements 2 j and 2 j + 1 in byte j; X_scales U8
//               [.., R, C / 32]. Blocks of kMxfp4.
//   GPTQ        X.qweight I32 [C / 8, R], element 8 j + i of a column in bits 4 i; X.qzeros I32
//               [groups, R / 8]; X.scales F16 [groups, R]; X.g_idx I32 [C]: the group of each
//               column. value = (code - zero) * scale; zero is stored less 1 unless the format is
//               "gptq_v2".
//   AWQ         X.qweight I32 [C, R / 8], rows 0 2 4 6 1 3 5 7 of eight in a word's nibbles from
//               the lowest; X.qzeros I32 [groups, R / 8] likewise; X.scales F16 [groups, R].
// R rows are outputs, C columns inputs, as in the plain weight. Of GPTQ and AWQ, code - zero is
// -15..15 and a group at least 32 columns: they are blocks of Q8_0 exactly, and of Q4_0 where the
// zero point is 8 ("sym"). With columns in another order of groups (desc_act) only floats are had.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/checkpoint.h"

namespace moraine {

enum class PackingKind : uint8_t { kFp8, kInt4, kMxfp4, kGptq, kAwq };

struct PackedWeight {
  PackingKind kind = PackingKind::kFp8;
  SourceTensor tensor;  // name, type and shape as the weight has them; bytes of its blocks
  const SourceTensor* codes = nullptr;
  const SourceTensor* scales = nullptr;
  const SourceTensor* zeros = nullptr;        // GPTQ and AWQ
  const SourceTensor* group_index = nullptr;  // GPTQ; may be null
  uint32_t block_rows = 1;  // that share a scale: FP8
  uint32_t block_cols = 1;  // that share a scale
  uint32_t zero_bias = 0;   // what is added to a stored zero point

  uint64_t cols() const { return tensor.shape.back(); }
};

// Rows [first_row, first_row + n) of the weight, n * cols floats. Rows of all matrices of a stack
// are counted through. raw: where the parts are.
Status ReadPackedFloats(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<float> rows);
// The same as blocks of weight.tensor.type. kCorruption for a zero point other than 8 in a weight
// that is said to be symmetric, and for columns in another order than the config says.
Status ReadPackedBlocks(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<std::byte> blocks);

}  // namespace moraine
