// The router on the device: logits, the choice of experts, and the order by expert that the
// grouped GEMM reads. Nothing returns to the host.
//
//   RunRouter      logits = W n(x) (+ bias); per token the top_k experts and their weights
//   SortByExpert   counts, offsets, token_rows (GatherOperand), positions (Combine)
//
// Choices hang on the logits: for up to 8 tokens they are float32 products of float32 weights and
// normalised rows; for more, tensor cores multiply each factor as two bf16 (16 bits of it),
// products of both lower halves left out, sums float32: off by 2^-16 of the sum of magnitudes at
// most. The choice is the CPU's (blocks/expert_choice.h): best first, the lower index first on a
// tie, always distinct; a NaN is never better than anything.
//
// A token's logits depend on it and the kernel only; up to 8 tokens take another kernel than more,
// whose sums run in another order. Two runs give the same bits.
//
// Units, pointers, threads, capture: as in gemv.h.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"
#include "compute/cuda/gemv.h"

namespace moraine::gpu {

inline constexpr uint32_t kMaxRoutedExperts = 1024;
inline constexpr uint32_t kMaxTopK = 32;

enum class ExpertScoring : uint8_t {
  kSoftmax,          // weights are the softmax over all experts
  kSoftmaxOfChosen,  // over the chosen ones
  kSigmoid,          // of each
};

inline constexpr uint32_t kMaxExpertGroups = 32;
inline constexpr uint32_t kMaxGroupedRouting = 512;  // experts, where they are in groups

struct ExpertSelection {
  ExpertScoring scoring = ExpertScoring::kSoftmax;
  const float* correction = nullptr;  // expert_count, added to the scores for the choice only
  // Consecutive experts, as many in each; only those of the best groups can be chosen. A group is as good as its
  // best score (with the correction), or as the sum of its two best.
  uint32_t group_count = 1, chosen_groups = 1;
  bool two_best_of_group = false;
  bool normalize = false;  // weights sum to one before `scale`
  float normalize_epsilon = 0;
  float scale = 1;
};

struct Router {
  DeviceMatrix matrix;  // f32, rows = experts <= kMaxRoutedExperts
  const float* bias = nullptr;
  GemvInput input;
  uint32_t token_count = 0, top_k = 0;  // top_k <= min(kMaxTopK, experts)
  ExpertSelection selection;
  float* logits = nullptr;      // token_count x experts
  uint32_t* experts = nullptr;  // token_count x top_k
  float* weights = nullptr;     // token_count x top_k
  // One counter, zero before the first call; every call leaves it zero. Not shared by calls that
  // may run at the same time.
  uint32_t* counter = nullptr;
};
Status RunRouter(const Router& router, Stream stream);

struct ExpertOrder {
  const uint32_t* experts = nullptr;  // token_count x top_k, each < expert_count
  uint32_t token_count = 0, top_k = 0, expert_count = 0;
  uint32_t* offsets = nullptr;     // expert_count + 1
  uint32_t* token_rows = nullptr;  // token_count x top_k: the token of each sorted row
  uint32_t* positions = nullptr;   // token_count x top_k: the sorted row of each (token, rank)
};
// Stable: an expert's rows are in the order of (token, rank).
Status SortByExpert(const ExpertOrder& order, Stream stream);

}  // namespace moraine::gpu
