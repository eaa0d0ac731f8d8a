// How much VRAM a model needs for what: what PlanVram (vram_plan.h) divides a budget by.
//
// Pure functions, in every build: `moraine plan` asks before there is a GPU. Models that gpu_support.h accepts
// only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compute/kv_format.h"
#include "engine/gpu/vram_plan.h"
#include "model/config.h"
#include "store/manifest.h"

namespace moraine {

inline constexpr uint64_t kGpuTensorAlignment = 256;

// Layers begin .. end - 1 of a model: what one GPU of several has.
struct LayerRange {
  uint32_t begin = 0, end = 0;

  static LayerRange All(const ModelConfig& config) {
    return {0, static_cast<uint32_t>(config.layers.size())};
  }
  bool contains(uint32_t layer) const { return begin <= layer && layer < end; }
  uint32_t count() const { return end - begin; }
};

struct VramNeedsOptions {
  uint32_t max_context = 0;    // positions of the whole cache
  uint32_t prefill_chunk = 0;  // 0: chosen by the budget
  KvFormat kv_format = KvFormat::kBf16;
  uint32_t sequences = 1;    // that recurrent state is kept of
  bool hot_experts = false;  // answers on GPU and CPU together: VramNeeds::hot_experts
  std::optional<LayerRange> layers = std::nullopt;  // that are computed there; none: all
};

VramNeeds CountVramNeeds(const Manifest& manifest, const ModelConfig& config,
                         const VramNeedsOptions& options);

// Dense tensors that computing these layers takes: with the first one the embedding, with the last one the final
// norm and the output matrix (which is the embedding where they are tied).
std::vector<const DenseTensor*> DenseTensorsOf(const Manifest& manifest, const ModelConfig& config,
                                               LayerRange layers);
uint64_t GpuDenseWeightBytes(const std::vector<const DenseTensor*>& tensors);
// These layers' keys and values, and what prompts over fp8 need beside them; with the recurrent state of so many
// sequences.
uint64_t GpuKvBytes(const ModelConfig& config, LayerRange layers, uint32_t pages,
                    uint32_t sequences, KvFormat format);
// Of a layer of linear attention; a multiple of 256.
uint64_t GpuRecurrentBytes(const GatedDeltaConfig& config, uint32_t sequences);
// Of a layer's keys, or of its values; or of its latents.
uint64_t GpuKvPoolBytes(const GqaConfig& attention, uint32_t pages, KvFormat format);
uint64_t GpuKvPoolBytes(const MlaConfig& attention, uint32_t pages, KvFormat format);
// Of k_up transposed (gpu_mla.h): none in float32, where prompts go by few tokens.
uint64_t GpuKRowsBytes(const MlaConfig& attention, KvFormat format);
// Keys and values of one of these layers in bf16, of all pages, and a block table (gpu::ExpandKv); 0 if the cache
// is not in fp8.
uint64_t GpuKvExpansionBytes(const ModelConfig& config, LayerRange layers, uint32_t pages,
                             KvFormat format);
// The different ones: each has tables of cosines and sines.
std::vector<RopeConfig> GpuRopeConfigs(const ModelConfig& config, LayerRange layers);

}  // namespace moraine
