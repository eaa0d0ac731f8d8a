// What lies in VRAM under a budget: dense weights, cache and scratch always; of the experts all, or the
// layers that fit ("anchored") beside a ring through which prefill streams the others, layer by layer.
//
// Whole layers, because prefill reads all experts of a layer anyway, one copy of 300 MB runs at the link's
// speed, and one event orders it against compute. Anchored layers lie evenly among the streamed ones:
// while they are computed, the link runs ahead, and it is never further behind than the ring is long.
//
// Single experts ("hot slots") instead of whole layers where answers are computed on GPU and CPU together
// (host_experts.h): a token wants some experts of every layer, and of those a few are wanted again and
// again. Each slot holds the largest record. Prompts stream all layers then, but for what is in a slot
// already. Who is in which slot is decided elsewhere. A model that fits as a whole has no slots.
//
// Pure functions: the CPU-only build has and tests them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine {

struct VramNeeds {
  uint64_t dense_bytes = 0, kv_bytes = 0;
  std::function<uint64_t(uint32_t chunk)> scratch_bytes;  // growing
  std::vector<uint64_t> layer_bytes;  // of each layer's experts; 0: none
  uint32_t chunk = 0;                 // tokens prefilled together; 0: to be chosen
  uint32_t max_context = 0;
  bool hot_experts = false;            // slots of single experts instead of layers that stay
  uint64_t largest_record_bytes = 0;   // with hot_experts
};

struct VramPlan {
  uint64_t budget_bytes = 0;
  uint64_t dense_bytes = 0, kv_bytes = 0, scratch_bytes = 0;
  uint64_t anchored_bytes = 0;  // experts that stay
  uint64_t ring_bytes = 0;      // slots that streamed layers take turns in, each of the largest layer
  uint64_t streamed_bytes = 0;  // in page-locked DRAM
  uint64_t hot_slot_bytes = 0;  // of a slot of a single expert
  uint64_t hot_bytes = 0;       // of all of them
  uint32_t chunk = 0;
  uint32_t ring_slots = 0;
  uint32_t anchored_layers = 0, streamed_layers = 0;
  uint32_t hot_slots = 0;  // may be 0 under a small budget
  std::vector<bool> anchored;  // by layer; true for those without experts

  uint64_t total_bytes() const {
    return dense_bytes + kv_bytes + scratch_bytes + anchored_bytes + ring_bytes + hot_bytes;
  }
  std::string ToText() const;  // one line for people
};

// What slots begin at: of a GPU's memory, where copies and 16-byte loads are at their best.
inline constexpr uint64_t kHotSlotAlignment = 256;

// Two slots: one is read while the other is written. A third would only help where layers differ.
inline constexpr uint32_t kRingSlots = 2;

// kResourceExhausted naming the parts and their bytes if not even streaming fits.
Result<VramPlan> PlanVram(const VramNeeds& needs, uint64_t budget_bytes);

// "16GiB", "auto" (0).
Result<uint64_t> ParseVramBudget(const std::string& text);

}  // namespace moraine
