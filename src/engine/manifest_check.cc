#include "engine/manifest_check.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/weights.h"

namespace moraine {
namespace {

Result<ExpertLayout> ReadLayout(const LayerManifest& layer, uint32_t index,
                                const ModelConfig& config) {
  const bool moe = config.layers[index].feed_forward == FeedForwardKind::kMoe;
  const uint32_t experts = moe ? config.expert_count : 0;
  const auto mismatch = [&](const char* field, uint64_t found, uint64_t expected) {
    return Corruption(fmt::format("manifest: layer {}: field '{}' is {}, expected {}", index, field,
                                  found, expected));
  };
  if (layer.expert_count != experts) return mismatch("expert_count", layer.expert_count, experts);
  if (!moe) return ExpertLayout{};
  const auto gate_up = ParseEncoding(layer.gate_up_encoding);
  const auto down = ParseEncoding(layer.down_encoding);
  if (!gate_up || !down) {
    return Unsupported(fmt::format("manifest: layer {}: encodings '{}' and '{}', this version knows "
                                   "f32, bf16, q8 and q4",
                                   index, layer.gate_up_encoding, layer.down_encoding));
  }
  if (layer.hidden != config.hidden) return mismatch("hidden", layer.hidden, config.hidden);
  const uint32_t intermediate = config.layers[index].intermediate;
  if (layer.intermediate != intermediate) {
    return mismatch("intermediate", layer.intermediate, intermediate);
  }
  const ExpertLayout layout{*gate_up, *down, layer.hidden, layer.intermediate,
                            config.expert_bias};
  if (layout.record_bytes() != layer.record_bytes) {
    return mismatch("record_bytes", layer.record_bytes, layout.record_bytes());
  }
  return layout;
}

}  // namespace

Result<std::vector<ExpertLayout>> ReadLayouts(const Manifest& manifest, const ModelConfig& config) {
  if (manifest.layers.size() != config.layers.size()) {
    return Corruption(fmt::format("manifest: {} layers, config.json calls for {}",
                                  manifest.layers.size(), config.layers.size()));
  }
  std::vector<ExpertLayout> layouts;
  for (uint32_t i = 0; i < manifest.layers.size(); ++i) {
    ASSIGN_OR_RETURN(const ExpertLayout layout, ReadLayout(manifest.layers[i], i, config));
    layouts.push_back(layout);
  }
  return layouts;
}

Status CheckDense(const Manifest& manifest, const ModelConfig& config) {
  for (const DenseRole& role : DenseRoles(config)) {
    const auto tensor = std::find_if(manifest.dense.begin(), manifest.dense.end(),
                                     [&](const DenseTensor& t) { return t.name == role.name; });
    if (tensor == manifest.dense.end()) {
      return Corruption(fmt::format("manifest: dense tensor '{}' is missing", role.name));
    }
    const auto encoding = ParseEncoding(tensor->encoding);
    const bool vector = role.kind == DenseRole::Kind::kVector;
    if (vector ? tensor->encoding != "vector" : !encoding) {
      return Unsupported(fmt::format("manifest: dense tensor '{}' is encoded as '{}'", role.name,
                                     tensor->encoding));
    }
    const uint64_t bytes = vector ? uint64_t{role.cols} * sizeof(float)
                                  : MatrixBytes(*encoding, role.rows, role.cols);
    if (tensor->rows != role.rows || tensor->cols != role.cols || tensor->bytes != bytes) {
      return Corruption(fmt::format("manifest: dense tensor '{}' is {} x {}, {} bytes; expected {} x "
                                    "{}, {} bytes",
                                    role.name, tensor->rows, tensor->cols, tensor->bytes, role.rows,
                                    role.cols, bytes));
    }
  }
  return OkStatus();
}

}  // namespace moraine
