#include "store/integer_rows.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace moraine {
namespace {

// Reads the parts of one weight into IntegerRows.
class IntegerReader {
 public:
  IntegerReader(const Checkpoint& raw, const PackedWeight& weight, uint64_t first_row,
                uint64_t row_count)
      : raw_(raw),
        weight_(weight),
        first_(first_row),
        count_(row_count),
        in_word_(32 / weight.bits) {
    rows_.cols = weight.cols();
    rows_.group_cols = weight.block_cols;
    rows_.groups = rows_.cols / rows_.group_cols;
  }

  Result<IntegerRows> Read() {
    rows_.values.resize(count_ * rows_.cols);
    rows_.zeros.assign(count_ * rows_.groups, 0);
    RETURN_IF_ERROR(ReadGroupIndex());
    const bool by_column = weight_.kind == PackingKind::kGptq || weight_.kind == PackingKind::kAwq;
    RETURN_IF_ERROR(by_column ? ReadCodesByColumn() : ReadCodesByRow());
    RETURN_IF_ERROR(by_column ? ReadZerosByGroup() : ReadZerosByRow());
    RETURN_IF_ERROR(ReadScales(by_column));
    for (uint64_t r = 0; r < count_; ++r) {
      for (uint64_t c = 0; c < rows_.cols; ++c) {
        int16_t& value = rows_.values[r * rows_.cols + c];
        value = static_cast<int16_t>(value - rows_.zeros[r * rows_.groups + rows_.GroupOf(c)]);
      }
    }
    return std::move(rows_);
  }

 private:
  // Words [first_word, first_word + count) of each row of a matrix of words, row after row.
  Status ReadWords(const SourceTensor& tensor, uint64_t first_word, uint64_t count,
                   std::vector<uint32_t>* words) const {
    const uint64_t lines = tensor.shape[0], stride = tensor.shape[1];
    words->resize(lines * count);
    if (count == stride) {
      return raw_.ReadBlocks(tensor, 0, std::as_writable_bytes(std::span(*words)));
    }
    for (uint64_t line = 0; line < lines; ++line) {
      RETURN_IF_ERROR(
          raw_.ReadBlocks(tensor, line * stride + first_word,
                          std::as_writable_bytes(std::span(words->data() + line * count, count))));
    }
    return OkStatus();
  }
  int16_t CodeIn(uint32_t word, uint64_t place) const {
    return static_cast<int16_t>(word >> (place * weight_.bits) & ((1u << weight_.bits) - 1));
  }
  // The place in its word of a row that shares words with its neighbours.
  uint64_t PlaceOf(uint64_t row) const {
    constexpr uint8_t kAwq[] = {0, 4, 1, 5, 2, 6, 3, 7}, kAwq8[] = {0, 2, 1, 3};
    const uint64_t in_word = row % in_word_;
    if (weight_.kind != PackingKind::kAwq) return in_word;
    return weight_.bits == 8 ? kAwq8[in_word] : kAwq[in_word];
  }

  Status ReadGroupIndex() {
    if (weight_.group_index == nullptr) return OkStatus();
    std::vector<uint32_t>& index = rows_.group_index;
    index.resize(rows_.cols);
    RETURN_IF_ERROR(
        raw_.ReadBlocks(*weight_.group_index, 0, std::as_writable_bytes(std::span(index))));
    // compressed-tensors' way to say that there is none.
    if (std::ranges::all_of(index, [](uint32_t group) { return group == UINT32_MAX; })) {
      index.clear();
    }
    for (const uint32_t group : index) {
      if (group < rows_.groups) continue;
      return Corruption(raw_.FileOf(*weight_.group_index) + ": tensor '" +
                        weight_.group_index->name + "' has group " + std::to_string(group) +
                        ", expected less than " + std::to_string(rows_.groups));
    }
    return OkStatus();
  }

  // A column's codes of all rows lie together: GPTQ's words hold columns, AWQ's hold rows.
  Status ReadCodesByColumn() {
    const bool awq = weight_.kind == PackingKind::kAwq;
    const uint64_t begin = awq ? first_ / in_word_ : first_;
    const uint64_t words_in_line =
        awq ? (first_ + count_ + in_word_ - 1) / in_word_ - begin : count_;
    std::vector<uint32_t> words;
    RETURN_IF_ERROR(ReadWords(*weight_.codes, begin, words_in_line, &words));
    for (uint64_t r = 0; r < count_; ++r) {
      int16_t* const out = &rows_.values[r * rows_.cols];
      for (uint64_t c = 0; c < rows_.cols; ++c) {
        out[c] = awq ? CodeIn(words[c * words_in_line + (first_ + r) / in_word_ - begin],
                              PlaceOf(first_ + r))
                     : CodeIn(words[c / in_word_ * words_in_line + r], c % in_word_);
      }
    }
    return OkStatus();
  }
  // [groups, rows / in_word].
  Status ReadZerosByGroup() {
    const uint64_t begin = first_ / in_word_;
    const uint64_t words_in_line = (first_ + count_ + in_word_ - 1) / in_word_ - begin;
    std::vector<uint32_t> words;
    RETURN_IF_ERROR(ReadWords(*weight_.zeros, begin, words_in_line, &words));
    for (uint64_t r = 0; r < count_; ++r) {
      for (uint64_t g = 0; g < rows_.groups; ++g) {
        const uint32_t word = words[g * words_in_line + (first_ + r) / in_word_ - begin];
        // Stored less 1, they wrap: 15 and 1 make 16 in GPTQ's own kernels, too.
        rows_.zeros[r * rows_.groups + g] =
            static_cast<int16_t>(CodeIn(word, PlaceOf(first_ + r)) + weight_.zero_bias);
      }
    }
    return OkStatus();
  }

  // compressed-tensors: a row's codes lie together, as words with half of the range added or as they are.
  Status ReadCodesByRow() {
    const uint64_t cols = rows_.cols;
    if (weight_.kind == PackingKind::kInt8) {
      std::vector<int8_t> codes(count_ * cols);
      RETURN_IF_ERROR(raw_.ReadBlocks(*weight_.codes, first_ * cols,
                                      std::as_writable_bytes(std::span(codes))));
      std::ranges::copy(codes, rows_.values.begin());
      return OkStatus();
    }
    const uint64_t words_in_row = weight_.codes->shape[1];
    std::vector<uint32_t> words(count_ * words_in_row);
    RETURN_IF_ERROR(raw_.ReadBlocks(*weight_.codes, first_ * words_in_row,
                                    std::as_writable_bytes(std::span(words))));
    const int half = 1 << (weight_.bits - 1);
    for (uint64_t r = 0; r < count_; ++r) {
      for (uint64_t c = 0; c < cols; ++c) {
        rows_.values[r * cols + c] = static_cast<int16_t>(
            CodeIn(words[r * words_in_row + c / in_word_], c % in_word_) - half);
      }
    }
    return OkStatus();
  }
  // [rows, groups] of I8, or packed along the rows.
  Status ReadZerosByRow() {
    if (weight_.zeros == nullptr) return OkStatus();
    const uint64_t groups = rows_.groups;
    if (weight_.zeros->type == SourceType::kI8) {
      std::vector<int8_t> zeros(count_ * groups);
      RETURN_IF_ERROR(raw_.ReadBlocks(*weight_.zeros, first_ * groups,
                                      std::as_writable_bytes(std::span(zeros))));
      std::ranges::copy(zeros, rows_.zeros.begin());
      return OkStatus();
    }
    const uint64_t begin = first_ / in_word_;
    const uint64_t lines = (first_ + count_ + in_word_ - 1) / in_word_ - begin;
    std::vector<uint32_t> words(lines * groups);
    RETURN_IF_ERROR(raw_.ReadBlocks(*weight_.zeros, begin * groups,
                                    std::as_writable_bytes(std::span(words))));
    const int half = 1 << (weight_.bits - 1);
    for (uint64_t r = 0; r < count_; ++r) {
      const uint64_t row = first_ + r;
      for (uint64_t g = 0; g < groups; ++g) {
        const uint32_t word = words[(row / in_word_ - begin) * groups + g];
        rows_.zeros[r * groups + g] = static_cast<int16_t>(CodeIn(word, row % in_word_) - half);
      }
    }
    return OkStatus();
  }

  // [groups, rows] or [rows, groups], or one for all.
  Status ReadScales(bool by_group) {
    const SourceTensor& tensor = *weight_.scales;
    const uint64_t bytes = BlockOf(tensor.type).bytes, groups = rows_.groups;
    std::vector<std::byte>& scales = rows_.scale_bytes;
    scales.resize(count_ * groups * bytes);
    if (tensor.element_count() == 1) {
      RETURN_IF_ERROR(raw_.ReadBlocks(tensor, 0, std::span(scales).first(bytes)));
      for (uint64_t i = 1; i < count_ * groups; ++i) {
        std::memcpy(&scales[i * bytes], scales.data(), bytes);
      }
    } else if (!by_group) {
      RETURN_IF_ERROR(raw_.ReadBlocks(tensor, first_ * groups, scales));
    } else {
      std::vector<std::byte> line(count_ * bytes);
      for (uint64_t g = 0; g < groups; ++g) {
        RETURN_IF_ERROR(raw_.ReadBlocks(tensor, g * tensor.shape[1] + first_, line));
        for (uint64_t r = 0; r < count_; ++r) {
          std::memcpy(&scales[(r * groups + g) * bytes], &line[r * bytes], bytes);
        }
      }
    }
    rows_.scales.resize(count_ * groups);
    InfoOf(tensor.type).decode(scales.data(), count_ * groups, rows_.scales.data());
    return OkStatus();
  }

  const Checkpoint& raw_;
  const PackedWeight& weight_;
  const uint64_t first_, count_, in_word_;
  IntegerRows rows_;
};

}  // namespace

bool IntegerRows::InOrder() const {
  for (uint64_t c = 0; c < group_index.size(); ++c) {
    if (group_index[c] != c / group_cols) return false;
  }
  return true;
}

Result<IntegerRows> IntegerRows::Read(const Checkpoint& raw, const PackedWeight& weight,
                                      uint64_t first_row, uint64_t row_count) {
  return IntegerReader(raw, weight, first_row, row_count).Read();
}

}  // namespace moraine
