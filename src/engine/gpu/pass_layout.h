// Where the buffers of a forward pass on the GPU lie in its scratch, and so how much scratch it needs.
//
// What a layer's attention needs and what its experts need is never alive at once, and shares memory; so do
// the two ways through a layer (gpu_pass.h).
//
// Pure: the CPU-only build has it, for `moraine plan`. Models that gpu_support.h accepts only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "compute/cuda/gated_delta.h"
#include "compute/cuda/gemv.h"
#include "model/config.h"

namespace moraine {

// Tokens that take the way of few.
inline constexpr uint32_t kFewTokens = gpu::kGemvTokens;

// Of latent attention (gpu_mla.h). Few: what comes of the hidden state, queries where there is a step between,
// absorbed, attended to, as values. Many: latents and queries' step between as sums, queries, what all positions
// have for a product, and keys and values of as many heads as fit.
struct LatentScratch {
  float *first = nullptr, *queries = nullptr;
  float *absorbed = nullptr, *attended = nullptr, *values = nullptr;
  std::byte* runs = nullptr;
  float *latent_rows = nullptr, *q_low = nullptr;
  uint16_t *q_operand = nullptr, *query_rows = nullptr, *latent_operand = nullptr;
  uint16_t* keys_and_values = nullptr;
  uint64_t key_and_value_elements = 0;
};

// Of linear attention (gpu_delta_pass.cc), in one of the two ways.
struct DeltaScratch {
  float *first = nullptr, *gated = nullptr;   // of few
  uint16_t* first_rows = nullptr;             // of many
  float *a = nullptr, *b = nullptr;
  float *mixed = nullptr, *values = nullptr;  // of kDeltaRows at most
};

struct PassScratch {
  int32_t* tokens = nullptr;
  uint32_t *positions = nullptr, *tables = nullptr;  // of few; of many one table
  float *hidden = nullptr, *logits = nullptr;
  float *router_logits = nullptr, *weights = nullptr;
  uint32_t *experts = nullptr, *counter = nullptr;
  // Few.
  float *qkv = nullptr, *queries = nullptr, *attended = nullptr;
  gpu::DeltaSegment* segments = nullptr;  // of few
  DeltaScratch few_delta, many_delta;
  float* shared_gates = nullptr;  // of all tokens
  float *gate_up = nullptr, *activated = nullptr, *shared_activated = nullptr;
  std::byte* attention = nullptr;
  uint64_t attention_bytes = 0;
  // Many.
  float* delta = nullptr;
  uint16_t *normed = nullptr, *qkv_rows = nullptr, *query_rows = nullptr, *attended_rows = nullptr;
  uint32_t *offsets = nullptr, *token_rows = nullptr, *rows_of_ranks = nullptr;
  uint16_t *expert_rows = nullptr, *expert_activated = nullptr;
  LatentScratch latent;
  uint16_t *shared_operand = nullptr, *shared_rows = nullptr, *shared_activated_rows = nullptr;
};

// Lays the buffers out from `base` on; null: only counts. max_tokens: of one pass; table_blocks: the most pages
// of a sequence. Returns the bytes.
uint64_t LayOutPass(const ModelConfig& config, uint32_t max_tokens, uint32_t table_blocks,
                    std::byte* base, PassScratch* scratch);
uint64_t PassScratchBytes(const ModelConfig& config, uint32_t max_tokens, uint32_t table_blocks);
// Rows of logits that are computed at a time.
uint32_t LogitRowsOfPass(const ModelConfig& config, uint32_t max_tokens);

}  // namespace moraine
