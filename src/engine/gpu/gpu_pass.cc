#include "engine/gpu/gpu_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <variant>

#include "compute/cuda/gates.h"
#include "compute/cuda/row_ops.h"

namespace moraine {
namespace {

constexpr uint32_t kSegmentWords = sizeof(gpu::DeltaSegment) / sizeof(uint32_t);

}  // namespace

GpuPass::~GpuPass() = default;

GpuPass::GpuPass(const ModelConfig& config, const GpuNetwork& network, GpuExperts& experts,
                 gpu::GroupedGemm gemm, gpu::Stream stream)
    : config_(config),
      network_(network),
      experts_(experts),
      gemm_(std::move(gemm)),
      stream_(stream),
      scratch_(std::make_unique<PassScratch>()) {}

Result<std::unique_ptr<GpuPass>> GpuPass::Create(const ModelConfig& config,
                                                 const GpuNetwork& network, GpuExperts& experts,
                                                 const Limits& limits, gpu::Stream stream) {
  const uint32_t max_tokens = limits.max_tokens, table_blocks = limits.table_blocks;
  ASSIGN_OR_RETURN(gpu::GroupedGemm gemm, gpu::GroupedGemm::Create());
  std::unique_ptr<GpuPass> pass(
      new GpuPass(config, network, experts, std::move(gemm), stream));
  pass->table_blocks_ = table_blocks;
  pass->recurrent_ = std::ranges::any_of(network.layers(), [](const GpuLayer& layer) {
    return std::holds_alternative<GpuDelta>(layer.mixer);
  });
  ASSIGN_OR_RETURN(pass->memory_, gpu::DeviceMemory::Allocate(
                                      PassScratchBytes(config, max_tokens, table_blocks), "scratch"));
  LayOutPass(config, max_tokens, table_blocks, pass->memory_.data(), pass->scratch_.get());
  const PassScratch& s = *pass->scratch_;
  RETURN_IF_ERROR(gpu::FillBytes(s.counter, 0, sizeof(uint32_t), stream));
  RETURN_IF_ERROR(gpu::FillBytes(s.attention, 0, s.attention_bytes, stream));
  pass->logit_rows_ = LogitRowsOfPass(config, max_tokens);
  const uint64_t words =
      kFewTokens * (kSegmentWords + 1 + uint64_t{table_blocks}) +
      std::max(limits.prompt_tokens, kFewTokens);
  ASSIGN_OR_RETURN(pass->inputs_, gpu::PinnedMemory::Allocate(words * sizeof(uint32_t)));
  std::memset(pass->inputs_.data(), 0, pass->inputs_.size_bytes());
  if (network.has_output()) {
    ASSIGN_OR_RETURN(pass->logits_, gpu::PinnedMemory::Allocate(sizeof(float) * config.vocab_size *
                                                                pass->logit_rows_));
  }
  return pass;
}

// Page-locked: positions of few tokens, their segments, their block tables, tokens. A graph copies from fixed
// places.
gpu::DeltaSegment* GpuPass::host_segments() const {
  return reinterpret_cast<gpu::DeltaSegment*>(inputs_.as<uint32_t>() + kFewTokens);
}
uint32_t* GpuPass::host_tables() const {
  return inputs_.as<uint32_t>() + kFewTokens * (1 + kSegmentWords);
}
int32_t* GpuPass::host_tokens() const {
  return inputs_.as<int32_t>() + kFewTokens * (1 + kSegmentWords + table_blocks_);
}

void GpuPass::WriteTable(uint32_t row, const uint32_t* blocks, uint32_t last_position) {
  const uint32_t count = last_position / gpu::kKvPagePositions + 1;
  CHECK(count <= table_blocks_, "a sequence longer than its block table");
  std::memcpy(host_tables() + row * table_blocks_, blocks, count * sizeof(uint32_t));
}

void GpuPass::PrepareFew(std::span<const Row> rows, std::span<const gpu::DeltaSegment> segments) {
  CHECK(!rows.empty() && rows.size() <= kFewTokens, "a pass of few tokens");
  token_count_ = static_cast<uint32_t>(rows.size());
  for (uint32_t t = 0; t < token_count_; ++t) {
    inputs_.as<uint32_t>()[t] = rows[t].position;
    host_tokens()[t] = rows[t].token;
    WriteTable(t, rows[t].blocks, rows[t].position);
    host_segments()[t] = t < segments.size() ? segments[t] : gpu::DeltaSegment{};
  }
}

void GpuPass::PrepareMany(std::span<const int32_t> tokens, uint32_t first, const uint32_t* blocks,
                          RecurrentSlots::Use state) {
  prompt_first_ = first;
  prompt_state_ = state;
  WriteTable(0, blocks, first + static_cast<uint32_t>(tokens.size()) - 1);
  std::memcpy(host_tokens(), tokens.data(), tokens.size_bytes());
}

gpu::PagedKv GpuPass::Kv(const GpuGqa& gqa, uint32_t table_stride) const {
  gpu::PagedKv kv = gqa.kv;
  kv.block_tables = scratch_->tables;
  kv.table_stride = table_stride;
  return kv;
}

gpu::GemvInput GpuPass::Input(const float* x, uint32_t stride, const float* norm) const {
  return {.x = x, .stride = stride, .norm = norm, .epsilon = config_.rms_norm_epsilon};
}

Status GpuPass::RunProjection(const GpuProjection& projection, const gpu::GemvInput& input,
                              float* y) {
  for (const gpu::DeviceMatrix& part : projection.parts) {
    RETURN_IF_ERROR(gpu::RunGemv({.matrix = part,
                                  .input = input,
                                  .token_count = token_count_,
                                  .y = y,
                                  .y_stride = projection.rows,
                                  .add = false},
                                 stream_));
    y += part.rows;
  }
  return OkStatus();
}

Status GpuPass::RunProjection(const GpuProjection& projection, const uint16_t* operand,
                              uint16_t* y) {
  for (const gpu::DeviceMatrix& part : projection.parts) {
    RETURN_IF_ERROR(gemm_.Dense({.matrix = part,
                                 .operand = operand,
                                 .token_count = token_count_,
                                 .output = gpu::DenseProduct::Output::kBf16,
                                 .y = y,
                                 .stride = projection.rows},
                                stream_));
    y += part.rows;
  }
  return OkStatus();
}

gpu::HeadRows GpuPass::Heads(const GpuGqa& gqa, const gpu::PagedKv& kv) const {
  return {.stride = gqa.qkv.rows,
          .token_count = token_count_,
          .query_heads = gqa.config.query_heads,
          .q_norm = gqa.q_norm,
          .k_norm = gqa.k_norm,
          .epsilon = config_.rms_norm_epsilon,
          .cos = gqa.cos,
          .sin = gqa.sin,
          .rotary_dim = gqa.config.rope.rotary_dim,
          .interleaved = gqa.config.rope.interleaved,
          .kv = kv};
}

Status GpuPass::HandOverKeysAndValues(uint32_t index) {
  return handover_ == nullptr ? OkStatus() : handover_->OnKeysAndValues(index, stream_);
}

Status GpuPass::Route(uint32_t index, const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(gpu::RunRouter({.matrix = layer.router,
                                 .bias = layer.router_bias,
                                 .input = Input(s.hidden, config_.hidden, layer.feed_forward_norm),
                                 .token_count = token_count_,
                                 .top_k = config_.top_k,
                                 .selection = layer.selection,
                                 .logits = s.router_logits,
                                 .experts = s.experts,
                                 .weights = s.weights,
                                 .counter = s.counter},
                                stream_));
  if (handover_ == nullptr || (token_count_ <= kFewTokens && meeting_ != nullptr)) return OkStatus();
  return handover_->OnRouted(index, s.experts, token_count_ * config_.top_k, stream_);
}

Status GpuPass::BringTokens(uint32_t tables, uint32_t begin) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(gpu::Copy(s.tables, host_tables(),
                            uint64_t{tables} * table_blocks_ * sizeof(uint32_t), stream_));
  pending_delta_ = false;
  if (!network_.embeds()) return OkStatus();
  RETURN_IF_ERROR(
      gpu::Copy(s.tokens, host_tokens() + begin, token_count_ * sizeof(int32_t), stream_));
  return gpu::RunEmbedding({.matrix = network_.embedding(),
                            .tokens = s.tokens,
                            .token_count = token_count_,
                            .x = s.hidden,
                            .x_stride = config_.hidden},
                           stream_);
}

Status GpuPass::EnqueueFew() {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(gpu::Copy(s.positions, inputs_.data(), kFewTokens * sizeof(uint32_t), stream_));
  if (recurrent_) {
    RETURN_IF_ERROR(
        gpu::Copy(s.segments, host_segments(), kFewTokens * sizeof(gpu::DeltaSegment), stream_));
  }
  RETURN_IF_ERROR(BringTokens(token_count_, 0));
  for (uint32_t i = network_.range().begin; i < network_.range().end; ++i) {
    const GpuLayer& layer = network_.layers()[i];
    RETURN_IF_ERROR(FewMixer(layer));
    RETURN_IF_ERROR(FewRowsToHost(i, layer));
    RETURN_IF_ERROR(layer.moe ? FewExperts(i, layer) : FewDense(layer));
  }
  return OkStatus();
}

Status GpuPass::FewMixer(const GpuLayer& layer) {
  if (const auto* mla = std::get_if<GpuMla>(&layer.mixer)) return FewLatent(layer, *mla);
  if (const auto* delta = std::get_if<GpuDelta>(&layer.mixer)) return FewDelta(layer, *delta);
  return FewAttention(layer, std::get<GpuGqa>(layer.mixer));
}

Status GpuPass::ManyMixer(const GpuLayer& layer) {
  if (const auto* mla = std::get_if<GpuMla>(&layer.mixer)) return ManyLatent(layer, *mla);
  if (const auto* delta = std::get_if<GpuDelta>(&layer.mixer)) return ManyDelta(layer, *delta);
  return ManyAttention(layer, std::get<GpuGqa>(layer.mixer));
}

Status GpuPass::FewAttention(const GpuLayer& layer, const GpuGqa& gqa) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(
      RunProjection(gqa.qkv, Input(s.hidden, config_.hidden, layer.attention_norm), s.qkv));
  RETURN_IF_ERROR(ChangeProjections(gqa, s.qkv));
  const gpu::PagedKv kv = Kv(gqa, table_blocks_);
  gpu::HeadRows heads = Heads(gqa, kv);
  heads.f32 = s.qkv;
  heads.positions = s.positions;
  heads.queries_f32 = s.queries;
  RETURN_IF_ERROR(gpu::RunHeads(heads, stream_));
  RETURN_IF_ERROR(gpu::RunDecodeAttention(
      {.queries = s.queries,
       .token_count = token_count_,
       .query_heads = gqa.config.query_heads,
       .positions = s.positions,
       .kv = kv,
       .scale = 1.0f / std::sqrt(static_cast<float>(gqa.config.head_dim)),
       .scratch = s.attention,
       .out = s.attended},
      stream_));
  if (gqa.config.output_gate) {
    RETURN_IF_ERROR(gpu::RunGateRows({.f32 = s.attended,
                                      .stride = gqa.q_width(),
                                      .token_count = token_count_,
                                      .cols = gqa.q_width(),
                                      .gate_f32 = s.qkv + gqa.gate_offset(),
                                      .gate_stride = gqa.qkv.rows,
                                      .gate_cols = gqa.q_width()},
                                     stream_));
  }
  return gpu::RunGemv({.matrix = gqa.o,
                       .input = Input(s.attended, gqa.q_width(), nullptr),
                       .token_count = token_count_,
                       .y = s.hidden,
                       .y_stride = config_.hidden,
                       .add = true},
                      stream_);
}

template <typename Value>
Status GpuPass::ChangeProjections(const GpuGqa& gqa, Value* rows) {
  if (!gqa.changes_projections()) return OkStatus();
  gpu::ProjectionRows change = {.stride = gqa.qkv.rows,
                                .token_count = token_count_,
                                .epsilon = config_.rms_norm_epsilon,
                                .parts = {gqa.qkv_parts[0], gqa.qkv_parts[1], gqa.qkv_parts[2]}};
  if constexpr (std::is_same_v<Value, float>) {
    change.f32 = rows;
  } else {
    change.bf16 = rows;
  }
  return gpu::RunProjectionRows(change, stream_);
}

// Weighing what goes into down weighs what comes out.
Status GpuPass::SharedGates(const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  return gpu::RunGemv({.matrix = layer.shared_gate,
                       .input = Input(s.hidden, config_.hidden, layer.feed_forward_norm),
                       .token_count = token_count_,
                       .y = s.shared_gates,
                       .y_stride = 1},
                      stream_);
}

// Up to what down reads; down itself adds to the stream, which the routed experts have to read before.
Status GpuPass::FewShared(const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(RunProjection(layer.shared_gate_up,
                                Input(s.hidden, config_.hidden, layer.feed_forward_norm), s.gate_up));
  const uint32_t width = layer.shared_down.cols;
  RETURN_IF_ERROR(gpu::RunGatedRows({.f32 = s.gate_up,
                                     .stride = layer.shared_gate_up.rows,
                                     .token_count = token_count_,
                                     .intermediate = width,
                                     .activated = s.shared_activated},
                                    stream_));
  if (layer.shared_gate.rows == 0) return OkStatus();
  RETURN_IF_ERROR(SharedGates(layer));
  return gpu::RunGateRows({.f32 = s.shared_activated,
                           .stride = width,
                           .token_count = token_count_,
                           .cols = width,
                           .gate_f32 = s.shared_gates,
                           .gate_stride = 1,
                           .gate_cols = 1},
                          stream_);
}

gpu::KvRowsToHost GpuPass::RowsToHost(const GpuLayer& layer) const {
  gpu::KvRowsToHost rows = {.kv = {},
                            .positions = scratch_->positions,
                            .token_count = token_count_};
  if (const auto* mla = std::get_if<GpuMla>(&layer.mixer)) {
    rows.kv = {.keys = mla->cache.bf16,
               .kv_heads = 1,
               .head_dim = mla->cache.width(),
               .block_tables = scratch_->tables,
               .table_stride = table_blocks_,
               .keys_f32 = mla->cache.f32};
  } else {
    rows.kv = Kv(std::get<GpuGqa>(layer.mixer), table_blocks_);
  }
  return rows;
}

// With a meeting, layers with experts hand rows and choice over together, behind their router.
Status GpuPass::FewRowsToHost(uint32_t index, const GpuLayer& layer) {
  if (meeting_ == nullptr) return HandOverKeysAndValues(index);
  if (layer.moe) return OkStatus();
  return meeting_->EnqueueLayer(index, {.kv_rows = RowsToHost(layer)}, stream_);
}

Status GpuPass::FewRoutedToHost(uint32_t index, const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  if (meeting_ == nullptr) return OkStatus();
  if (!Meets(index)) {
    return meeting_->EnqueueLayer(index,
                                  {.kv_rows = RowsToHost(layer),
                                   .experts = s.experts,
                                   .expert_count = token_count_ * config_.top_k},
                                  stream_);
  }
  return meeting_->EnqueueExchange(index,
                                   {.kv_rows = RowsToHost(layer),
                                    .token_count = token_count_,
                                    .top_k = config_.top_k,
                                    .hidden = config_.hidden,
                                    .experts = s.experts,
                                    .weights = s.weights,
                                    .x = s.hidden},
                                   stream_);
}

Status GpuPass::FewExperts(uint32_t index, const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  const bool shared = layer.shared_gate_up.rows > 0;
  RETURN_IF_ERROR(Route(index, layer));
  const bool meets = Meets(index), fed = !meets && experts_.fed();
  const std::byte* const* records = meets ? meeting_->records() : experts_.Records(index);
  RETURN_IF_ERROR(FewRoutedToHost(index, layer));
  if (shared) RETURN_IF_ERROR(FewShared(layer));  // while the host computes
  if (fed) {
    ASSIGN_OR_RETURN(records, experts_.Acquire(index, stream_));
  }
  const gpu::ExpertGemv gemv = {.layout = layer.experts,
                                .records = records,
                                .experts = s.experts,
                                .token_count = token_count_,
                                .top_k = config_.top_k,
                                .input = Input(s.hidden, config_.hidden, layer.feed_forward_norm),
                                .activated = s.activated,
                                .weights = s.weights,
                                .out = s.hidden,
                                .out_stride = config_.hidden,
                                .add = true};
  RETURN_IF_ERROR(gpu::RunGateUpGemv(gemv, stream_));
  RETURN_IF_ERROR(gpu::RunDownGemv(gemv, stream_));
  if (shared) {
    RETURN_IF_ERROR(gpu::RunGemv({.matrix = layer.shared_down,
                                  .input = Input(s.shared_activated, layer.shared_down.cols, nullptr),
                                  .token_count = token_count_,
                                  .y = s.hidden,
                                  .y_stride = config_.hidden,
                                  .add = true},
                                 stream_));
  }
  if (meets) {
    return meeting_->EnqueueSum(
        index, {.token_count = token_count_, .hidden = config_.hidden, .x = s.hidden}, stream_);
  }
  return fed ? experts_.Release(index, stream_) : OkStatus();
}

Status GpuPass::FewDense(const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(RunProjection(layer.gate_up,
                                Input(s.hidden, config_.hidden, layer.feed_forward_norm), s.gate_up));
  RETURN_IF_ERROR(gpu::RunGatedRows({.f32 = s.gate_up,
                                     .stride = layer.gate_up.rows,
                                     .token_count = token_count_,
                                     .intermediate = layer.intermediate,
                                     .activated = s.activated},
                                    stream_));
  return gpu::RunGemv({.matrix = layer.down,
                       .input = Input(s.activated, layer.intermediate, nullptr),
                       .token_count = token_count_,
                       .y = s.hidden,
                       .y_stride = config_.hidden,
                       .add = true},
                      stream_);
}

Status GpuPass::EnqueueMany(uint32_t begin, uint32_t count, const std::atomic<bool>* cancelled) {
  token_count_ = count;
  first_ = prompt_first_ + begin;
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(BringTokens(1, begin));
  for (uint32_t i = network_.range().begin; i < network_.range().end; ++i) {
    if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
      return Cancelled("request cancelled");
    }
    const GpuLayer& layer = network_.layers()[i];
    RETURN_IF_ERROR(ManyMixer(layer));
    RETURN_IF_ERROR(HandOverKeysAndValues(i));
    RETURN_IF_ERROR(layer.moe ? ManyExperts(i, layer) : ManyDense(layer));
  }
  // Another pass goes on with the whole stream: what is pending is taken in by a norm that nobody reads.
  if (network_.has_output() || !pending_delta_) return OkStatus();
  return Normalize(network_.layers()[network_.range().end - 1].attention_norm, s.normed, nullptr);
}

// Takes in what the experts of the layer before have added.
Status GpuPass::Normalize(const float* weight, uint16_t* operand, uint16_t* natural) {
  const PassScratch& s = *scratch_;
  return gpu::RunRowNorm({.x = s.hidden,
                          .x_stride = config_.hidden,
                          .addend = std::exchange(pending_delta_, false) ? s.delta : nullptr,
                          .addend_stride = config_.hidden,
                          .weight = weight,
                          .epsilon = config_.rms_norm_epsilon,
                          .token_count = token_count_,
                          .cols = config_.hidden,
                          .operand = operand,
                          .natural = natural},
                         stream_);
}

// What the chunk's tokens see, the chunk included, as prefill's attention wants it.
Result<gpu::PagedKv> GpuPass::InBf16(const gpu::PagedKv& kv) {
  if (kv.keys_fp8 == nullptr) return kv;
  gpu::KvExpansion expansion = network_.expansion();
  expansion.from = kv;
  expansion.positions = first_ + token_count_;
  RETURN_IF_ERROR(gpu::ExpandKv(expansion, stream_));
  return gpu::PagedKv{.keys = expansion.keys,
                      .values = expansion.values,
                      .kv_heads = kv.kv_heads,
                      .head_dim = kv.head_dim,
                      .block_tables = expansion.block_table};
}

Status GpuPass::ManyAttention(const GpuLayer& layer, const GpuGqa& gqa) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(Normalize(layer.attention_norm, s.normed, nullptr));
  RETURN_IF_ERROR(RunProjection(gqa.qkv, s.normed, s.qkv_rows));
  RETURN_IF_ERROR(ChangeProjections(gqa, s.qkv_rows));
  const gpu::PagedKv kv = Kv(gqa, 0);
  gpu::HeadRows heads = Heads(gqa, kv);
  heads.bf16 = s.qkv_rows;
  heads.first_position = first_;
  heads.queries_bf16 = s.query_rows;
  RETURN_IF_ERROR(gpu::RunHeads(heads, stream_));
  ASSIGN_OR_RETURN(const gpu::PagedKv past, InBf16(kv));
  RETURN_IF_ERROR(gpu::RunPrefillAttention(
      {.queries = s.query_rows,
       .token_count = token_count_,
       .query_heads = gqa.config.query_heads,
       .first_position = first_,
       .kv = past,
       .scale = 1.0f / std::sqrt(static_cast<float>(gqa.config.head_dim)),
       .operand = s.attended_rows},
      stream_));
  if (gqa.config.output_gate) {
    RETURN_IF_ERROR(gpu::RunGateRows({.operand = s.attended_rows,
                                      .token_count = token_count_,
                                      .cols = gqa.q_width(),
                                      .gate_bf16 = s.qkv_rows + gqa.gate_offset(),
                                      .gate_stride = gqa.qkv.rows,
                                      .gate_cols = gqa.q_width()},
                                     stream_));
  }
  return gemm_.Dense({.matrix = gqa.o,
                      .operand = s.attended_rows,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kAddF32,
                      .y = s.hidden,
                      .stride = config_.hidden},
                     stream_);
}

// Nothing reads the residual stream between the router and the next norm.
Status GpuPass::ManyShared(const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(RunProjection(layer.shared_gate_up, s.shared_operand, s.shared_rows));
  RETURN_IF_ERROR(gpu::RunGatedRows({.bf16 = s.shared_rows,
                                     .stride = layer.shared_gate_up.rows,
                                     .token_count = token_count_,
                                     .intermediate = layer.shared_down.cols,
                                     .operand = s.shared_activated_rows},
                                    stream_));
  if (layer.shared_gate.rows > 0) {
    RETURN_IF_ERROR(SharedGates(layer));
    RETURN_IF_ERROR(gpu::RunGateRows({.operand = s.shared_activated_rows,
                                      .token_count = token_count_,
                                      .cols = layer.shared_down.cols,
                                      .gate_f32 = s.shared_gates,
                                      .gate_stride = 1,
                                      .gate_cols = 1},
                                     stream_));
  }
  return gemm_.Dense({.matrix = layer.shared_down,
                      .operand = s.shared_activated_rows,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kAddF32,
                      .y = s.hidden,
                      .stride = config_.hidden},
                     stream_);
}

Status GpuPass::ManyExperts(uint32_t index, const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  const bool shared = layer.shared_gate_up.rows > 0;
  const uint32_t ranked = token_count_ * config_.top_k;
  RETURN_IF_ERROR(Normalize(layer.feed_forward_norm, shared ? s.shared_operand : nullptr, s.normed));
  RETURN_IF_ERROR(Route(index, layer));
  if (shared) RETURN_IF_ERROR(ManyShared(layer));
  RETURN_IF_ERROR(gpu::SortByExpert({.experts = s.experts,
                                     .token_count = token_count_,
                                     .top_k = config_.top_k,
                                     .expert_count = config_.expert_count,
                                     .offsets = s.offsets,
                                     .token_rows = s.token_rows,
                                     .positions = s.rows_of_ranks},
                                    stream_));
  RETURN_IF_ERROR(gemm_.GatherOperand({.x = s.normed,
                                       .x_stride = config_.hidden,
                                       .token_rows = s.token_rows,
                                       .row_count = ranked,
                                       .cols = config_.hidden,
                                       .operand = s.expert_rows},
                                      stream_));
  ASSIGN_OR_RETURN(const std::byte* const* const records, experts_.Acquire(index, stream_));
  const gpu::RoutedExperts experts = {.layout = layer.experts,
                                      .records = records,
                                      .expert_count = config_.expert_count,
                                      .offsets = s.offsets,
                                      .row_count = ranked};
  RETURN_IF_ERROR(gemm_.GateUp(experts, s.expert_rows, s.expert_activated, stream_));
  RETURN_IF_ERROR(gemm_.Down(experts, s.expert_activated, s.expert_rows, stream_));
  RETURN_IF_ERROR(experts_.Release(index, stream_));
  pending_delta_ = true;
  return gemm_.Combine({.rows = s.expert_rows,
                        .row_stride = gpu::RowStride(config_.hidden),
                        .positions = s.rows_of_ranks,
                        .weights = s.weights,
                        .token_count = token_count_,
                        .top_k = config_.top_k,
                        .hidden = config_.hidden,
                        .out = s.delta},
                       stream_);
}

Status GpuPass::ManyDense(const GpuLayer& layer) {
  const PassScratch& s = *scratch_;
  RETURN_IF_ERROR(Normalize(layer.feed_forward_norm, s.normed, nullptr));
  RETURN_IF_ERROR(RunProjection(layer.gate_up, s.normed, s.qkv_rows));
  RETURN_IF_ERROR(gpu::RunGatedRows({.bf16 = s.qkv_rows,
                                     .stride = layer.gate_up.rows,
                                     .token_count = token_count_,
                                     .intermediate = layer.intermediate,
                                     .operand = s.attended_rows},
                                    stream_));
  return gemm_.Dense({.matrix = layer.down,
                      .operand = s.attended_rows,
                      .token_count = token_count_,
                      .output = gpu::DenseProduct::Output::kAddF32,
                      .y = s.hidden,
                      .stride = config_.hidden},
                     stream_);
}

// By the products of few tokens for any number of them: these logits are what the sampler sees.
Status GpuPass::EnqueueLogits(uint32_t begin, uint32_t count) {
  CHECK(count <= logit_rows_ && begin + count <= token_count_, "logits of rows that are not there");
  const PassScratch& s = *scratch_;
  if (pending_delta_) RETURN_IF_ERROR(Normalize(network_.final_norm(), s.normed, nullptr));
  RETURN_IF_ERROR(gpu::RunGemv({.matrix = network_.output(),
                                .input = Input(s.hidden + uint64_t{begin} * config_.hidden,
                                               config_.hidden, network_.final_norm()),
                                .token_count = count,
                                .y = s.logits,
                                .y_stride = config_.vocab_size,
                                .add = false},
                               stream_));
  return gpu::Copy(logits_.data(), s.logits, uint64_t{count} * config_.vocab_size * sizeof(float),
                   stream_);
}

std::span<const float> GpuPass::logits(uint32_t row) const {
  return {logits_.as<float>() + uint64_t{row} * config_.vocab_size, config_.vocab_size};
}

}  // namespace moraine
