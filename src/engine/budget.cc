#include "engine/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/bytes.h"
#include "engine/slot_memory.h"
#include "residency/residency_manager.h"

namespace moraine {
namespace {

// Without a --ram-budget, the rest is left to the page cache, other processes and the kernel.
constexpr double kAutomaticShare = 0.9;

uint64_t CeilPercentTenths(uint64_t part, uint64_t whole) { return (part * 1000 + whole - 1) / whole; }

}  // namespace

Result<RamBudget> ParseRamBudget(std::string_view text) {
  RamBudget budget;
  if (text == "auto") return budget;
  if (text.ends_with('%')) {
    double percent = 0;
    const char* last = text.data() + text.size() - 1;
    const auto [end, error] = std::from_chars(text.data(), last, percent);
    if (error != std::errc() || end != last || !(percent > 0 && percent <= 100)) {
      return InvalidArgument(fmt::format(
          "RAM budget '{}' is not a percentage of the experts: expected above 0%, at most 100%",
          text));
    }
    budget.kind = RamBudget::Kind::kExpertFraction;
    budget.fraction = percent / 100;
    return budget;
  }
  auto bytes = ParseByteSize(text);
  if (!bytes.ok()) {
    return InvalidArgument(fmt::format(
        "RAM budget '{}': expected a size (8GiB), a percentage of the experts (25%) or auto", text));
  }
  budget.kind = RamBudget::Kind::kBytes;
  budget.bytes = *bytes;
  return budget;
}

Result<SlotPlan> PlanSlots(const Manifest& manifest, uint32_t top_k, const FixedMemory& fixed,
                           const RamBudget& budget, const MemoryLimit& limit) {
  SlotPlan plan;
  plan.slot_bytes = manifest.max_record_bytes();
  const uint64_t experts = manifest.expert_count();
  if (experts == 0) {
    plan.all_resident = true;
    return plan;
  }
  const uint64_t minimum = MinimumSlots(top_k);
  const uint64_t slot_memory = SlotMemory(plan.slot_bytes);
  const uint64_t minimum_bytes = fixed.total() + minimum * slot_memory;
  uint64_t slots = 0;
  if (budget.kind == RamBudget::Kind::kExpertFraction) {
    // 1e-9: 25 % of 256 experts is 64 slots however the product rounds.
    slots = static_cast<uint64_t>(budget.fraction * static_cast<double>(experts) + 1e-9);
    if (slots < minimum) {
      const uint64_t tenths = CeilPercentTenths(minimum, experts);
      return InvalidArgument(fmt::format(
          "RAM budget {:.4g}% holds {} of {} experts; the minimum is {} slots (top-{} and two for "
          "prefill): {}.{}%",
          budget.fraction * 100, slots, experts, minimum, top_k, tenths / 10, tenths % 10));
    }
  } else {
    const bool automatic = budget.kind == RamBudget::Kind::kAutomatic;
    plan.budget_bytes = automatic ? static_cast<uint64_t>(kAutomaticShare * static_cast<double>(
                                        limit.available_bytes))
                                  : budget.bytes;
    if (plan.budget_bytes < minimum_bytes) {
      return InvalidArgument(fmt::format(
          "RAM budget {}{} is too small: the minimum is {} ({} dense weights, {} KV cache, {} "
          "scratch, {} process, {} for {} expert slots)",
          FormatByteSize(plan.budget_bytes),
          automatic ? fmt::format(" (90 % of what {} leaves)", limit.source) : "",
          FormatByteSize(minimum_bytes), FormatByteSize(fixed.dense_bytes),
          FormatByteSize(fixed.kv_bytes), FormatByteSize(fixed.scratch_bytes),
          FormatByteSize(fixed.process_bytes), FormatByteSize(minimum * slot_memory), minimum));
    }
    slots = (plan.budget_bytes - fixed.total()) / slot_memory;
  }
  // All resident still needs the two ring slots through which a first prefill streams. 100 % means all
  // experts; a size means that many bytes and not a slot more.
  const bool whole_share = budget.kind == RamBudget::Kind::kExpertFraction && slots >= experts;
  plan.all_resident = whole_share || slots >= experts + 2;
  plan.slot_count = static_cast<uint32_t>(plan.all_resident ? experts + 2 : slots);
  return plan;
}

uint32_t ChoosePrefillChunk(uint32_t max_context, uint64_t slots_bytes,
                            const std::function<uint64_t(uint32_t tokens)>& scratch_bytes) {
  constexpr uint32_t kShortest = 512, kLongest = 2048;
  constexpr double kScratchShare = 0.04;
  const double spare_bytes = kScratchShare * static_cast<double>(slots_bytes);
  uint32_t chunk = std::min(kShortest, max_context);
  const uint64_t least_bytes = scratch_bytes(chunk);
  for (uint32_t longer = 2 * kShortest; longer <= std::min(kLongest, max_context); longer *= 2) {
    if (static_cast<double>(scratch_bytes(longer) - least_bytes) > spare_bytes) break;
    chunk = longer;
  }
  return chunk;
}

BudgetAdvice AdviseBudget(const Manifest& manifest, uint32_t top_k, const FixedMemory& fixed) {
  const uint64_t slot = SlotMemory(manifest.max_record_bytes()), experts = manifest.expert_count();
  BudgetAdvice advice;
  advice.minimum_bytes = fixed.total() + MinimumSlots(top_k) * slot;
  advice.everything_bytes = fixed.total() + (experts + 2) * slot;
  advice.recommended_bytes =
      std::max(advice.minimum_bytes, fixed.total() + (experts / 2 + 2) * slot);
  return advice;
}

}  // namespace moraine
