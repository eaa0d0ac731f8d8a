#include "store/packed_weight.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace moraine {
namespace {

constexpr uint32_t kBlockElements = 32;
constexpr uint32_t kNibblesInWord = 8;

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

// Words [first_word, first_word + count) of each row of a matrix of words, row after row.
Status ReadWords(const Checkpoint& raw, const SourceTensor& tensor, uint64_t first_word,
                 uint64_t count, std::vector<uint32_t>* words) {
  const uint64_t rows = tensor.shape[0], stride = tensor.shape[1];
  words->resize(rows * count);
  if (count == stride) return raw.ReadBlocks(tensor, 0, std::as_writable_bytes(std::span(*words)));
  for (uint64_t row = 0; row < rows; ++row) {
    RETURN_IF_ERROR(
        raw.ReadBlocks(tensor, row * stride + first_word,
                       std::as_writable_bytes(std::span(words->data() + row * count, count))));
  }
  return OkStatus();
}

// The place in a word of eight of row i, in nibbles from the lowest.
uint32_t NibbleOf(PackingKind kind, uint64_t i) {
  constexpr uint8_t kAwq[kNibblesInWord] = {0, 4, 1, 5, 2, 6, 3, 7};
  return kind == PackingKind::kAwq ? kAwq[i % kNibblesInWord]
                                   : static_cast<uint32_t>(i % kNibblesInWord);
}

// Some rows of a GPTQ or AWQ weight in memory: columns of codes and of what belongs to groups.
class GroupedRows {
 public:
  GroupedRows(const PackedWeight& weight, uint64_t first_row, uint64_t row_count)
      : weight_(weight), first_row_(first_row), row_count_(row_count) {}

  Status Read(const Checkpoint& raw) {
    // Whole words of eight rows.
    word_begin_ = first_row_ / kNibblesInWord;
    words_ = (first_row_ + row_count_ + kNibblesInWord - 1) / kNibblesInWord - word_begin_;
    const bool awq = weight_.kind == PackingKind::kAwq;
    RETURN_IF_ERROR(ReadWords(raw, *weight_.codes, awq ? word_begin_ : first_row_,
                              awq ? words_ : row_count_, &codes_));
    RETURN_IF_ERROR(ReadWords(raw, *weight_.zeros, word_begin_, words_, &zeros_));
    const uint64_t groups = weight_.scales->shape[0], rows = weight_.scales->shape[1];
    scales_.resize(groups * row_count_);
    for (uint64_t g = 0; g < groups; ++g) {
      RETURN_IF_ERROR(raw.ReadBlocks(
          *weight_.scales, g * rows + first_row_,
          std::as_writable_bytes(std::span(scales_.data() + g * row_count_, row_count_))));
    }
    if (weight_.group_index == nullptr) return OkStatus();
    group_index_.resize(weight_.cols());
    RETURN_IF_ERROR(raw.ReadBlocks(*weight_.group_index, 0,
                                   std::as_writable_bytes(std::span(group_index_))));
    for (const uint32_t group : group_index_) {
      if (group >= groups) {
        return Corruption(raw.FileOf(*weight_.group_index) + ": tensor '" +
                          weight_.group_index->name + "' has group " + std::to_string(group) +
                          ", expected less than " + std::to_string(groups));
      }
    }
    return OkStatus();
  }

  bool InOrder() const {
    for (uint64_t c = 0; c < group_index_.size(); ++c) {
      if (group_index_[c] != c / weight_.block_cols) return false;
    }
    return true;
  }
  uint64_t GroupOf(uint64_t col) const {
    return group_index_.empty() ? col / weight_.block_cols : group_index_[col];
  }
  int Code(uint64_t r, uint64_t col) const {
    if (weight_.kind == PackingKind::kAwq) return Nibble(codes_, col, r);
    const uint32_t word = codes_[col / kNibblesInWord * row_count_ + r];
    return static_cast<int>(word >> (col % kNibblesInWord * 4) & 0xF);
  }
  // Stored zero points wrap: 15 and the bias of 1 make 16 in GPTQ's own kernels, too.
  int Zero(uint64_t r, uint64_t group) const {
    return Nibble(zeros_, group, r) + static_cast<int>(weight_.zero_bias);
  }
  uint16_t ScaleBits(uint64_t r, uint64_t group) const { return scales_[group * row_count_ + r]; }

 private:
  int Nibble(const std::vector<uint32_t>& words, uint64_t line, uint64_t r) const {
    const uint64_t row = first_row_ + r;
    const uint32_t word = words[line * words_ + row / kNibblesInWord - word_begin_];
    return static_cast<int>(word >> (NibbleOf(weight_.kind, row) * 4) & 0xF);
  }

  const PackedWeight& weight_;
  const uint64_t first_row_, row_count_;
  uint64_t word_begin_ = 0, words_ = 0;
  std::vector<uint32_t> codes_, zeros_, group_index_;
  std::vector<uint16_t> scales_;
};

Status ReadGroupedFloats(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                         std::span<float> out) {
  const uint64_t cols = weight.cols();
  GroupedRows rows(weight, first_row, out.size() / cols);
  RETURN_IF_ERROR(rows.Read(raw));
  for (uint64_t r = 0; r < out.size() / cols; ++r) {
    for (uint64_t c = 0; c < cols; ++c) {
      const uint64_t group = rows.GroupOf(c);
      out[r * cols + c] = static_cast<float>(rows.Code(r, c) - rows.Zero(r, group)) *
                          FromF16(rows.ScaleBits(r, group));
    }
  }
  return OkStatus();
}

Status ReadGroupedBlocks(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                         std::span<std::byte> blocks) {
  const uint32_t block_bytes = BlockOf(weight.tensor.type).bytes;
  const uint64_t blocks_in_row = weight.cols() / kBlockElements;
  const uint64_t block_count = blocks.size() / block_bytes;
  GroupedRows rows(weight, first_row, block_count / blocks_in_row);
  RETURN_IF_ERROR(rows.Read(raw));
  const std::string where = raw.FileOf(*weight.codes) + ": tensor '" + weight.tensor.name + "': ";
  if (!rows.InOrder()) {
    return Corruption(where + "g_idx puts columns into another order of groups, but the config's "
                      "desc_act is false");
  }
  const bool symmetric = weight.tensor.type == SourceType::kQ4_0;
  for (uint64_t b = 0; b < block_count; ++b) {
    const uint64_t r = b / blocks_in_row, col = b % blocks_in_row * kBlockElements;
    const uint64_t group = col / weight.block_cols;
    const int zero = rows.Zero(r, group);
    std::byte* block = blocks.data() + b * block_bytes;
    const uint16_t scale = rows.ScaleBits(r, group);
    std::memcpy(block, &scale, sizeof(scale));
    if (!symmetric) {
      for (uint32_t i = 0; i < kBlockElements; ++i) {
        block[2 + i] = static_cast<std::byte>(rows.Code(r, col + i) - zero);
      }
      continue;
    }
    if (zero != 8) {
      return Corruption(where + "zero point is " + std::to_string(zero) + " at row " +
                        std::to_string(first_row + r) + ", expected 8: the config says sym");
    }
    uint8_t nibbles[kBlockElements];
    for (uint32_t i = 0; i < kBlockElements; ++i) {
      nibbles[i] = static_cast<uint8_t>(rows.Code(r, col + i));
    }
    StoreNibbles(nibbles, block + 2);
  }
  return OkStatus();
}

bool IsGrouped(PackingKind kind) {
  return kind == PackingKind::kGptq || kind == PackingKind::kAwq;
}

}  // namespace

Status ReadPackedFloats(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                        std::span<float> rows) {
  if (rows.empty()) return OkStatus();
  if (weight.kind == PackingKind::kFp8) return ReadFp8(raw, weight, first_row, rows);
  if (IsGrouped(weight.kind)) return ReadGroupedFloats(raw, weight, first_row, rows);
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
  return IsGrouped(weight.kind) ? ReadGroupedBlocks(raw, weight, first_row, blocks)
                                : ReadNibbleBlocks(raw, weight, first_row, blocks);
}

}  // namespace moraine
