#include "engine/gpu/gpu_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <variant>

#include "model/blocks/rope_table.h"

namespace moraine {
namespace {

const GqaConfig& AttentionOf(const LayerConfig& layer) { return std::get<GqaConfig>(layer.mixer); }

std::string Prefix(uint32_t layer) { return "layers." + std::to_string(layer) + "."; }

std::vector<std::string> QkvRoles(uint32_t layer) {
  const std::string prefix = Prefix(layer) + "attention.";
  return {prefix + "q", prefix + "k", prefix + "v"};
}
std::vector<std::string> GateUpRoles(uint32_t layer) {
  return {Prefix(layer) + "mlp.gate", Prefix(layer) + "mlp.up"};
}

std::vector<std::string> SharedGateUpRoles(uint32_t layer) {
  return {Prefix(layer) + "mlp.shared.gate", Prefix(layer) + "mlp.shared.up"};
}

std::vector<std::vector<std::string>> Groups(const ModelConfig& config, LayerRange range) {
  std::vector<std::vector<std::string>> groups;
  for (uint32_t i = range.begin; i < range.end; ++i) {
    groups.push_back(QkvRoles(i));
    if (config.layers[i].feed_forward == FeedForwardKind::kDense) {
      groups.push_back(GateUpRoles(i));
    } else if (config.shared_expert.intermediate > 0) {
      groups.push_back(SharedGateUpRoles(i));
    }
  }
  return groups;
}

gpu::ExpertScoring ScoringOf(Scoring scoring) {
  switch (scoring) {
    case Scoring::kSoftmax: return gpu::ExpertScoring::kSoftmax;
    case Scoring::kSigmoid: return gpu::ExpertScoring::kSigmoid;
    case Scoring::kSoftmaxOfChosen: return gpu::ExpertScoring::kSoftmaxOfChosen;
  }
  return gpu::ExpertScoring::kSoftmax;
}

}  // namespace

Result<std::unique_ptr<GpuNetwork>> GpuNetwork::Load(const Store& store, const ModelConfig& config,
                                                     std::span<const ExpertLayout> layouts,
                                                     LayerRange range, uint32_t max_context,
                                                     uint32_t pages, KvFormat kv_format) {
  std::unique_ptr<GpuNetwork> network(new GpuNetwork());
  network->range_ = range;
  network->layers_.resize(config.layers.size());
  ASSIGN_OR_RETURN(network->dense_,
                   GpuDense::Load(store, DenseTensorsOf(store.manifest(), config, range),
                                  Groups(config, range)));
  const GpuDense& dense = network->dense_;
  if (network->embeds()) network->embedding_ = dense.Matrix("embedding");
  if (network->has_output()) {
    network->output_ = dense.Matrix(config.tied_embeddings ? "embedding" : "output");
    network->final_norm_ = dense.Vector("norm");
  }
  for (uint32_t i = range.begin; i < range.end; ++i) {
    network->layers_[i] = network->MakeLayer(config, layouts[i], i);
  }
  RETURN_IF_ERROR(network->AllocateCache(config, pages, kv_format));
  RETURN_IF_ERROR(network->WriteRopeTables(config, max_context));
  return network;
}

void GpuNetwork::AddAttention(uint32_t index, GpuLayer* layer) const {
  const std::string attention = Prefix(index) + "attention.";
  const GqaConfig& config = layer->attention;
  layer->qkv = dense_.Projection(QkvRoles(index));
  layer->o = dense_.Matrix(attention + "o");
  layer->attention_norm = dense_.Vector(attention + "norm");
  const uint32_t q = layer->q_width(), kv = layer->kv_width();
  auto& parts = layer->qkv_parts;
  parts[0] = {.begin = 0, .cols = q};
  parts[1] = {.begin = q, .cols = kv};
  parts[2] = {.begin = q + kv, .cols = kv};
  if (config.qkv_bias) {
    parts[0].bias = dense_.Vector(attention + "q_bias");
    parts[1].bias = dense_.Vector(attention + "k_bias");
    parts[2].bias = dense_.Vector(attention + "v_bias");
  }
  if (config.qk_norm == QkNorm::kNone) return;
  const bool whole = config.qk_norm == QkNorm::kWholeRow;
  (whole ? parts[0].norm : layer->q_norm) = dense_.Vector(attention + "q_norm");
  (whole ? parts[1].norm : layer->k_norm) = dense_.Vector(attention + "k_norm");
}

GpuLayer GpuNetwork::MakeLayer(const ModelConfig& config, const ExpertLayout& experts,
                               uint32_t index) const {
  const LayerConfig& from = config.layers[index];
  const std::string mlp = Prefix(index) + "mlp.";
  GpuLayer layer;
  layer.attention = AttentionOf(from);
  AddAttention(index, &layer);
  layer.feed_forward_norm = dense_.Vector(mlp + "norm");
  layer.moe = from.feed_forward == FeedForwardKind::kMoe;
  layer.intermediate = from.intermediate;
  if (!layer.moe) {
    layer.gate_up = dense_.Projection(GateUpRoles(index));
    layer.down = dense_.Matrix(mlp + "down");
    return layer;
  }
  layer.experts = experts;
  layer.router = dense_.Matrix(mlp + "router");
  if (config.router.bias) layer.router_bias = dense_.Vector(mlp + "router_bias");
  layer.selection = {.scoring = ScoringOf(config.router.scoring),
                     .correction = config.router.correction_bias
                                       ? dense_.Vector(mlp + "correction_bias")
                                       : nullptr,
                     .group_count = config.router.group_count,
                     .chosen_groups = config.router.chosen_groups,
                     .two_best_of_group = config.router.group_score == GroupScore::kTwoBest,
                     .normalize = config.router.normalize,
                     .normalize_epsilon = config.router.normalize_epsilon,
                     .scale = config.router.scale};
  if (config.shared_expert.intermediate > 0) {
    layer.shared_gate_up = dense_.Projection(SharedGateUpRoles(index));
    layer.shared_down = dense_.Matrix(mlp + "shared.down");
  }
  return layer;
}

Status GpuNetwork::AllocateCache(const ModelConfig& config, uint32_t pages, KvFormat format) {
  const uint64_t bytes = GpuKvBytes(config, range_, pages, format);
  ASSIGN_OR_RETURN(cache_, gpu::DeviceMemory::Allocate(bytes, "KV cache"));
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  // Positions of a page that nobody has written meet weights of zero, and 0 x NaN is NaN.
  RETURN_IF_ERROR(gpu::FillBytes(cache_.data(), 0, bytes, stream.get()));
  RETURN_IF_ERROR(stream.Synchronize());
  std::byte* next = cache_.data();
  for (GpuLayer& layer : present()) {
    const uint64_t pool = GpuKvPoolBytes(layer.attention, pages, format);
    if (format == KvFormat::kF32) {
      layer.kv.keys_f32 = reinterpret_cast<float*>(next);
      layer.kv.values_f32 = reinterpret_cast<float*>(next + pool);
    } else {
      layer.kv.keys = reinterpret_cast<uint16_t*>(next);
      layer.kv.values = reinterpret_cast<uint16_t*>(next + pool);
    }
    layer.kv.kv_heads = layer.attention.kv_heads;
    layer.kv.head_dim = layer.attention.head_dim;
    next += 2 * pool;
  }
  return OkStatus();
}

// The CPU's own cosines and sines, so that both paths turn by the same angles.
Status GpuNetwork::WriteRopeTables(const ModelConfig& config, uint32_t max_context) {
  const std::vector<RopeConfig> configs = GpuRopeConfigs(config, range_);
  uint64_t floats = 0;
  for (const RopeConfig& rope : configs) floats += uint64_t{max_context} * rope.rotary_dim;
  ASSIGN_OR_RETURN(rope_, gpu::DeviceMemory::Allocate(floats * sizeof(float), "tables for RoPE"));
  std::vector<float> host(floats);
  float* next = host.data();
  const auto* const device = reinterpret_cast<const float*>(rope_.data());
  for (const RopeConfig& rope : configs) {
    const std::vector<float> frequencies = InverseFrequencies(rope);
    const float factor = rope.yarn ? rope.yarn->attention_factor : 1.0f;
    const size_t half = frequencies.size(), count = size_t{max_context} * half;
    for (size_t at = 0; at < count; ++at) {
      const float angle = static_cast<float>(at / half) * frequencies[at % half];
      next[at] = std::cos(angle) * factor;
      next[count + at] = std::sin(angle) * factor;
    }
    for (GpuLayer& layer : present()) {
      if (layer.attention.rope != rope) continue;
      layer.cos = device + (next - host.data());
      layer.sin = layer.cos + count;
    }
    next += 2 * count;
  }
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  RETURN_IF_ERROR(gpu::Copy(rope_.data(), host.data(), floats * sizeof(float), stream.get()));
  return stream.Synchronize();
}

}  // namespace moraine
