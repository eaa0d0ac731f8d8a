#include "engine/serving_plan.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "engine/slot_memory.h"
#include "memory/topology.h"

namespace moraine {
namespace {

// Experts of a layer that a chunk touches, if all were alike: the most there can be to read.
double TouchedExperts(uint32_t expert_count, uint32_t top_k, uint32_t tokens) {
  const double missed = 1 - static_cast<double>(top_k) / expert_count;
  return expert_count * (1 - std::pow(missed, tokens));
}

double PrefillReadBytes(const ServingPlanInput& input, double resident_share) {
  double bytes = 0;
  for (const LayerManifest& layer : input.manifest.layers) {
    if (layer.expert_count == 0) continue;
    bytes += TouchedExperts(layer.expert_count, input.config.top_k, input.prefill_chunk) *
             static_cast<double>(layer.record_bytes);
  }
  return bytes * (1 - resident_share);
}

void EstimateDecode(const ServingPlanInput& input, const TokenDemand& demand,
                    ServingEstimate* estimate) {
  const MachineRates& rates = input.rates;
  estimate->read_bytes_per_token =
      static_cast<double>(demand.expert_bytes) * (1 - estimate->hit_rate);
  const bool reads = estimate->read_bytes_per_token > 0;
  if (rates.memory_bytes_per_s == 0 || (reads && rates.drive_bytes_per_s == 0)) return;
  const double memory_s = static_cast<double>(demand.dense_bytes + demand.expert_bytes) /
                          rates.memory_bytes_per_s;
  const double drive_s = reads ? estimate->read_bytes_per_token / rates.drive_bytes_per_s : 0;
  estimate->decode_tok_per_s = 1 / std::max(memory_s, drive_s);
  estimate->decode_bound_by = drive_s > memory_s ? "drive" : "memory";
}

void EstimatePrefill(const ServingPlanInput& input, const TokenDemand& demand,
                     ServingEstimate* estimate) {
  const MachineRates& rates = input.rates;
  const double read_bytes = PrefillReadBytes(input, estimate->resident_share);
  if (rates.operations_per_s == 0 || (read_bytes > 0 && rates.drive_bytes_per_s == 0)) return;
  const double compute_s = input.prefill_chunk * demand.operations / rates.operations_per_s;
  const double drive_s = read_bytes > 0 ? read_bytes / rates.drive_bytes_per_s : 0;
  estimate->prefill_tok_per_s = input.prefill_chunk / std::max(compute_s, drive_s);
  estimate->prefill_bound_by = drive_s > compute_s ? "drive" : "arithmetic";
}

}  // namespace

TokenDemand DemandOfToken(const Manifest& manifest, const ModelConfig& config) {
  TokenDemand demand;
  for (const DenseTensor& tensor : manifest.dense) {
    const bool looked_up = tensor.name == "embedding" && !config.tied_embeddings;
    demand.dense_bytes += looked_up ? tensor.bytes / std::max(tensor.rows, 1u) : tensor.bytes;
    if (!looked_up) demand.operations += 2.0 * tensor.rows * tensor.cols;
  }
  for (const LayerManifest& layer : manifest.layers) {
    if (layer.expert_count == 0) continue;
    demand.expert_bytes += config.top_k * layer.record_bytes;
    demand.operations += 6.0 * config.top_k * layer.hidden * layer.intermediate;
  }
  return demand;
}

GpuEstimate EstimateOnGpu(const TokenDemand& demand, const VramPlan& plan, const GpuRates& rates,
                          double drive_bytes_per_s, double dram_share) {
  GpuEstimate estimate;
  const auto streamed = static_cast<double>(plan.streamed_bytes);
  const double experts = static_cast<double>(plan.anchored_bytes) + streamed;
  const double streamed_share = experts > 0 ? streamed / experts : 0;
  const double read = streamed * (1 - dram_share);
  struct Part {
    double amount, rate;
    const char* name;
  };
  // The slowest part; nothing if one that counts has no rate.
  const auto slowest = [](std::initializer_list<Part> parts, const char** name) {
    double most_s = 0;
    for (const Part& part : parts) {
      if (part.amount <= 0) continue;
      if (part.rate <= 0) return 0.0;
      if (part.amount / part.rate <= most_s) continue;
      most_s = part.amount / part.rate;
      *name = part.name;
    }
    return most_s;
  };
  const double chunk_s = slowest({{plan.chunk * demand.operations, rates.operations_per_s, "arithmetic"},
                                  {streamed, rates.link_bytes_per_s, "link"},
                                  {read, drive_bytes_per_s, "drive"}},
                                 &estimate.prefill_bound_by);
  if (chunk_s > 0) estimate.prefill_tok_per_s = plan.chunk / chunk_s;
  const auto expert_bytes = static_cast<double>(demand.expert_bytes);
  const double token_s =
      slowest({{static_cast<double>(demand.dense_bytes) + expert_bytes * (1 - streamed_share),
                rates.memory_bytes_per_s, "VRAM"},
               {expert_bytes * streamed_share, rates.link_bytes_per_s, "link"}},
              &estimate.decode_bound_by);
  if (token_s > 0) estimate.decode_tok_per_s = 1 / token_s;
  return estimate;
}

Result<ServingEstimate> EstimateServing(const ServingPlanInput& input, const MissCurve& misses,
                                        const RamBudget& budget) {
  ASSIGN_OR_RETURN(const MemoryLimit limit, DetectMemoryLimit());
  ASSIGN_OR_RETURN(const SlotPlan slots, PlanSlots(input.manifest, input.config.top_k, input.fixed,
                                                   budget, limit));
  ServingEstimate estimate;
  const uint64_t experts = input.manifest.expert_count();
  estimate.slot_count = std::min<uint64_t>(slots.slot_count, experts);
  estimate.budget_bytes = input.fixed.total() + SlotMemory(estimate.slot_count * slots.slot_bytes);
  estimate.resident_share =
      static_cast<double>(estimate.slot_count) / static_cast<double>(experts);
  estimate.hit_rate = 1 - misses.MissShare(estimate.resident_share);
  const TokenDemand demand = DemandOfToken(input.manifest, input.config);
  EstimateDecode(input, demand, &estimate);
  EstimatePrefill(input, demand, &estimate);
  return estimate;
}

}  // namespace moraine
