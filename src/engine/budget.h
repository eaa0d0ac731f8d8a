// Memory budgets: from what the user said, or what the machine has, to a number of slots.
//
// `--ram-budget 8GiB` bounds the whole process: dense weights, KV cache, buffers and expert slots
// together. `--ram-budget 25%` says only how many of the expert bytes may be resident. Without it,
// 90 % of what the tightest cgroup limit and free memory leave.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "memory/topology.h"
#include "store/manifest.h"

namespace moraine {

struct RamBudget {
  enum class Kind : uint8_t { kAutomatic, kBytes, kExpertFraction };
  Kind kind = Kind::kAutomatic;
  uint64_t bytes = 0;    // kBytes
  double fraction = 0;   // kExpertFraction, (0, 1]
};
// "8GiB", "25%", "auto".
Result<RamBudget> ParseRamBudget(std::string_view text);

// What is resident besides expert slots.
struct FixedMemory {
  uint64_t dense_bytes = 0, kv_bytes = 0, scratch_bytes = 0;
  // Code, allocator, catalogue, stacks: measured, see kProcessBytes in fixed_memory.cc.
  uint64_t process_bytes = 0;
  uint64_t total() const { return dense_bytes + kv_bytes + scratch_bytes + process_bytes; }
};

struct SlotPlan {
  uint32_t slot_count = 0;
  uint64_t slot_bytes = 0;
  uint64_t budget_bytes = 0;  // of the process; 0 for a fraction
  bool all_resident = false;
};

// kInvalidArgument naming the minimum budget (in the unit the user used) when it is too small.
Result<SlotPlan> PlanSlots(const Manifest& manifest, uint32_t top_k, const FixedMemory& fixed,
                           const RamBudget& budget, const MemoryLimit& limit);

// What SetRamBudget accepts, and what it was given last, as bytes of the whole process.
struct RamBudgetRange {
  uint64_t minimum_bytes = 0, current_bytes = 0, maximum_bytes = 0;
};

// How many tokens of a prompt to compute together where not all experts are resident: 512, 1024 or 2048, the
// longest whose scratch takes no more than 4 % of the slots' bytes beyond that of 512. Each chunk reads
// most of the absent experts once more: a prompt of 2048 tokens to a 30B model in 6 GB reads 20 MiB a
// token in chunks of 512, 12 in chunks of 1024. scratch_bytes(tokens): of a chunk, growing.
uint32_t ChoosePrefillChunk(uint32_t max_context, uint64_t slots_bytes,
                            const std::function<uint64_t(uint32_t tokens)>& scratch_bytes);

struct BudgetAdvice {
  uint64_t minimum_bytes = 0;      // one layer's top-k and two ring slots
  uint64_t recommended_bytes = 0;  // half of the experts
  uint64_t everything_bytes = 0;   // all experts resident
};
BudgetAdvice AdviseBudget(const Manifest& manifest, uint32_t top_k, const FixedMemory& fixed);

}  // namespace moraine
