#include "engine/gpu/vram_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/bytes.h"

namespace moraine {
namespace {

// Longer chunks spread a streamed layer's bytes over more tokens and fill tensor cores better; past 8192
// tokens an expert of the published shapes has enough of them (docs/gpu.md).
constexpr uint32_t kLongestChunk = 8192, kShortestChunk = 512;
// What the scratch of a chosen chunk may take of the budget.
constexpr uint64_t kScratchShare = 8;

uint32_t ChooseChunk(const VramNeeds& needs, uint64_t budget_bytes) {
  if (needs.chunk > 0) return std::min(needs.chunk, needs.max_context);
  uint32_t chunk = kLongestChunk;
  while (chunk > kShortestChunk &&
         (chunk / 2 >= needs.max_context || needs.scratch_bytes(chunk) > budget_bytes / kScratchShare)) {
    chunk /= 2;
  }
  return std::min(chunk, needs.max_context);
}

// Of `count` layers in order those with a true are `wanted` in number and evenly spread.
std::vector<bool> Spread(uint32_t wanted, uint32_t count) {
  std::vector<bool> chosen(count);
  for (uint32_t i = 0; i < count; ++i) {
    chosen[i] = uint64_t{i + 1} * wanted / count > uint64_t{i} * wanted / count;
  }
  return chosen;
}

}  // namespace

Result<VramPlan> PlanVram(const VramNeeds& needs, uint64_t budget_bytes) {
  VramPlan plan;
  plan.budget_bytes = budget_bytes;
  plan.dense_bytes = needs.dense_bytes;
  plan.kv_bytes = needs.kv_bytes;
  plan.chunk = ChooseChunk(needs, budget_bytes);
  plan.scratch_bytes = needs.scratch_bytes(plan.chunk);
  std::vector<uint32_t> moe_layers;
  uint64_t largest = 0, all = 0;
  for (uint32_t layer = 0; layer < needs.layer_bytes.size(); ++layer) {
    if (needs.layer_bytes[layer] == 0) continue;
    moe_layers.push_back(layer);
    largest = std::max(largest, needs.layer_bytes[layer]);
    all += needs.layer_bytes[layer];
  }
  plan.anchored.assign(needs.layer_bytes.size(), true);
  const uint64_t fixed = plan.total_bytes();
  const auto count = static_cast<uint32_t>(moe_layers.size());
  if (fixed + all <= budget_bytes) {
    plan.anchored_layers = count;
    plan.anchored_bytes = all;
    return plan;
  }
  plan.ring_slots = std::min(kRingSlots, count);
  plan.ring_bytes = plan.ring_slots * largest;
  if (fixed + plan.ring_bytes > budget_bytes) {
    return ResourceExhausted(fmt::format(
        "VRAM budget {}: at least {} are needed ({} dense weights, {} KV cache, {} scratch for {} "
        "tokens at a time, {} for two layers of experts that are streamed)",
        FormatByteSize(budget_bytes), FormatByteSize(fixed + plan.ring_bytes),
        FormatByteSize(plan.dense_bytes), FormatByteSize(plan.kv_bytes),
        FormatByteSize(plan.scratch_bytes), plan.chunk, FormatByteSize(plan.ring_bytes)));
  }
  const uint64_t room_bytes = budget_bytes - fixed - plan.ring_bytes;
  if (needs.hot_experts) {
    for (const uint32_t layer : moe_layers) plan.anchored[layer] = false;
    plan.streamed_layers = count;
    plan.streamed_bytes = all;
    plan.hot_slot_bytes = AlignUp(needs.largest_record_bytes, kHotSlotAlignment);
    plan.hot_slots = static_cast<uint32_t>(room_bytes / plan.hot_slot_bytes);
    plan.hot_bytes = plan.hot_slots * plan.hot_slot_bytes;
    return plan;
  }
  // Layers of one model are alike or nearly so: as many as fit if all were the largest.
  const auto room = static_cast<uint32_t>(room_bytes / largest);
  const std::vector<bool> stays = Spread(std::min(room, count), count);
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t bytes = needs.layer_bytes[moe_layers[i]];
    plan.anchored[moe_layers[i]] = stays[i];
    (stays[i] ? plan.anchored_layers : plan.streamed_layers) += 1;
    (stays[i] ? plan.anchored_bytes : plan.streamed_bytes) += bytes;
  }
  return plan;
}

std::string VramPlan::ToText() const {
  std::string experts = fmt::format("{} experts", FormatByteSize(anchored_bytes));
  if (streamed_layers > 0) {
    experts = fmt::format("{} for {} of {} layers' experts, {} ring; {} streamed from DRAM",
                          FormatByteSize(anchored_bytes), anchored_layers,
                          anchored_layers + streamed_layers, FormatByteSize(ring_bytes),
                          FormatByteSize(streamed_bytes));
  }
  if (hot_slot_bytes > 0) {
    experts = fmt::format("{} for {} single experts ({} each), {} ring; {} streamed from DRAM",
                          FormatByteSize(hot_bytes), hot_slots, FormatByteSize(hot_slot_bytes),
                          FormatByteSize(ring_bytes), FormatByteSize(streamed_bytes));
  }
  return fmt::format("{} of VRAM: {} dense weights, {} KV cache, {} scratch for {} tokens, {}",
                     FormatByteSize(total_bytes()), FormatByteSize(dense_bytes),
                     FormatByteSize(kv_bytes), FormatByteSize(scratch_bytes), chunk, experts);
}

Result<uint64_t> ParseVramBudget(const std::string& text) {
  if (text == "auto") return uint64_t{0};
  auto bytes = ParseByteSize(text);
  if (!bytes.ok() || *bytes == 0) {
    return InvalidArgument(
        fmt::format("VRAM budget '{}': expected a size (16GiB) or auto", text));
  }
  return *bytes;
}

}  // namespace moraine
