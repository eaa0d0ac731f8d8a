#include "engine/gpu/pass_layout.h"

#include <algorithm>
#include <variant>

#include "base/bytes.h"
#include "compute/cuda/gpu_attention.h"
#include "compute/cuda/grouped_gemm.h"
#include "engine/gpu/gpu_delta.h"
#include "compute/cuda/latent_attention.h"

namespace moraine {
namespace {

// Logits that are computed at a time when all positions are asked for.
constexpr uint64_t kLogitBytes = 32 * kMiB;
constexpr uint32_t kMostLogitRows = 64;
// Keys and values of a prompt's heads, as many at a time as these bytes hold, one at least: 64 heads of DeepSeek's
// at 8192 positions, and with 64 tiles of tokens each head is half a wave of blocks already.
constexpr uint64_t kKeyAndValueBytes = 256 * kMiB;

// Hands out parts of one block of memory; counts only, if there is none.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  template <typename T>
  T* Take(uint64_t count) {
    std::byte* const at = base_ + offset_;
    offset_ = AlignUp(offset_ + count * sizeof(T), 256);
    highest_ = std::max(highest_, offset_);
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(at);
  }
  uint64_t mark() const { return offset_; }
  void Rewind(uint64_t mark) { offset_ = mark; }
  uint64_t highest() const { return highest_; }

 private:
  std::byte* base_;
  uint64_t offset_ = 0, highest_ = 0;
};

// The widest of any layer.
struct Widths {
  uint32_t q = 0, qkv = 0, head_dim = 0, query_heads = 0, dense = 0, expert = 0;
  MlaConfig mla;  // each field the largest
  uint32_t delta_first = 0, delta_channels = 0, delta_values = 0, delta_heads = 0;

  explicit Widths(const ModelConfig& config) {
    for (const LayerConfig& layer : config.layers) {
      std::visit([this](const auto& mixer) { Add(mixer); }, layer.mixer);
      const bool is_dense = layer.feed_forward == FeedForwardKind::kDense;
      uint32_t& width = is_dense ? dense : expert;
      width = std::max(width, layer.intermediate);
    }
  }

 private:
  void Add(const GqaConfig& c) {
    q = std::max(q, c.query_heads * c.head_dim);
    const uint32_t heads = (c.output_gate ? 2 : 1) * c.query_heads + 2 * c.kv_heads;
    qkv = std::max(qkv, heads * c.head_dim);
    head_dim = std::max(head_dim, c.head_dim);
    query_heads = std::max(query_heads, c.query_heads);
  }
  void Add(const MlaConfig& c) {
    for (const auto field : {&MlaConfig::heads, &MlaConfig::q_rank, &MlaConfig::kv_rank,
                             &MlaConfig::nope_dim, &MlaConfig::rope_dim, &MlaConfig::value_dim}) {
      mla.*field = std::max(mla.*field, c.*field);
    }
  }
  void Add(const GatedDeltaConfig& c) {
    const gpu::DeltaShape shape = DeltaShapeOf(c);
    delta_first = std::max(delta_first, shape.channels() + shape.values());
    delta_channels = std::max(delta_channels, shape.channels());
    delta_values = std::max(delta_values, shape.values());
    delta_heads = std::max(delta_heads, c.value_heads);
  }
};

void LayOutFewLatent(const MlaConfig& c, Carver& carver, LatentScratch* s) {
  if (c.heads == 0) return;
  const uint64_t few = kFewTokens, width = c.kv_rank + c.rope_dim;
  const uint64_t queries = uint64_t{c.heads} * (c.nope_dim + c.rope_dim);
  s->first = carver.Take<float>(few * (std::max<uint64_t>(c.q_rank, queries) + width));
  s->queries = carver.Take<float>(few * queries);
  s->absorbed = carver.Take<float>(few * c.heads * width);
  s->attended = carver.Take<float>(few * c.heads * c.kv_rank);
  s->values = carver.Take<float>(few * c.heads * c.value_dim);
  s->runs = carver.Take<std::byte>(gpu::LatentDecodeScratchBytes(kFewTokens, c.heads, c.kv_rank));
}

void LayOutDelta(const Widths& widths, uint64_t n, Carver& carver, DeltaScratch* s) {
  const uint64_t rows = std::min<uint64_t>(n, kDeltaRows);
  s->a = carver.Take<float>(n * widths.delta_heads);
  s->b = carver.Take<float>(n * widths.delta_heads);
  s->mixed = carver.Take<float>(rows * widths.delta_channels);
  s->values = carver.Take<float>(rows * widths.delta_values);
}

// n: tokens; positions: of the longest sequence.
void LayOutManyLatent(const MlaConfig& c, uint64_t n, uint64_t positions, Carver& carver,
                      LatentScratch* s) {
  if (c.heads == 0) return;
  s->latent_rows = carver.Take<float>(n * gpu::RowStride(c.kv_rank + c.rope_dim));
  s->q_low = carver.Take<float>(n * gpu::RowStride(c.q_rank));
  s->q_operand = carver.Take<uint16_t>(n * gpu::OperandStride(c.q_rank));
  s->query_rows = carver.Take<uint16_t>(n * c.heads * (c.nope_dim + c.rope_dim));
  s->latent_operand = carver.Take<uint16_t>(positions * gpu::OperandStride(c.kv_rank));
  const uint64_t of_head = positions * (c.nope_dim + c.value_dim);
  const uint64_t heads = std::clamp<uint64_t>(kKeyAndValueBytes / 2 / of_head, 1, c.heads);
  s->key_and_value_elements = heads * of_head;
  s->keys_and_values = carver.Take<uint16_t>(s->key_and_value_elements);
}

}  // namespace

uint32_t LogitRowsOfPass(const ModelConfig& config, uint32_t max_tokens) {
  const auto fitting = static_cast<uint32_t>(kLogitBytes / (sizeof(float) * config.vocab_size));
  return std::min(std::clamp(fitting, kFewTokens, kMostLogitRows),
                  std::max(max_tokens, kFewTokens));
}

uint64_t LayOutPass(const ModelConfig& c, uint32_t max_tokens, uint32_t table_blocks,
                    std::byte* base, PassScratch* s) {
  const Widths widths(c);
  const uint64_t n = std::max(max_tokens, kFewTokens), few = kFewTokens, ranked = n * c.top_k;
  Carver carver(base);
  s->tokens = carver.Take<int32_t>(n);
  s->positions = carver.Take<uint32_t>(few);
  s->tables = carver.Take<uint32_t>(few * table_blocks);
  s->hidden = carver.Take<float>(n * c.hidden);
  s->logits = carver.Take<float>(uint64_t{LogitRowsOfPass(c, max_tokens)} * c.vocab_size);
  s->router_logits = carver.Take<float>(n * c.expert_count);
  s->experts = carver.Take<uint32_t>(ranked);
  s->weights = carver.Take<float>(ranked);
  s->counter = carver.Take<uint32_t>(1);
  s->attention_bytes = gpu::DecodeAttentionScratchBytes(kFewTokens, widths.query_heads, widths.head_dim);
  s->attention = carver.Take<std::byte>(s->attention_bytes);

  s->segments = carver.Take<gpu::DeltaSegment>(few);
  s->shared_gates = carver.Take<float>(c.shared_expert.gated ? n : 0);

  const uint64_t common = carver.mark();
  if (widths.delta_heads > 0) {
    s->few_delta.first = carver.Take<float>(few * widths.delta_first);
    s->few_delta.gated = carver.Take<float>(few * widths.delta_values);
    LayOutDelta(widths, few, carver, &s->few_delta);
  }
  s->qkv = carver.Take<float>(few * widths.qkv);
  s->queries = carver.Take<float>(few * widths.q);
  s->attended = carver.Take<float>(few * widths.q);
  LayOutFewLatent(widths.mla, carver, &s->latent);
  const uint32_t shared = c.shared_expert.intermediate;
  s->gate_up = carver.Take<float>(few * 2 * std::max(widths.dense, shared));
  s->shared_activated = carver.Take<float>(few * shared);
  s->activated = carver.Take<float>(
      few * std::max<uint64_t>(c.top_k * gpu::ActivatedStride(widths.expert), widths.dense));
  if (max_tokens <= kFewTokens) return carver.highest();

  carver.Rewind(common);
  s->delta = carver.Take<float>(n * c.hidden);
  s->normed = carver.Take<uint16_t>(n * gpu::OperandStride(c.hidden));
  const uint64_t phase = carver.mark();
  s->qkv_rows = carver.Take<uint16_t>(n * std::max(widths.qkv, 2 * widths.dense));
  s->query_rows = carver.Take<uint16_t>(n * widths.q);
  s->attended_rows = carver.Take<uint16_t>(
      n * gpu::OperandStride(std::max(
              {widths.q, widths.dense, widths.mla.heads * widths.mla.value_dim,
               widths.delta_values})));
  if (widths.delta_heads > 0) {
    s->many_delta.first_rows = carver.Take<uint16_t>(n * widths.delta_first);
    LayOutDelta(widths, n, carver, &s->many_delta);
  }
  LayOutManyLatent(widths.mla, n, uint64_t{table_blocks} * gpu::kKvPagePositions, carver,
                   &s->latent);
  carver.Rewind(phase);
  s->offsets = carver.Take<uint32_t>(c.expert_count + 1);
  s->token_rows = carver.Take<uint32_t>(ranked);
  s->rows_of_ranks = carver.Take<uint32_t>(ranked);
  // Rows gathered for gate and up, then down's: the former have been read when the latter are written.
  s->expert_rows = carver.Take<uint16_t>(
      ranked * std::max(gpu::OperandStride(c.hidden), gpu::RowStride(c.hidden)));
  s->expert_activated = carver.Take<uint16_t>(ranked * gpu::OperandStride(widths.expert));
  if (shared == 0) return carver.highest();
  s->shared_operand = carver.Take<uint16_t>(n * gpu::OperandStride(c.hidden));
  s->shared_rows = carver.Take<uint16_t>(n * 2 * shared);
  s->shared_activated_rows = carver.Take<uint16_t>(n * gpu::OperandStride(shared));
  return carver.highest();
}

uint64_t PassScratchBytes(const ModelConfig& config, uint32_t max_tokens, uint32_t table_blocks) {
  PassScratch counted;
  return LayOutPass(config, max_tokens, table_blocks, nullptr, &counted);
}

}  // namespace moraine
