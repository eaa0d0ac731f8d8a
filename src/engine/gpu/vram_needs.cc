#include "engine/gpu/vram_needs.h"

#include <algorithm>
#include <variant>

#include "base/bytes.h"
#include "compute/cuda/gpu_attention.h"
#include "engine/gpu/pass_layout.h"

namespace moraine {
namespace {

const GqaConfig& AttentionOf(const LayerConfig& layer) { return std::get<GqaConfig>(layer.mixer); }

}  // namespace

uint64_t GpuDenseWeightBytes(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const DenseTensor& tensor : manifest.dense) {
    bytes += AlignUp(tensor.bytes, kGpuTensorAlignment);
  }
  return bytes;
}

uint64_t GpuKvPoolBytes(const GqaConfig& attention, uint32_t pages, KvFormat format) {
  return pages * gpu::KvPageElements(attention.kv_heads, attention.head_dim) *
         (format == KvFormat::kF32 ? 4 : 2);
}

uint64_t GpuKvBytes(const ModelConfig& config, uint32_t pages, KvFormat format) {
  uint64_t bytes = 0;
  for (const LayerConfig& layer : config.layers) {
    bytes += 2 * GpuKvPoolBytes(AttentionOf(layer), pages, format);
  }
  return bytes;
}

std::vector<RopeConfig> GpuRopeConfigs(const ModelConfig& config) {
  std::vector<RopeConfig> found;
  for (const LayerConfig& layer : config.layers) {
    const RopeConfig& rope = AttentionOf(layer).rope;
    if (std::ranges::find(found, rope) == found.end()) found.push_back(rope);
  }
  return found;
}

VramNeeds CountVramNeeds(const Manifest& manifest, const ModelConfig& config,
                         const VramNeedsOptions& options) {
  VramNeeds needs;
  needs.dense_bytes = GpuDenseWeightBytes(manifest);
  for (const RopeConfig& rope : GpuRopeConfigs(config)) {
    needs.dense_bytes += uint64_t{options.max_context} * rope.rotary_dim * sizeof(float);
  }
  const uint32_t pages =
      (options.max_context + gpu::kKvPagePositions - 1) / gpu::kKvPagePositions;
  needs.kv_bytes = GpuKvBytes(config, pages, options.kv_format);
  needs.scratch_bytes = [config, pages](uint32_t chunk) {
    return PassScratchBytes(config, chunk, pages);
  };
  for (const LayerManifest& layer : manifest.layers) {
    needs.layer_bytes.push_back(layer.expert_count * layer.record_bytes);
  }
  needs.max_context = options.max_context;
  needs.hot_experts = options.hot_experts;
  needs.largest_record_bytes = manifest.max_record_bytes();
  // A float32 cache means float32 throughout, which only the way of few tokens has.
  needs.chunk = options.kv_format == KvFormat::kF32 ? kFewTokens : options.prefill_chunk;
  return needs;
}

}  // namespace moraine
