#include "compute/encode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/check.h"
#include "compute/cpu/isa.h"

namespace moraine {
namespace {

// Candidates around the scale that maps the extreme value to the last code; what they buy is
// measured in docs/quantisation.md (compute_bench --quality prints it).
// The searched scale exceeds |extreme| / |low| by a few percent at most: 0.9 of f16's range is safe.
constexpr float kLargestScale = 0.9f * 65504.0f;
constexpr ScaleSearch kQ8Search = {.low = -127, .high = 127, .nominal = 127, .step = 0.5f,
                                   .steps = 2, .limit = 127 * kLargestScale};
constexpr ScaleSearch kQ4Search = {.low = -8, .high = 7, .nominal = -8, .step = 0.1f, .steps = 9,
                                   .limit = 8 * kLargestScale};

// Nearest codes for candidates like those of q4; ggml tries as many.
constexpr int kIq4NlSteps = 7;

// The least weight of a column beside the heaviest of its group, 1/32 of its activations: a text that
// rarely moved a column says little of the next one, and no weight may be zero.
constexpr float kLeastWeight = 0x1p-10f;
constexpr auto kEvenWeights = [] {
  std::array<float, kGroupCols> weights{};
  weights.fill(1.0f);
  return weights;
}();

// 32 columns of a row: codes of q8, nibbles of the others.
struct Group {
  int8_t codes[kGroupCols];
  uint16_t scale;
};

// Names the first value of a group that a quantised encoding cannot hold.
Status BadValue(const float* x, uint32_t count, float limit, uint32_t row, uint32_t col) {
  for (uint32_t i = 0; i < count; ++i) {
    if (std::fabs(x[i]) <= limit) continue;
    const std::string where =
        " at row " + std::to_string(row) + ", column " + std::to_string(col + i);
    if (!std::isfinite(x[i])) {
      return InvalidArgument((std::isnan(x[i]) ? "NaN" : "infinity") + where);
    }
    return InvalidArgument("value " + std::to_string(x[i]) + where +
                           " is too large for an f16 scale");
  }
  return Internal("no value over the limit in a refused group");
}

uint16_t RoundScale(Encoding encoding, float scale) {
  return HasBf16Scales(encoding) ? FloatToBf16(scale) : FloatToF16(scale);
}
float ScaleOf(Encoding encoding, uint16_t bits) {
  return HasBf16Scales(encoding) ? Bf16ToFloat(bits) : F16ToFloat(bits);
}

// q8, q4 and q4_bf16: codes are consecutive integers. weights: of the group, or null. False for a value
// that cannot be held.
bool EncodeLinear(const KernelTable& kernels, Encoding encoding, const float* x,
                  const float* weights, const ScaleSearch& search, Group* group) {
  float scale = 0;
  if (!kernels.search_group(x, weights, search, group->codes, &scale)) return false;
  group->scale = RoundScale(encoding, scale);
  // Below 2^-14 an f16 has few bits left, and rounding has moved the scale noticeably; a bf16 has
  // few bits always.
  if (scale != 0 && (std::fabs(scale) < 0x1p-14f || HasBf16Scales(encoding))) {
    const float rounded = ScaleOf(encoding, group->scale);
    for (uint32_t i = 0; i < kGroupCols; ++i) {
      const float code = rounded == 0 ? 0.0f : std::rint(x[i] / rounded);
      group->codes[i] = static_cast<int8_t>(std::clamp(code, search.low, search.high));
    }
  }
  if (encoding == Encoding::kQ8) return true;
  for (int8_t& code : group->codes) code = static_cast<int8_t>(code + 8);
  return true;
}

// The nibble whose code is nearest; of two, the first in the table.
uint8_t NearestNibble(const int8_t* codes, float value) {
  uint8_t best = 0;
  for (uint8_t n = 1; n < 16; ++n) {
    if (std::fabs(value - codes[n]) < std::fabs(value - codes[best])) best = n;
  }
  return best;
}

// Takes the codes for a scale if their weighted squared error is the smallest so far.
struct TableSearch {
  const int8_t* codes;
  const float* x;
  const float* weights;
  float best_error = std::numeric_limits<float>::infinity();

  void Try(float inverse, float (*refine)(const TableSearch&, const int8_t* nibbles, float),
           Encoding encoding, Group* group) {
    int8_t nibbles[kGroupCols];
    for (uint32_t i = 0; i < kGroupCols; ++i) {
      nibbles[i] = static_cast<int8_t>(NearestNibble(codes, x[i] * inverse));
    }
    const uint16_t bits = RoundScale(encoding, refine(*this, nibbles, 1 / inverse));
    const float scale = ScaleOf(encoding, bits);
    float error = 0;
    for (uint32_t i = 0; i < kGroupCols; ++i) {
      const float difference = x[i] - codes[nibbles[i]] * scale;
      error += weights[i] * (difference * difference);
    }
    if (!(error < best_error)) return;
    best_error = error;
    std::copy(nibbles, nibbles + kGroupCols, group->codes);
    group->scale = bits;
  }
};

// mxfp4: a power of two, of three around the one whose largest value is next to the extreme's.
// iq4_nl: as q4, the extreme to the end of the table and candidates around it, then least squares.
// weights: of the group.
void EncodeTable(Encoding encoding, const float* x, const float* weights, float extreme,
                 Group* group) {
  TableSearch search = {CodesOf(encoding), x, weights};
  if (encoding == Encoding::kMxfp4) {
    // 6 is E2M1's largest value, 2^2 its power of two; codes are doubled.
    const int exponent = std::clamp(std::ilogb(extreme) - 3, -127, 125);
    for (int e = exponent - 1; e <= exponent + 1; ++e) {
      search.Try(std::ldexp(1.0f, -e),
                 [](const TableSearch&, const int8_t*, float scale) { return scale; }, encoding,
                 group);
    }
    return;
  }
  const auto least_squares = [](const TableSearch& s, const int8_t* nibbles, float) {
    float product = 0, square = 0;
    for (uint32_t i = 0; i < kGroupCols; ++i) {
      const float code = s.codes[nibbles[i]];
      product += s.weights[i] * (s.x[i] * code);
      square += s.weights[i] * (code * code);
    }
    return product / square;
  };
  for (int k = -kIq4NlSteps; k <= kIq4NlSteps; ++k) {
    search.Try((static_cast<float>(k) + search.codes[0]) / extreme, least_squares, encoding, group);
  }
}

// What search_group takes: importance relative to the largest of each group, padding included; empty
// if there is none. A group that nothing was seen of is weighted evenly.
std::vector<float> GroupWeights(std::span<const float> importance) {
  if (importance.empty()) return {};
  const size_t cols = importance.size();
  std::vector<float> weights(TileCount(static_cast<uint32_t>(cols)) * size_t{kTileCols}, 1.0f);
  for (size_t begin = 0; begin < cols; begin += kGroupCols) {
    const auto group = importance.subspan(begin, std::min<size_t>(kGroupCols, cols - begin));
    const float largest = *std::max_element(group.begin(), group.end());
    for (size_t i = 0; largest > 0 && i < group.size(); ++i) {
      weights[begin + i] = std::max(group[i] / largest, kLeastWeight);
    }
  }
  return weights;
}

// Codes and scale of columns col .. col + 31 of one row; columns past `cols` are zeros. weights: of
// the group, or null.
Status EncodeGroup(const KernelTable& kernels, Encoding encoding, const float* row_data,
                   const float* weights, uint32_t row, uint32_t col, uint32_t cols, Group* group) {
  const ScaleSearch& search = encoding == Encoding::kQ8 ? kQ8Search : kQ4Search;
  float x[kGroupCols] = {};
  const uint32_t count = col < cols ? std::min(kGroupCols, cols - col) : 0;
  // An empty group has nothing to copy, and its source would be past the end of the row.
  if (count > 0) std::memcpy(x, row_data + col, count * sizeof(float));
  const bool linear = encoding == Encoding::kQ8 || CodesOf(encoding) == LinearCodes::kCodes;
  if (linear) {
    return EncodeLinear(kernels, encoding, x, weights, search, group)
               ? OkStatus()
               : BadValue(x, count, search.limit, row, col);
  }
  float extreme = 0;
  for (const float value : x) {
    if (!(std::fabs(value) <= search.limit)) return BadValue(x, count, search.limit, row, col);
    if (std::fabs(value) > std::fabs(extreme)) extreme = value;
  }
  // A scale under 2^-100 is nothing, and its inverse might not be a float.
  if (std::fabs(extreme) < 0x1p-100f) {
    std::memset(group->codes, PaddingNibbles(encoding) & 0xF, kGroupCols);
    group->scale = 0;
    return OkStatus();
  }
  EncodeTable(encoding, x, weights == nullptr ? kEvenWeights.data() : weights, extreme, group);
  return OkStatus();
}

void StoreGroup(Encoding encoding, const Group& group, uint32_t r, uint32_t half,
                std::byte* tile) {
  std::memcpy(tile + half * 32 + r * 2, &group.scale, 2);
  if (encoding == Encoding::kQ8) {
    for (uint32_t j = 0; j < 8; ++j) {
      std::memcpy(tile + 64 + ((half * 8 + j) * kTileRows + r) * 4, group.codes + 4 * j, 4);
    }
    return;
  }
  for (uint32_t i = 0; i < 16; ++i) {
    tile[64 + half * 256 + (i / 4 * kTileRows + r) * 4 + i % 4] =
        static_cast<std::byte>(group.codes[i] | group.codes[i + 16] << 4);
  }
}

// Writes row r of the panel whose first tile is `tiles`. weights: of all columns, or null.
Status EncodeRow(const KernelTable& kernels, const MatrixView& view, std::byte* tiles,
                 const float* source, const float* weights, uint32_t row) {
  const uint32_t r = row % kTileRows;
  for (uint32_t t = 0; t < TileCount(view.cols); ++t) {
    std::byte* tile = tiles + uint64_t{t} * view.tile_stride;
    if (IsQuantised(view.encoding)) {
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t col = t * kTileCols + half * kGroupCols;
        Group group;
        RETURN_IF_ERROR(EncodeGroup(kernels, view.encoding, source,
                                    weights == nullptr ? nullptr : weights + col, row, col,
                                    view.cols, &group));
        StoreGroup(view.encoding, group, r, half, tile);
      }
      continue;
    }
    for (uint32_t c = 0; c < kTileCols; ++c) {
      const uint32_t col = t * kTileCols + c;
      const float value = col < view.cols ? source[col] : 0.0f;
      if (view.encoding == Encoding::kBf16) {
        const uint16_t bits = FloatToBf16(value);
        std::memcpy(tile + (c / 2 * kTileRows + r) * 4 + c % 2 * 2, &bits, 2);
      } else {
        std::memcpy(tile + (c * kTileRows + r) * 4, &value, 4);
      }
    }
  }
  return OkStatus();
}

}  // namespace

float Bf16ToFloat(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // The rounding below could carry a NaN's payload into infinity: set its quiet bit instead.
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) {
    return std::bit_cast<float>(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  }
  // Widened with float's smallest exponents, then scaled by 2^112: subnormals come out right.
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

uint16_t FloatToF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. Adding 0.5, whose last bit is 2^-24, makes the
    // FPU round there; the sum's low bits are the result.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(sum) - 0x3F000000u));
  }
  // Rebias the exponent by 112 and round 13 bits away; a carry moves into the exponent rightly.
  const uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

Status EncodeRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  const float* source, std::span<const float> importance) {
  CHECK(importance.empty() || importance.size() == view.cols, "importance of another matrix");
  CHECK(first_row % kTileRows == 0, "EncodeRows starts at a panel");
  CHECK(first_row + row_count <= view.rows, "rows past the end of the matrix");
  CHECK(row_count % kTileRows == 0 || first_row + row_count == view.rows,
        "only the last panel may be incomplete");
  const KernelTable& kernels = KernelsOf(BestIsa());
  const std::vector<float> padding(view.cols, 0.0f);
  const std::vector<float> group_weights = GroupWeights(importance);
  const float* weights = group_weights.empty() ? nullptr : group_weights.data();
  for (uint32_t begin = 0; begin < row_count; begin += kTileRows) {
    const uint32_t panel = (first_row + begin) / kTileRows;
    std::byte* tiles = const_cast<std::byte*>(view.tile(panel, 0));
    for (uint32_t r = 0; r < kTileRows; ++r) {
      const bool inside = begin + r < row_count;
      const float* row = inside ? source + size_t{begin + r} * view.cols : padding.data();
      RETURN_IF_ERROR(EncodeRow(kernels, view, tiles, row, weights, first_row + begin + r));
    }
  }
  return OkStatus();
}

void DecodeRow(const MatrixView& view, uint32_t row, float* destination) {
  CHECK(row < view.rows, "row past the end of the matrix");
  const uint32_t r = row % kTileRows;
  for (uint32_t c = 0; c < view.cols; ++c) {
    const std::byte* tile = view.tile(row / kTileRows, c / kTileCols);
    const uint32_t in_tile = c % kTileCols, half = in_tile / kGroupCols, i = in_tile % kGroupCols;
    if (view.encoding == Encoding::kF32) {
      std::memcpy(destination + c, tile + (in_tile * kTileRows + r) * 4, 4);
      continue;
    }
    uint16_t bits;
    if (view.encoding == Encoding::kBf16) {
      std::memcpy(&bits, tile + (in_tile / 2 * kTileRows + r) * 4 + in_tile % 2 * 2, 2);
      destination[c] = Bf16ToFloat(bits);
      continue;
    }
    std::memcpy(&bits, tile + half * 32 + r * 2, 2);
    int code;
    if (view.encoding == Encoding::kQ8) {
      code = static_cast<int8_t>(tile[64 + (in_tile / 4 * kTileRows + r) * 4 + in_tile % 4]);
    } else {
      const uint8_t byte = static_cast<uint8_t>(
          tile[64 + half * 256 + (i % 16 / 4 * kTileRows + r) * 4 + i % 4]);
      code = CodesOf(view.encoding)[i < 16 ? byte & 0xF : byte >> 4];
    }
    destination[c] = static_cast<float>(code) * ScaleOf(view.encoding, bits);
  }
}

}  // namespace moraine
