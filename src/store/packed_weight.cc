#include "store/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "store/integer_rows.h"

namespace moraine {
namespace {

constexpr uint32_t kBlockElements = 32;

Status ReadScales(const Checkpoint& raw, const PackedWeight& weight, uint64_t first, uint64_t count,
                  std::vector<float>* scales) {
  scales->resize(count);
  return raw.ReadFloats(*weight.scales, first, *scales);
}

Status ReadFp8(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
               std::span<float> rows) {
  const uint64_t cols = weight.cols();
  const uint64_t row_count = rows.size() / cols;
  RETURN_IF_ERROR(raw.ReadFloats(*weight.codes, first_row * cols, rows));
  std::vector<float> scales;
  if (weight.scales->element_count() == 1) {
    RETURN_IF_ERROR(ReadScales(raw, weight, 0, 1, &scales));
    for (float& value : rows) value *= scales[0];
    return OkStatus();
  }
  // A matrix of a stack begins a row of blocks of its own.
  const uint64_t matrix_rows = weight.tensor.shape[weight.tensor.shape.size() - 2];
  const uint64_t grid_rows = (matrix_rows + weight.block_rows - 1) / weight.block_rows;
  const uint64_t grid_cols = (cols + weight.block_cols - 1) / weight.block_cols;
  const auto grid_row = [&](uint64_t row) {
    return row / matrix_rows * grid_rows + row % matrix_rows / weight.block_rows;
  };
  const uint64_t first = grid_row(first_row), last = grid_row(first_row + row_count - 1);
  RETURN_IF_ERROR(
      ReadScales(raw, weight, first * grid_cols, (last + 1 - first) * grid_cols, &scales));
  for (uint64_t r = 0; r < row_count; ++r) {
    const float* scale = scales.data() + (grid_row(first_row + r) - first) * grid_cols;
    float* row = rows.data() + r * cols;
    for (uint64_t c = 0; c < cols; ++c) row[c] *= scale[c / weight.block_cols];
  }
  return OkStatus();
}

// 32 codes of four bits in the order of elements -> the 16 bytes of a ggml block: element i low,
// 16 + i high.
void StoreNibbles(const uint8_t* codes, std::byte* out) {
  for (uint32_t i = 0; i < kBlockElements / 2; ++i) {
    out[i] = static_cast<std::byte>(codes[i] | codes[16 + i] << 4);
  }
}

// Low nibble first, which is also the order of a little-endian word's nibbles.
void UnpackNibbles(const std::byte* bytes, uint8_t* codes) {
  for (uint32_t i = 0; i < kBlockElements / 2; ++i) {
    codes[2 * i] = static_cast<uint8_t>(bytes[i]) & 0xF;
    codes[2 * i + 1] = static_cast<uint8_t>(bytes[i]) >> 4;
  }
}

// INT4 and MXFP4: a block's 16 bytes lie together, and so does its scale with the others of a row.
Status ReadNibbleBlocks(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<std::byte> blocks) {
  const uint32_t block_bytes = BlockOf(weight.tensor.type).bytes, scale_bytes = block_bytes - 16;
  const uint64_t block_count = blocks.size() / block_bytes;
  const uint64_t blocks_in_row = weight.cols() / kBlockElements;
  const uint64_t scales_in_row = weight.cols() / weight.block_cols;
  const uint64_t rows = block_count / blocks_in_row;
  std::vector<std::byte> codes(block_count * 16), scales(rows * scales_in_row * scale_bytes);
  const uint64_t code_elements = 16 / BlockOf(weight.codes->type).bytes;
  RETURN_IF_ERROR(
      raw.ReadBlocks(*weight.codes, first_row * blocks_in_row * code_elements, codes));
  RETURN_IF_ERROR(raw.ReadBlocks(*weight.scales, first_row * scales_in_row, scales));
  const uint64_t blocks_in_scale = weight.block_cols / kBlockElements;
  for (uint64_t b = 0; b < block_count; ++b) {
    const uint64_t scale =
        b / blocks_in_row * scales_in_row + b % blocks_in_row / blocks_in_scale;
    std::byte* block = blocks.data() + b * block_bytes;
    std::memcpy(block, scales.data() + scale * scale_bytes, scale_bytes);
    uint8_t nibbles[kBlockElements];
    UnpackNibbles(codes.data() + b * 16, nibbles);
    StoreNibbles(nibbles, block + scale_bytes);
  }
  return OkStatus();
}

Status ReadIntegerFloats(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                         std::span<float> out) {
  const uint64_t cols = weight.cols(), row_count = out.size() / cols;
  ASSIGN_OR_RETURN(const IntegerRows rows, IntegerRows::Read(raw, weight, first_row, row_count));
  for (uint64_t r = 0; r < row_count; ++r) {
    const float* scales = &rows.scales[r * rows.groups];
    for (uint64_t c = 0; c < cols; ++c) {
      out[r * cols + c] = static_cast<float>(rows.values[r * cols + c]) * scales[rows.GroupOf(c)];
    }
  }
  return OkStatus();
}

// Blocks of kQ4_0 and kInt4 (nibbles), kQ8_0 and kInt8 (bytes), behind a scale as the tensor has it or,
// of kInt8, as a float.
Status ReadIntegerBlocks(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                         std::span<std::byte> blocks) {
  const SourceType type = weight.tensor.type;
  const uint32_t block_bytes = BlockOf(type).bytes;
  const uint64_t blocks_in_row = weight.cols() / kBlockElements;
  const uint64_t block_count = blocks.size() / block_bytes;
  ASSIGN_OR_RETURN(const IntegerRows rows, IntegerRows::Read(raw, weight, first_row,
                                                             block_count / blocks_in_row));
  const std::string where = raw.FileOf(*weight.codes) + ": tensor '" + weight.tensor.name + "': ";
  if (!rows.InOrder()) {
    return Corruption(where + "g_idx puts columns into another order of groups, but the config's "
                      "desc_act is false");
  }
  const bool nibbles = type == SourceType::kQ4_0 || type == SourceType::kInt4;
  const bool as_float = type == SourceType::kInt8;
  const uint64_t scale_bytes = as_float ? sizeof(float) : 2;
  const auto* scales =
      as_float ? reinterpret_cast<const std::byte*>(rows.scales.data()) : rows.scale_bytes.data();
  for (uint64_t b = 0; b < block_count; ++b) {
    const uint64_t r = b / blocks_in_row, col = b % blocks_in_row * kBlockElements;
    const uint64_t group = r * rows.groups + col / rows.group_cols;
    const int16_t* values = &rows.values[r * rows.cols + col];
    std::byte* block = blocks.data() + b * block_bytes;
    std::memcpy(block, scales + group * scale_bytes, scale_bytes);
    if (weight.symmetric_zero != 0 && rows.zeros[group] != weight.symmetric_zero) {
      return Corruption(where + "zero point is " + std::to_string(rows.zeros[group]) + " at row " +
                        std::to_string(first_row + r) + ", expected " +
                        std::to_string(weight.symmetric_zero) + ": the config says sym");
    }
    uint8_t codes[kBlockElements];
    for (uint32_t i = 0; i < kBlockElements; ++i) {
      codes[i] = static_cast<uint8_t>(values[i] + (nibbles ? 8 : 0));
    }
    if (nibbles) {
      StoreNibbles(codes, block + scale_bytes);
    } else {
      std::memcpy(block + scale_bytes, codes, kBlockElements);
    }
  }
  return OkStatus();
}

// 16 columns share an FP8 scale, all of the weight a float.
Status ReadNvfp4(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                 std::span<float> out) {
  const uint64_t cols = weight.cols();
  std::vector<std::byte> pairs(out.size() / 2);
  RETURN_IF_ERROR(raw.ReadBlocks(*weight.codes, first_row * cols / 2, pairs));
  std::vector<float> scales;
  RETURN_IF_ERROR(ReadScales(raw, weight, first_row * cols / weight.block_cols,
                             out.size() / weight.block_cols, &scales));
  float global = 0;
  RETURN_IF_ERROR(raw.ReadFloats(*weight.global_scale, 0, {&global, 1}));
  for (uint64_t i = 0; i < out.size(); ++i) {
    const uint32_t code = static_cast<uint32_t>(pairs[i / 2]) >> (i % 2 * 4) & 0xF;
    const float value = FromE2M1(code) * scales[i / weight.block_cols];  // 7 bits: exact
    out[i] = weight.divides_by_global ? value / global : value * global;
  }
  return OkStatus();
}

bool IsIntegers(PackingKind kind) {
  return kind == PackingKind::kGptq || kind == PackingKind::kAwq ||
         kind == PackingKind::kPackedIntegers || kind == PackingKind::kInt8;
}

}  // namespace

Status ReadPackedFloats(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<float> rows) {
  if (rows.empty()) return OkStatus();
  if (weight.kind == PackingKind::kFp8) return ReadFp8(raw, weight, first_row, rows);
  if (weight.kind == PackingKind::kNvfp4) return ReadNvfp4(raw, weight, first_row, rows);
  if (IsIntegers(weight.kind)) return ReadIntegerFloats(raw, weight, first_row, rows);
  const SourceTypeInfo& type = InfoOf(weight.tensor.type);
  std::vector<std::byte> blocks(SourceBytes(weight.tensor.type, rows.size()));
  RETURN_IF_ERROR(ReadNibbleBlocks(raw, weight, first_row, blocks));
  type.decode(blocks.data(), blocks.size() / type.block.bytes, rows.data());
  return OkStatus();
}

Status ReadPackedBlocks(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<std::byte> blocks) {
  if (blocks.empty()) return OkStatus();
  CHECK(BlockOf(weight.tensor.type).elements > 1, weight.tensor.name + " has no blocks");
  return IsIntegers(weight.kind) ? ReadIntegerBlocks(raw, weight, first_row, blocks)
                                 : ReadNibbleBlocks(raw, weight, first_row, blocks);
}

}  // namespace moraine
