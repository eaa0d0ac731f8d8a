#include "engine/gpu/vram_needs.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <variant>

#include "base/bytes.h"
#include "compute/cuda/latent_attention.h"
#include "compute/encoding.h"
#include "engine/gpu/gpu_delta.h"
#include "engine/gpu/pass_layout.h"
#include "engine/gpu/recurrent_slots.h"
#include "model/blocks/mixer.h"

namespace moraine {
namespace {

uint64_t ValueBytes(KvFormat format) { return format == KvFormat::kF32 ? 4 : 2; }

// "layers.3.attention.q" is of layer 3; what is of none is of the model's beginning or end.
std::optional<uint32_t> LayerOf(std::string_view role) {
  constexpr std::string_view kPrefix = "layers.";
  if (!role.starts_with(kPrefix)) return std::nullopt;
  role.remove_prefix(kPrefix.size());
  uint32_t layer = 0;
  const auto parsed = std::from_chars(role.data(), role.data() + role.size(), layer);
  return parsed.ec == std::errc() ? std::optional(layer) : std::nullopt;
}

}  // namespace

std::vector<const DenseTensor*> DenseTensorsOf(const Manifest& manifest, const ModelConfig& config,
                                               LayerRange layers) {
  const bool first = layers.begin == 0, last = layers.end == config.layers.size();
  std::vector<const DenseTensor*> tensors;
  for (const DenseTensor& tensor : manifest.dense) {
    const std::optional<uint32_t> layer = LayerOf(tensor.name);
    const bool embeds = tensor.name == "embedding" && (first || (last && config.tied_embeddings));
    const bool ends = tensor.name != "embedding" && last;
    if (layer ? layers.contains(*layer) : embeds || ends) tensors.push_back(&tensor);
  }
  return tensors;
}

uint64_t GpuDenseWeightBytes(const std::vector<const DenseTensor*>& tensors) {
  uint64_t bytes = 0;
  for (const DenseTensor* tensor : tensors) bytes += AlignUp(tensor->bytes, kGpuTensorAlignment);
  return bytes;
}

uint64_t GpuKvPoolBytes(const GqaConfig& attention, uint32_t pages, KvFormat format) {
  return uint64_t{pages} * gpu::kKvPagePositions * attention.kv_heads *
         KvHeadBytes(format, attention.head_dim);
}

uint64_t GpuKvPoolBytes(const MlaConfig& attention, uint32_t pages, KvFormat format) {
  return pages * gpu::LatentPageElements(attention.kv_rank, attention.rope_dim) * ValueBytes(format);
}

uint64_t GpuKRowsBytes(const MlaConfig& attention, KvFormat format) {
  if (format == KvFormat::kF32) return 0;
  return MatrixBytes(Encoding::kBf16, attention.heads * attention.nope_dim, attention.kv_rank);
}

uint64_t GpuKvExpansionBytes(const ModelConfig& config, LayerRange layers, uint32_t pages,
                             KvFormat format) {
  if (format != KvFormat::kFp8) return 0;
  uint64_t pool = 0;
  for (uint32_t i = layers.begin; i < layers.end; ++i) {
    const auto* gqa = std::get_if<GqaConfig>(&config.layers[i].mixer);
    if (gqa != nullptr) pool = std::max(pool, GpuKvPoolBytes(*gqa, pages, KvFormat::kBf16));
  }
  return 2 * pool + AlignUp(pages * sizeof(uint32_t), kGpuTensorAlignment);
}

uint64_t GpuRecurrentBytes(const GatedDeltaConfig& config, uint32_t sequences) {
  return AlignUp(RecurrentSlots::SlotCount(sequences) * DeltaSlotBytes(config), 256);
}

uint64_t GpuKvBytes(const ModelConfig& config, LayerRange layers, uint32_t pages,
                    uint32_t sequences, KvFormat format) {
  uint64_t bytes = 0;
  for (uint32_t i = layers.begin; i < layers.end; ++i) {
    const MixerConfig& mixer = config.layers[i].mixer;
    if (const auto* mla = std::get_if<MlaConfig>(&mixer)) {
      bytes += GpuKvPoolBytes(*mla, pages, format);
    } else if (const auto* delta = std::get_if<GatedDeltaConfig>(&mixer)) {
      bytes += GpuRecurrentBytes(*delta, sequences);
    } else {
      bytes += 2 * GpuKvPoolBytes(std::get<GqaConfig>(mixer), pages, format);
    }
  }
  return bytes + GpuKvExpansionBytes(config, layers, pages, format);
}

std::vector<RopeConfig> GpuRopeConfigs(const ModelConfig& config, LayerRange layers) {
  std::vector<RopeConfig> found;
  for (uint32_t i = layers.begin; i < layers.end; ++i) {
    const RopeConfig* rope = RopeOf(config.layers[i].mixer);
    if (rope != nullptr && std::ranges::find(found, *rope) == found.end()) found.push_back(*rope);
  }
  return found;
}

VramNeeds CountVramNeeds(const Manifest& manifest, const ModelConfig& config,
                         const VramNeedsOptions& options) {
  const LayerRange layers = options.layers.value_or(LayerRange::All(config));
  VramNeeds needs;
  needs.dense_bytes = GpuDenseWeightBytes(DenseTensorsOf(manifest, config, layers));
  for (const RopeConfig& rope : GpuRopeConfigs(config, layers)) {
    needs.dense_bytes += uint64_t{options.max_context} * rope.rotary_dim * sizeof(float);
  }
  for (uint32_t i = layers.begin; i < layers.end; ++i) {
    if (const auto* mla = std::get_if<MlaConfig>(&config.layers[i].mixer)) {
      needs.dense_bytes += GpuKRowsBytes(*mla, options.kv_format);
    }
  }
  const uint32_t pages =
      (options.max_context + gpu::kKvPagePositions - 1) / gpu::kKvPagePositions;
  needs.kv_bytes = GpuKvBytes(config, layers, pages, options.sequences, options.kv_format);
  const bool inbox = layers.begin > 0;  // for hidden states from another GPU (gpu_link.h)
  needs.scratch_bytes = [config, pages, inbox](uint32_t chunk) {
    return PassScratchBytes(config, chunk, pages) +
           (inbox ? uint64_t{std::max(chunk, kFewTokens)} * config.hidden * sizeof(float) : 0);
  };
  for (uint32_t i = 0; i < manifest.layers.size(); ++i) {
    const LayerManifest& layer = manifest.layers[i];
    needs.layer_bytes.push_back(layers.contains(i) ? layer.expert_count * layer.record_bytes : 0);
  }
  needs.max_context = options.max_context;
  needs.hot_experts = options.hot_experts;
  needs.largest_record_bytes = manifest.max_record_bytes();
  // A float32 cache means float32 throughout, which only the way of few tokens has.
  needs.chunk = options.kv_format == KvFormat::kF32 ? kFewTokens : options.prefill_chunk;
  return needs;
}

}  // namespace moraine
