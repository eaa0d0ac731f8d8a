// A weight that a checkpoint has in several tensors: codes and scales, sometimes zero points and a
// group index. Read as rows of floats, or as the blocks of a SourceType that say the same.
//
//   FP8         X.weight F8_E4M3 [.., R, C], X.weight_scale_inv (or _scale): a grid of blocks, of
//               rows, or one number. value = code * scale, rounded to float32 once: the product
//               has 28 bits if the scale uses all of its own, and none is lost if the scale is
//               bf16 or a power of two.
//   INT4        X.weight_packed I32 [R, C / 8], element 8 j + i in bits 4 i of word j, 8 added;
//               X.weight_scale [R, C / group], or one; X.weight_shape. Blocks of kInt4 under a bf16
//               scale, of Q4_0 under an f16 one.
//   integers    the same of 4 or 8 bits (C / 4 words a row, 128 added) with, as may be,
//               X.weight_zero_point I32 [R / 8 or R / 4, groups], packed along the rows, or I8
//               [R, groups], and X.weight_g_idx I32 [C]: the group of each column.
//   INT8        X.weight I8 [R, C], X.weight_scale [R, groups], [R] or one; X.weight_zero_point I8.
//               value = (code - zero) * scale, in these and the next two.
//   MXFP4       X_blocks U8 [.., R, C / 32, 16], elements 2 j and 2 j + 1 in byte j; X_scales U8
//               [.., R, C / 32]. Or X.weight_packed U8 [R, C / 2], X.weight_scale. Blocks of kMxfp4.
//   NVFP4       X.weight_packed U8 [R, C / 2], elements as MXFP4's; X.weight_scale F8_E4M3
//               [R, C / 16]; X.weight_global_scale, by which it is divided. Or X.weight, and
//               X.weight_scale_2, by which it is multiplied (NVIDIA's). Rounded to float32 once.
//   GPTQ        X.qweight I32 [C / 8, R], element 8 j + i of a column in bits 4 i; X.qzeros I32
//               [groups, R / 8]; X.scales F16 or BF16 [groups, R]; X.g_idx I32 [C]: the group of
//               each column. zero is stored less 1 unless the format is "gptq_v2". Of 8 bits: 4
//               elements in a word.
//   AWQ         X.qweight I32 [C, R / 8], rows 0 2 4 6 1 3 5 7 of eight in a word's nibbles from
//               the lowest; X.qzeros I32 [groups, R / 8] likewise; X.scales [groups, R]. Of 8 bits:
//               rows 0 2 1 3 of four in a word's bytes.
// R rows are outputs, C columns inputs, as in the plain weight. Integers of 4 bits less their zero
// point are -15..16, and a group is at least 32 columns: under an f16 scale they are blocks of Q8_0
// exactly, and of Q4_0 where the zero point is 8; under other scales, blocks of kInt8, as are 8 bits
// without a zero point. With one (nine bits), or with columns in another order of groups (desc_act,
// actorder), only floats are had.
// Sources: compressed_tensors' compressors (github.com/vllm-project/compressed-tensors), AutoGPTQ,
// AutoAWQ, NVIDIA's Model Optimizer.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "store/checkpoint.h"

namespace moraine {

enum class PackingKind : uint8_t {
  kFp8, kInt4, kPackedIntegers, kInt8, kMxfp4, kNvfp4, kGptq, kAwq
};

struct PackedWeight {
  PackingKind kind = PackingKind::kFp8;
  SourceTensor tensor;  // name, type and shape as the weight has them; bytes of its blocks
  const SourceTensor* codes = nullptr;
  const SourceTensor* scales = nullptr;
  const SourceTensor* zeros = nullptr;        // of integers; may be null but in GPTQ and AWQ
  const SourceTensor* group_index = nullptr;  // of integers; may be null
  const SourceTensor* global_scale = nullptr;  // NVFP4
  bool divides_by_global = false;
  uint32_t bits = 4;          // of an integer
  int symmetric_zero = 0;     // that all zero points must be; 0: they may differ
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
