#include "engine/gpu/gpu_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <variant>

#include "base/bytes.h"
#include "compute/encode.h"
#include "model/blocks/mixer.h"
#include "model/blocks/rope_table.h"

namespace moraine {
namespace {

std::string Prefix(uint32_t layer) { return "layers." + std::to_string(layer) + "."; }

std::vector<std::string> QkvRoles(uint32_t layer, const GqaConfig& config) {
  const std::string prefix = Prefix(layer) + "attention.";
  std::vector<std::string> roles = {prefix + "q", prefix + "k", prefix + "v"};
  if (config.output_gate) roles.push_back(prefix + "gate");
  return roles;
}
std::vector<std::string> DeltaRoles(uint32_t layer) {
  const std::string prefix = Prefix(layer) + "attention.delta_";
  return {prefix + "q", prefix + "k", prefix + "v", prefix + "z"};
}
// What reads the hidden state.
std::vector<std::string> LatentRoles(uint32_t layer, const MlaConfig& config) {
  const std::string prefix = Prefix(layer) + "attention.";
  return {prefix + (config.q_rank > 0 ? "q_a" : "q"), prefix + "kv_a"};
}
std::vector<std::string> MixerRoles(uint32_t layer, const MixerConfig& mixer) {
  if (const auto* mla = std::get_if<MlaConfig>(&mixer)) return LatentRoles(layer, *mla);
  if (std::holds_alternative<GatedDeltaConfig>(mixer)) return DeltaRoles(layer);
  return QkvRoles(layer, std::get<GqaConfig>(mixer));
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
    groups.push_back(MixerRoles(i, config.layers[i].mixer));
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
                                                     uint32_t pages, uint32_t sequences,
                                                     KvFormat kv_format) {
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
  RETURN_IF_ERROR(network->TransposeKUp(store, kv_format));
  RETURN_IF_ERROR(network->AllocateCache(config, pages, sequences, kv_format));
  RETURN_IF_ERROR(network->WriteRopeTables(config, max_context));
  return network;
}

GpuGqa GpuNetwork::MakeGqa(const GqaConfig& config, uint32_t index) const {
  const std::string attention = Prefix(index) + "attention.";
  GpuGqa gqa;
  gqa.config = config;
  gqa.qkv = dense_.Projection(QkvRoles(index, config));
  gqa.o = dense_.Matrix(attention + "o");
  const uint32_t q = gqa.q_width(), kv = gqa.kv_width();
  auto& parts = gqa.qkv_parts;
  parts[0] = {.begin = 0, .cols = q};
  parts[1] = {.begin = q, .cols = kv};
  parts[2] = {.begin = q + kv, .cols = kv};
  if (config.qkv_bias) {
    parts[0].bias = dense_.Vector(attention + "q_bias");
    parts[1].bias = dense_.Vector(attention + "k_bias");
    parts[2].bias = dense_.Vector(attention + "v_bias");
  }
  if (config.qk_norm == QkNorm::kNone) return gqa;
  const bool whole = config.qk_norm == QkNorm::kWholeRow;
  (whole ? parts[0].norm : gqa.q_norm) = dense_.Vector(attention + "q_norm");
  (whole ? parts[1].norm : gqa.k_norm) = dense_.Vector(attention + "k_norm");
  return gqa;
}

GpuMla GpuNetwork::MakeMla(const MlaConfig& config, uint32_t index) const {
  const std::string attention = Prefix(index) + "attention.";
  GpuMla mla;
  mla.config = config;
  mla.first = dense_.Projection(LatentRoles(index, config));
  if (config.q_rank > 0) {
    mla.q_a = dense_.Matrix(attention + "q_a");
    mla.q_a_norm = dense_.Vector(attention + "q_a_norm");
  }
  mla.q = dense_.Matrix(attention + (config.q_rank > 0 ? "q_b" : "q"));
  mla.kv_a = dense_.Matrix(attention + "kv_a");
  mla.kv_a_norm = dense_.Vector(attention + "kv_a_norm");
  mla.k_up = dense_.Matrix(attention + "k_up");
  mla.v_up = dense_.Matrix(attention + "v_up");
  mla.o = dense_.Matrix(attention + "o");
  return mla;
}

GpuDelta GpuNetwork::MakeDelta(const GatedDeltaConfig& config, uint32_t index) const {
  const std::string prefix = Prefix(index) + "attention.delta_";
  return {.config = config,
          .first = dense_.Projection(DeltaRoles(index)),
          .a = dense_.Matrix(prefix + "a"),
          .b = dense_.Matrix(prefix + "b"),
          .o = dense_.Matrix(prefix + "o"),
          .conv = dense_.Vector(prefix + "conv"),
          .decay_log = dense_.Vector(prefix + "decay_log"),
          .decay_bias = dense_.Vector(prefix + "decay_bias"),
          .norm = dense_.Vector(prefix + "norm")};
}

GpuLayer GpuNetwork::MakeLayer(const ModelConfig& config, const ExpertLayout& experts,
                               uint32_t index) const {
  const LayerConfig& from = config.layers[index];
  const std::string mlp = Prefix(index) + "mlp.";
  GpuLayer layer;
  layer.attention_norm = dense_.Vector(Prefix(index) + "attention.norm");
  if (const auto* mla = std::get_if<MlaConfig>(&from.mixer)) {
    layer.mixer = MakeMla(*mla, index);
  } else if (const auto* delta = std::get_if<GatedDeltaConfig>(&from.mixer)) {
    layer.mixer = MakeDelta(*delta, index);
  } else {
    layer.mixer = MakeGqa(std::get<GqaConfig>(from.mixer), index);
  }
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
    if (config.shared_expert.gated) layer.shared_gate = dense_.Matrix(mlp + "shared.router");
  }
  return layer;
}

Status GpuNetwork::AllocateCache(const ModelConfig& config, uint32_t pages, uint32_t sequences,
                                 KvFormat format) {
  const uint64_t bytes = GpuKvBytes(config, range_, pages, sequences, format);
  ASSIGN_OR_RETURN(cache_, gpu::DeviceMemory::Allocate(bytes, "KV cache"));
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  // Positions of a page that nobody has written meet weights of zero, and 0 x NaN is NaN.
  RETURN_IF_ERROR(gpu::FillBytes(cache_.data(), 0, bytes, stream.get()));
  RETURN_IF_ERROR(stream.Synchronize());
  std::byte* next = cache_.data();
  const bool f32 = format == KvFormat::kF32;
  for (GpuLayer& layer : present()) {
    if (auto* mla = std::get_if<GpuMla>(&layer.mixer)) {
      mla->cache.rank = mla->config.kv_rank;
      mla->cache.rope = mla->config.rope_dim;
      if (f32) {
        mla->cache.f32 = reinterpret_cast<float*>(next);
      } else {
        mla->cache.bf16 = reinterpret_cast<uint16_t*>(next);
      }
      next += GpuKvPoolBytes(mla->config, pages, format);
      continue;
    }
    if (auto* delta = std::get_if<GpuDelta>(&layer.mixer)) {
      delta->slots = reinterpret_cast<float*>(next);
      next += GpuRecurrentBytes(delta->config, sequences);
      continue;
    }
    auto& gqa = std::get<GpuGqa>(layer.mixer);
    const uint64_t pool = GpuKvPoolBytes(gqa.config, pages, format);
    if (f32) {
      gqa.kv.keys_f32 = reinterpret_cast<float*>(next);
      gqa.kv.values_f32 = reinterpret_cast<float*>(next + pool);
    } else if (format == KvFormat::kFp8) {
      gqa.kv.keys_fp8 = reinterpret_cast<uint8_t*>(next);
      gqa.kv.values_fp8 = reinterpret_cast<uint8_t*>(next + pool);
    } else {
      gqa.kv.keys = reinterpret_cast<uint16_t*>(next);
      gqa.kv.values = reinterpret_cast<uint16_t*>(next + pool);
    }
    gqa.kv.kv_heads = gqa.config.kv_heads;
    gqa.kv.head_dim = gqa.config.head_dim;
    next += 2 * pool;
  }
  if (format == KvFormat::kFp8) {
    const uint64_t table = AlignUp(pages * sizeof(uint32_t), kGpuTensorAlignment);
    expansion_.block_table = reinterpret_cast<uint32_t*>(next);
    expansion_.keys = reinterpret_cast<uint16_t*>(next + table);
    expansion_.values =
        expansion_.keys + (cache_.data() + bytes - next - table) / (2 * sizeof(uint16_t));
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
      std::visit(
          [&](auto& mixer) {
            if constexpr (requires { mixer.cos; }) {
              if (mixer.config.rope != rope) return;
              mixer.cos = device + (next - host.data());
              mixer.sin = mixer.cos + count;
            }
          },
          layer.mixer);
    }
    next += 2 * count;
  }
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  RETURN_IF_ERROR(gpu::Copy(rope_.data(), host.data(), floats * sizeof(float), stream.get()));
  return stream.Synchronize();
}

namespace {

// Head by head: k_up is kv_rank x nope_dim, padded to whole panels.
Status Transpose(const MatrixView& k_up, const MlaConfig& config, const MatrixView& k_rows) {
  const uint32_t rank = config.kv_rank, nope = config.nope_dim;
  std::vector<float> row(nope), rows(size_t{nope} * rank);
  for (uint32_t head = 0; head < config.heads; ++head) {
    for (uint32_t r = 0; r < rank; ++r) {
      DecodeRow(k_up, head * PanelCount(rank) * kTileRows + r, row.data());
      for (uint32_t d = 0; d < nope; ++d) rows[size_t{d} * rank + r] = row[d];
    }
    RETURN_IF_ERROR(EncodeRows(k_rows, head * nope, nope, rows.data()));
  }
  return OkStatus();
}

}  // namespace

Status GpuNetwork::TransposeKUp(const Store& store, KvFormat format) {
  uint64_t bytes = 0;
  for (const GpuLayer& layer : present()) {
    const auto* mla = std::get_if<GpuMla>(&layer.mixer);
    if (mla != nullptr) bytes += GpuKRowsBytes(mla->config, format);
  }
  if (bytes == 0) return OkStatus();
  ASSIGN_OR_RETURN(k_rows_, gpu::DeviceMemory::Allocate(bytes, "transposed k_up"));
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  std::byte* next = k_rows_.data();
  for (uint32_t i = range_.begin; i < range_.end; ++i) {
    auto* mla = std::get_if<GpuMla>(&layers_[i].mixer);
    if (mla == nullptr) continue;
    const DenseTensor& tensor = dense_.Tensor(Prefix(i) + "attention.k_up");
    std::vector<std::byte> k_up(tensor.bytes), k_rows(GpuKRowsBytes(mla->config, format));
    RETURN_IF_ERROR(store.ReadDense(tensor, k_up));
    mla->k_rows = {next, Encoding::kBf16, mla->config.heads * mla->config.nope_dim,
                   mla->config.kv_rank};
    RETURN_IF_ERROR(Transpose(
        MatrixView::Plain(k_up.data(), mla->k_up.encoding, mla->k_up.rows, mla->k_up.cols),
        mla->config,
        MatrixView::Plain(k_rows.data(), Encoding::kBf16, mla->k_rows.rows, mla->k_rows.cols)));
    RETURN_IF_ERROR(gpu::Copy(next, k_rows.data(), k_rows.size(), stream.get()));
    RETURN_IF_ERROR(stream.Synchronize());
    next += k_rows.size();
  }
  return OkStatus();
}

}  // namespace moraine
