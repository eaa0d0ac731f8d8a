// GroupedGemm: the routed experts of one MoE layer on an NVIDIA GPU, all experts in one launch,
// read from the store's own records as they lie in device slots (encoding.h): no second weight
// format.
//
//   GatherOperand  x (tokens, natural order) -> rows in operand order, sorted by expert   bf16
//   GateUp         operand rows -> silu(W_gate x) * (W_up x), in operand order            bf16
//   Down           GateUp's output -> W_down h, one row a (token, expert)                 bf16
//   Combine        Down's rows -> their weighted sum over ranks, in router order          float32
//   Dense          a dense matrix, as an expert that all tokens go to            bf16 or float32
//
// Why weights are the A operand of the tensor cores: a panel of 16 rows is what one warp
// multiplies, and the words of a tile are, unpacked, a lane's fragment; so weights go from their
// record through shared memory to registers, become bf16 there, and never lie anywhere dequantised.
// Activations are the B operand and need one fixed order of columns, the *operand order* below;
// whoever writes them writes it at no cost (GatherOperand, the end of GateUp).
//
// Two kernels compute the same thing: wgmma with bulk copies on Hopper (compute capability 9.x),
// and mma.sync with cp.async from Ampere up (8.0). A grid of one wave walks tiles of 128 (gate and
// up) or 256 (down) weight rows x up to 128 tokens of one expert (mma.sync: 64). An expert's tokens
// are cut into equal blocks, each a multiple of 16, so that few tokens cost little.
//
// Rounding, all to nearest even: x is bf16; a weight is code x scale as bf16, rounded once (q8 with
// a relative 2^-17 before that; bf16 records as they are); products are exact, sums float32; silu
// and the product with up are float32, rounded once to bf16; Down's rows are rounded to bf16;
// Combine multiplies and adds in float32, rank by rank. No sum depends on timing: the same input
// gives the same bits on the same GPU.
//
// Units: strides count elements, bf16 is passed as its 16 bits. All pointers are device pointers;
// records are 16-byte aligned (slots are 4 KiB aligned), activations too. Work is enqueued on
// `stream` and errors of earlier asynchronous work may be reported by any call. Thread-safe: no
// mutable state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"
#include "compute/encoding.h"

namespace moraine::gpu {

// Operand order: of each 16 columns, column 4t + e lies at 2t + e (e = 0, 1) or 8 + 2t + e - 2 (e =
// 2, 3), t = 0..3; what a lane's word of four codes holds is then what its fragment wants. An
// operand row is padded to whole tiles with zeros (they meet zero weights, but NaN x 0 is NaN).
constexpr uint32_t OperandPosition(uint32_t column) {
  const uint32_t t = column % 16 / 4, e = column % 4;
  return column / 16 * 16 + 2 * t + e % 2 + e / 2 * 8;
}
constexpr uint32_t OperandStride(uint32_t cols) { return TileCount(cols) * kTileCols; }
// Stride of Down's rows: whole panels are written, the padding as zeros.
constexpr uint32_t RowStride(uint32_t hidden) { return PanelCount(hidden) * kTileRows; }

inline constexpr uint32_t kMaxGroupedExperts = 1024;

// Rows sorted by expert: rows offsets[e] .. offsets[e + 1] - 1 belong to expert e.
struct RoutedExperts {
  ExpertLayout layout;  // q4, q8 or bf16; not f32
  const std::byte* const* records =
      nullptr;                        // expert_count record addresses; one without rows is not read
  uint32_t expert_count = 0;          // <= kMaxGroupedExperts
  const uint32_t* offsets = nullptr;  // expert_count + 1, ascending from 0 to row_count
  uint32_t row_count = 0;             // tokens x top_k
};

struct RowGather {
  const uint16_t* x = nullptr;           // bf16, token rows of `cols`
  uint32_t x_stride = 0;                 // >= cols
  const uint32_t* token_rows = nullptr;  // row_count rows of x
  uint32_t row_count = 0, cols = 0;
  uint16_t* operand = nullptr;  // row_count x OperandStride(cols), overwritten whole
};

struct RowCombination {
  const uint16_t* rows = nullptr;       // Down's output
  uint32_t row_stride = 0;              // RowStride(hidden)
  const uint32_t* positions = nullptr;  // token_count x top_k: the row of (token, rank)
  const float* weights = nullptr;       // token_count x top_k
  uint32_t token_count = 0, top_k = 0, hidden = 0;
  float* out = nullptr;  // token_count x hidden, overwritten
  bool add = false;      // or added to: the residual
};

// y = W x of a dense matrix for many tokens, by the same kernels as one expert's down.
struct DenseProduct {
  DeviceMatrix matrix;                // q4, q8 or bf16
  const uint16_t* operand = nullptr;  // token_count x OperandStride(cols), operand order
  uint32_t token_count = 0;
  // Rows in natural order, `stride` elements apart, a multiple of 16 and at least RowStride(rows):
  // padding up to the matrix' last panel is written as zeros (added, where sums are).
  enum class Output : uint8_t { kBf16, kF32, kAddF32 } output = Output::kBf16;
  void* y = nullptr;
  uint32_t stride = 0;
};

enum class GemmPath { kBest, kMmaSync, kWgmma };

class GroupedGemm {
 public:
  // On the current device. kUnsupported, saying why, if there is no GPU or it is older than Ampere,
  // or if `path` asks for what this GPU lacks.
  static Result<GroupedGemm> Create(GemmPath path = GemmPath::kBest);

  GemmPath path() const { return path_; }  // never kBest

  Status GatherOperand(const RowGather& gather, Stream stream) const;
  // operand: row_count x OperandStride(hidden). output: row_count x OperandStride(intermediate), in
  // operand order, overwritten whole.
  Status GateUp(const RoutedExperts& experts, const uint16_t* operand, uint16_t* output,
                Stream stream) const;
  // operand: GateUp's output. rows: row_count x RowStride(hidden), natural order, overwritten
  // whole.
  Status Down(const RoutedExperts& experts, const uint16_t* operand, uint16_t* rows,
              Stream stream) const;
  Status Combine(const RowCombination& combination, Stream stream) const;
  Status Dense(const DenseProduct& product, Stream stream) const;

 private:
  GroupedGemm(GemmPath path, uint32_t multiprocessors)
      : path_(path), multiprocessors_(multiprocessors) {}

  GemmPath path_;
  uint32_t multiprocessors_;
};

}  // namespace moraine::gpu
