// GpuNetwork: everything of a model, or of a range of its layers, in VRAM that is there from start to end but
// for experts and scratch: dense weights, tables of cosines and sines, the pages of the KV cache.
//
// Each layer has a pool of the same number of pages (compute/cuda/gpu_attention.h). Which pages a sequence
// has is the caller's business: a page number means the same in all layers.
//
// Threads: owned by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/status.h"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/projection_rows.h"
#include "compute/cuda/routing.h"
#include "compute/encoding.h"
#include "compute/kv_format.h"
#include "engine/gpu/gpu_delta.h"
#include "engine/gpu/gpu_dense.h"
#include "engine/gpu/gpu_mla.h"
#include "engine/gpu/vram_needs.h"
#include "memory/cuda/gpu_runtime.h"
#include "model/config.h"
#include "store/store.h"

namespace moraine {

// Grouped-query attention of one layer.
struct GpuGqa {
  GqaConfig config;
  GpuProjection qkv;
  gpu::ProjectionRows::Part qkv_parts[3];  // empty where the rows are taken as they come
  gpu::DeviceMatrix o;
  const float *q_norm = nullptr, *k_norm = nullptr;
  const float *cos = nullptr, *sin = nullptr;  // of all positions
  gpu::PagedKv kv;  // without block tables

  uint32_t q_width() const { return config.query_heads * config.head_dim; }
  uint32_t kv_width() const { return config.kv_heads * config.head_dim; }
  uint32_t gate_offset() const { return q_width() + 2 * kv_width(); }  // in a row of qkv
  bool changes_projections() const {
    return !qkv_parts[0].empty() || !qkv_parts[1].empty() || !qkv_parts[2].empty();
  }
};

struct GpuLayer {
  const float* attention_norm = nullptr;  // before the mixer
  std::variant<GpuGqa, GpuMla, GpuDelta> mixer;
  const float* feed_forward_norm = nullptr;
  bool moe = false;
  uint32_t intermediate = 0;
  gpu::DeviceMatrix router;  // of a MoE layer
  const float* router_bias = nullptr;
  gpu::ExpertSelection selection;
  ExpertLayout experts;
  GpuProjection shared_gate_up;  // without rows: there is no shared expert
  gpu::DeviceMatrix shared_down;
  gpu::DeviceMatrix shared_gate;  // one row; without: the shared expert is not gated
  GpuProjection gate_up;  // of a dense layer
  gpu::DeviceMatrix down;
};

class GpuNetwork {
 public:
  static Result<std::unique_ptr<GpuNetwork>> Load(const Store& store, const ModelConfig& config,
                                                  std::span<const ExpertLayout> layouts,
                                                  LayerRange range, uint32_t max_context,
                                                  uint32_t pages, uint32_t sequences,
                                                  KvFormat kv_format);

  LayerRange range() const { return range_; }
  bool embeds() const { return range_.begin == 0; }
  bool has_output() const { return range_.end == layers_.size(); }
  // By the model's index; empty outside range().
  const std::vector<GpuLayer>& layers() const { return layers_; }
  const gpu::DeviceMatrix& embedding() const { return embedding_; }  // if it embeds()
  const gpu::DeviceMatrix& output() const { return output_; }        // if it has_output()
  const float* final_norm() const { return final_norm_; }
  // Of a cache in fp8: a sequence's pages in bf16, of one layer at a time; without pages if the cache is another.
  const gpu::KvExpansion& expansion() const { return expansion_; }

 private:
  GpuNetwork() = default;
  std::span<GpuLayer> present() { return std::span(layers_).subspan(range_.begin, range_.count()); }
  GpuGqa MakeGqa(const GqaConfig& config, uint32_t index) const;
  GpuDelta MakeDelta(const GatedDeltaConfig& config, uint32_t index) const;
  GpuMla MakeMla(const MlaConfig& config, uint32_t index) const;
  // GpuMla::k_rows.
  Status TransposeKUp(const Store& store, KvFormat format);
  GpuLayer MakeLayer(const ModelConfig& config, const ExpertLayout& experts, uint32_t index) const;
  Status AllocateCache(const ModelConfig& config, uint32_t pages, uint32_t sequences,
                       KvFormat format);
  Status WriteRopeTables(const ModelConfig& config, uint32_t max_context);

  GpuDense dense_;
  gpu::DeviceMemory cache_, rope_, k_rows_;
  gpu::KvExpansion expansion_;
  LayerRange range_;
  std::vector<GpuLayer> layers_;
  gpu::DeviceMatrix embedding_, output_;
  const float* final_norm_ = nullptr;
};

}  // namespace moraine
