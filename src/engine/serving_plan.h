// What a model needs, and how fast it can be served at most, from its dimensions and the bandwidths of a
// machine: `moraine plan`, before anything is downloaded, imported or bought.
//
// The bound of a decoded token, with overlap of reading and computing perfect and nothing read in vain:
//
//   tok/s <= 1 / max((dense bytes + expert bytes) / memory, expert bytes x (1 - hit rate) / drive)
//
// and of a prompt's chunk: the longer of its multiplications and of reading once every absent expert that
// it touches. The hit rate is the weak figure: it is a workload's. What a profile has seen is taken if
// there is one; else what the default policy reached on a recorded routing of Qwen3-30B-A3B (docs/policies.md).
// Measured shares of these bounds: docs/overlap.md, docs/compute.md.
//
// On a GPU, with a plan of what lies in VRAM (gpu/vram_plan.h): a prompt's chunk takes the longest of its
// multiplications, of streamed experts over the link, and of those that are not in DRAM from the drive; an answer
// that is computed there too, the longer of weights in VRAM and of streamed experts' records over the link.
//
// Threads: pure functions.
#pragma once

#include <cstdint>

#include "engine/budget.h"
#include "engine/gpu/vram_plan.h"
#include "engine/miss_curve.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

// 0: not known.
struct MachineRates {
  double memory_bytes_per_s = 0;  // read-only streaming, all threads
  double drive_bytes_per_s = 0;   // random experts
  double operations_per_s = 0;    // of the multipliers that a GEMM uses; a multiply-add is two
};

// What one token asks for.
struct TokenDemand {
  uint64_t dense_bytes = 0;   // every matrix once; of the embedding a row
  uint64_t expert_bytes = 0;  // top-k records of each layer
  double operations = 0;
};
TokenDemand DemandOfToken(const Manifest& manifest, const ModelConfig& config);

struct ServingEstimate {
  uint64_t budget_bytes = 0;  // of the process; fixed memory and slots
  uint64_t slot_count = 0;
  double resident_share = 0, hit_rate = 0;
  double read_bytes_per_token = 0;  // decode
  // At most; 0: a rate that is needed is not known.
  double decode_tok_per_s = 0, prefill_tok_per_s = 0;
  const char* decode_bound_by = "";  // "memory", "drive"
  const char* prefill_bound_by = "";  // "arithmetic", "drive"
};

struct ServingPlanInput {
  const Manifest& manifest;
  const ModelConfig& config;
  FixedMemory fixed{};
  uint32_t prefill_chunk = 0;  // tokens
  MachineRates rates{};
};

// 0: not known.
struct GpuRates {
  double link_bytes_per_s = 0;    // from page-locked DRAM
  double memory_bytes_per_s = 0;  // of VRAM, reading
  double operations_per_s = 0;    // of tensor cores, bf16
};

struct GpuEstimate {
  // At most; 0: a rate that is needed is not known.
  double prefill_tok_per_s = 0, decode_tok_per_s = 0;
  const char* prefill_bound_by = "";  // "arithmetic", "link", "drive"
  const char* decode_bound_by = "";   // "VRAM", "link"
};
// dram_share: of the experts that are in DRAM.
GpuEstimate EstimateOnGpu(const TokenDemand& demand, const VramPlan& plan, const GpuRates& rates,
                          double drive_bytes_per_s, double dram_share);

// kInvalidArgument naming the smallest budget if this one is too small.
Result<ServingEstimate> EstimateServing(const ServingPlanInput& input, const MissCurve& misses,
                                        const RamBudget& budget);

}  // namespace moraine
