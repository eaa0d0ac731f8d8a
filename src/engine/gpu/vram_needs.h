// How much VRAM a model needs for what: what PlanVram (vram_plan.h) divides a budget by.
//
// Pure functions, in every build: `moraine plan` asks before there is a GPU. Models that gpu_support.h accepts
// only.
#pragma once

#include <cstdint>
#include <vector>

#include "compute/kv_format.h"
#include "engine/gpu/vram_plan.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

inline constexpr uint64_t kGpuTensorAlignment = 256;

struct VramNeedsOptions {
  uint32_t max_context = 0;    // positions of the whole cache
  uint32_t prefill_chunk = 0;  // 0: chosen by the budget
  KvFormat kv_format = KvFormat::kBf16;
  bool hot_experts = false;  // answers on GPU and CPU together: VramNeeds::hot_experts
};

VramNeeds CountVramNeeds(const Manifest& manifest, const ModelConfig& config,
                         const VramNeedsOptions& options);

uint64_t GpuDenseWeightBytes(const Manifest& manifest);
uint64_t GpuKvBytes(const ModelConfig& config, uint32_t pages, KvFormat format);
// Of a layer's keys, or of its values.
uint64_t GpuKvPoolBytes(const GqaConfig& attention, uint32_t pages, KvFormat format);
// The different ones: each has tables of cosines and sines.
std::vector<RopeConfig> GpuRopeConfigs(const ModelConfig& config);

}  // namespace moraine
