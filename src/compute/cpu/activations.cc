#include "compute/cpu/activations.h"

#include <cstring>

#include "base/check.h"

namespace moraine {
namespace {

// Quantising 2048 values takes about 0.3 us: below a few rows the hand-over to other threads costs
// more than it saves.
constexpr uint32_t kInlineRows = 8;

}  // namespace

void Activations::Shape(uint32_t rows, uint32_t cols) {
  rows_ = rows;
  cols_ = cols;
  padded_cols_ = TileCount(cols) * kTileCols;
  CHECK(rows <= max_rows_, "more rows than the backend was built for");
  CHECK(padded_cols_ <= max_padded_cols_, "more columns than the backend was built for");
  x_ = padded_.data();
  x_stride_ = padded_cols_;
}

void Activations::Prepare(const KernelTable& kernels, ThreadPool& pool, const float* x,
                          size_t x_stride, uint32_t rows, uint32_t cols, bool want_floats,
                          bool want_codes) {
  Shape(rows, cols);
  const bool pad = want_floats && cols != padded_cols_;
  if (want_floats && !pad) {
    x_ = x;
    x_stride_ = x_stride;
  }
  if (!pad && !want_codes) return;
  const auto prepare_row = [&](uint32_t row, uint32_t) {
    const float* source = x + row * x_stride;
    if (want_codes) {
      kernels.quantise(source, cols, padded_cols_, codes(row), groups(row));
    }
    if (pad) {
      std::memcpy(floats(row), source, cols * sizeof(float));
      std::memset(floats(row) + cols, 0, (padded_cols_ - cols) * sizeof(float));
    }
  };
  if (rows < kInlineRows) {
    for (uint32_t row = 0; row < rows; ++row) prepare_row(row, 0);
  } else {
    pool.ParallelFor(rows, prepare_row);
  }
}

void Activations::FillArguments(size_t first_row, PanelArguments* arguments) {
  arguments->x = x_ + first_row * x_stride_;
  arguments->x_stride = x_stride_;
  arguments->q = codes(first_row);
  arguments->q_stride = padded_cols_ + kRowGap;
  arguments->groups = groups(first_row);
  arguments->group_stride = padded_cols_ / kGroupCols;
}

void PackedActivations::Shape(uint32_t blocks, uint32_t cols) {
  groups_ = GroupCount(cols);
  CHECK(blocks <= max_blocks_, "more rows than the backend was built for");
  CHECK(groups_ <= max_groups_, "more columns than the backend was built for");
}

void PackedActivations::Put(size_t row, uint32_t group, const int8_t* codes,
                            const ActivationGroup& scaled) {
  PackedGroup& packed = data_[row / kPackedTokens * groups_ + group];
  const size_t token = row % kPackedTokens;
  std::memcpy(packed.codes[token], codes, kGroupCols);
  packed.scales[token] = scaled.scale;
  packed.offsets[kQ4Offset][token] = scaled.offsets[kQ4Offset];
  packed.offsets[kQ8Offset][token] = scaled.offsets[kQ8Offset];
}

void PackedActivations::PackBlock(uint32_t block, const Activations& from, const uint32_t* rows,
                                  uint32_t first, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    const size_t row = rows != nullptr ? rows[i] : first + i;
    const int8_t* codes = from.codes(row);
    const ActivationGroup* scaled = from.groups(row);
    for (uint32_t group = 0; group < groups_; ++group) {
      Put(block * kPackedTokens + i, group, codes + group * kGroupCols, scaled[group]);
    }
  }
}

void PackedActivations::FillArguments(size_t first_row, PanelArguments* arguments) const {
  CHECK(first_row % kPackedTokens == 0, "packed activations are cut between blocks");
  arguments->packed = data_.data() + first_row / kPackedTokens * groups_;
  arguments->packed_stride = groups_;
}

}  // namespace moraine
