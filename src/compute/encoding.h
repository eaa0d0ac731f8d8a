// Weight encodings and the tile layout: the bytes of a matrix as every kernel reads them.
//
// A matrix W of rows x cols (y = W x) is cut into tiles of 16 rows x 64 columns, tiles of the same
// 16 rows ("a panel") one behind the other, panels top to bottom. Rows are padded to 16 and columns
// to 64 with zeros. Inside a tile the 16 rows are interleaved in words of 4 bytes:
//
//   bf16 (2048 B)   word(p, r) = { W[r][2p], W[r][2p+1] }                       p = 0..31, r = 0..15
//                   at byte (p*16 + r) * 4
//   q8   (1088 B)   [scale f16 x 16 rows of columns 0..31][the same, columns 32..63]       64 B
//                   word(j, r) = { Q[r][4j], .., Q[r][4j+3] } int8, j = 0..15, at 64 + (j*16 + r)*4
//   q4   (576 B)    [scales as q8]                                                          64 B
//                   for half h = 0, 1 (columns 32h .. 32h+31) 256 B at 64 + 256h:
//                   word(j, r), j = 0..3, at (j*16 + r)*4: byte i = N[r][32h + 4j + i] in the low
//                   nibble, N[r][32h + 16 + 4j + i] in the high nibble; value = (N - 8) * scale
//   q4_bf16, mxfp4, iq4_nl   as q4 but for what a scale or a nibble is (table below)
//   f32  (4096 B)   W[r][c] at (c*16 + r) * 4
//
// q8 and the 4-bit ones have one scale of 16 bits for 32 columns of a row: 8.5 and 4.5 bits a weight.
// Each is the grouping of something published, which is carried bit for bit:
//
//              scale   nibble N means            carried exactly
//   q8         f16                               GGUF Q8_0, Q5_0; AWQ, GPTQ; what q4 and iq4_nl carry
//   q4         f16     N - 8                     GGUF Q4_0; symmetric GPTQ
//   q4_bf16    bf16    N - 8                     compressed-tensors INT4 (Kimi-K2.5)
//   mxfp4      bf16    twice E2M1's value        MXFP4 (gpt-oss)
//   iq4_nl     f16     ggml's table of 16        GGUF IQ4_NL
//
// MXFP4's own scale is a byte, a power of two from 2^-127 to 2^127: bf16 has all of these and their
// halves (codes are twice the value). The byte instead would save 6 % and make a tile 544 bytes, no
// multiple of a cache line: every second load of a kernel would straddle two, and interleaved gate
// and up tiles could not be read with aligned loads at all.
//
// Why this one layout suits all readers of a record:
//  * io_uring: tiles are multiples of 64 B, so a record is one contiguous run of bytes without
//    headers; padded to 4 KiB it is one O_DIRECT read, and any 4 KiB boundary may split a chunk.
//  * AVX2 / VNNI / AVX-512 / AMX decode: a 32- or 64-byte load holds 8 or 16 rows x 4 consecutive
//    columns: exactly one operand of vpdpbusd (or vpmaddubsw) with the activations broadcast, one
//    accumulator lane a row: no shuffle and no horizontal sum in the inner loop. Nibbles need one
//    AND or one shift. 8 rows of 64 B are an AMX B tile for K = 32 (int8), 16 are one for bf16.
//  * CUDA tensor cores: the word (j = lane % 4, r = lane / 4) is, after unpacking, what
//    mma.m16n8k16 wants in a lane's A fragment under one fixed permutation of k inside 16 columns,
//    which is applied to the activations once. The same holds for wgmma with A in registers. Weights
//    go from global memory to registers to tensor core without a transpose.
//  * NUMA: a panel range is a contiguous byte range, so an expert splits over nodes by rows.
//
// Rejected: rows contiguous as in GGUF (horizontal sums; published AVX2 kernels were bound by their
// shuffles), a second pack for the GPU (twice the disk and no promotion without conversion), scales
// in a separate region (two streams a panel, two copies a tile for the GPU).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "compute/codebook.h"

namespace moraine {

enum class Encoding : uint8_t {
  kF32 = 0, kBf16 = 1, kQ8 = 2, kQ4 = 3, kQ4Bf16 = 4, kMxfp4 = 5, kIq4Nl = 6
};
inline constexpr int kEncodingCount = 7;

const char* EncodingName(Encoding encoding);  // "f32", "bf16", "q8", "q4", "q4_bf16", ...
std::optional<Encoding> ParseEncoding(std::string_view name);

// Codes behind a scale, multiplied with activations in int8.
constexpr bool IsQuantised(Encoding encoding) { return encoding >= Encoding::kQ8; }

// Of a 4-bit encoding: its 16 codes. Null for the others.
constexpr const int8_t* CodesOf(Encoding encoding) {
  switch (encoding) {
    case Encoding::kQ4:
    case Encoding::kQ4Bf16: return LinearCodes::kCodes;
    case Encoding::kMxfp4: return E2M1Codes::kCodes;
    case Encoding::kIq4Nl: return Iq4NlCodes::kCodes;
    default: return nullptr;
  }
}
// Whether scales are bf16; else they are f16.
constexpr bool HasBf16Scales(Encoding encoding) {
  return encoding == Encoding::kQ4Bf16 || encoding == Encoding::kMxfp4;
}
// What padding has in both nibbles of its bytes, under a scale of 0. (iq4_nl has no code for zero: the
// columns that EncodeRows pads a group with are not zero, but meet activations that are.)
constexpr uint8_t PaddingNibbles(Encoding encoding) {
  return encoding == Encoding::kMxfp4 ? 0x00 : 0x88;
}

inline constexpr uint32_t kTileRows = 16;
inline constexpr uint32_t kTileCols = 64;
inline constexpr uint32_t kGroupCols = 32;  // columns that share a scale

constexpr uint32_t TileBytes(Encoding encoding) {
  switch (encoding) {
    case Encoding::kF32: return 4096;
    case Encoding::kBf16: return 2048;
    case Encoding::kQ8: return 1088;
    case Encoding::kQ4:
    case Encoding::kQ4Bf16:
    case Encoding::kMxfp4:
    case Encoding::kIq4Nl: return 576;
  }
  return 0;
}
constexpr uint32_t PanelCount(uint32_t rows) { return (rows + kTileRows - 1) / kTileRows; }
constexpr uint32_t TileCount(uint32_t cols) { return (cols + kTileCols - 1) / kTileCols; }

// Bytes of a whole matrix.
constexpr uint64_t MatrixBytes(Encoding encoding, uint32_t rows, uint32_t cols) {
  return uint64_t{PanelCount(rows)} * TileCount(cols) * TileBytes(encoding);
}

// A matrix in memory. Does not own. Tiles of one panel are tile_stride apart: TileBytes for a plain
// matrix, the sum of both for interleaved gate and up.
struct MatrixView {
  const std::byte* data = nullptr;  // 64-byte aligned
  Encoding encoding = Encoding::kF32;
  uint32_t rows = 0, cols = 0;
  uint32_t tile_stride = 0;
  uint64_t panel_stride = 0;

  static MatrixView Plain(const std::byte* data, Encoding encoding, uint32_t rows, uint32_t cols) {
    const uint32_t tile = TileBytes(encoding);
    return {data, encoding, rows, cols, tile, uint64_t{TileCount(cols)} * tile};
  }
  const std::byte* tile(uint32_t panel, uint32_t tile_index) const {
    return data + panel * panel_stride + uint64_t{tile_index} * tile_stride;
  }
};

// One routed expert's record: for each panel of 16 intermediate rows the tiles of gate and up take
// turns (gate tile 0, up tile 0, gate tile 1, ...), so that one pass over the activations feeds
// both; then down, plain; then, of models that have them, the biases of gate, up and down as float32,
// each padded with zeros to a whole number of tile columns. Padded with zeros to 4 KiB.
struct ExpertLayout {
  Encoding gate_up = Encoding::kBf16;
  Encoding down = Encoding::kBf16;
  uint32_t hidden = 0;        // columns of gate and up, rows of down
  uint32_t intermediate = 0;  // rows of gate and up, columns of down
  bool biases = false;

  constexpr uint64_t down_offset() const {
    return 2 * MatrixBytes(gate_up, intermediate, hidden);
  }
  constexpr uint64_t bias_offset() const {
    return down_offset() + MatrixBytes(down, hidden, intermediate);
  }
  constexpr uint64_t payload_bytes() const {
    if (!biases) return bias_offset();
    return bias_offset() + (2 * PaddedBias(intermediate) + PaddedBias(hidden)) * sizeof(float);
  }
  // Floats that a bias takes.
  static constexpr uint64_t PaddedBias(uint32_t rows) { return AlignUp(uint64_t{rows}, kTileCols); }
  constexpr uint64_t record_bytes() const { return AlignUp(payload_bytes(), 4096); }
};

struct ExpertView {
  MatrixView gate, up, down;
  // Null without biases; readable as far as they are padded.
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
};
ExpertView ViewExpert(const ExpertLayout& layout, const std::byte* record);

}  // namespace moraine
