#include "fake_gpu.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "engine/manifest_check.h"

namespace moraine {
namespace {

constexpr uint32_t kMostAnswers = 8;  // together

uint32_t PagesOf(uint32_t positions) { return KvPool::BlocksFor(positions); }
uint32_t Count(const GpuSegment& segment) { return static_cast<uint32_t>(segment.tokens.size()); }

}  // namespace

FakeGpu::FakeGpu(const FakeGpuOptions& options, const GpuModelOptions& model)
    : host_(*model.host_kv),
      source_(*model.source),
      together_(model.host_experts),
      steps_until_failure_(options.steps_until_failure),
      layers_until_failure_(options.layers_until_failure),
      copier_(options.seed),
      slot_copier_(options.seed + 1) {
  store_ = std::move(*Store::Open(options.store_directory, StoreMode::kReadOnly));
  const Manifest& manifest = store_->manifest();
  config_ = *ParseModelConfig(manifest.model_config, "config.json");
  layouts_ = *ReadLayouts(manifest, config_);
  dense_ = std::move(*DenseWeights::Load(*store_));
  threads_ = std::make_unique<ThreadPool>(Topology::Detect(), ThreadPoolOptions{1, false});
  const uint32_t most_tokens = std::max(options.chunk, kMostAnswers);
  backend_ = std::make_unique<CpuBackend>(*ChooseIsa(), *threads_, most_tokens,
                                          DecoderModel::WidestInput(config_));
  model_ = std::make_unique<DecoderModel>(config_, *dense_, *backend_, most_tokens);
  const auto shapes = StateShapesOf(config_, model.kv_format);
  kv_pool_ =
      std::move(*KvPool::Create(shapes, model.kv_format, kMostAnswers * host_.block_count()));
  for (uint32_t i = 0; i < kMostAnswers; ++i) {
    states_.push_back(std::move(
        *SequenceState::Create(shapes, kv_pool_.get(), host_.block_count() * kKvBlockPositions)));
  }
  plan_.chunk = options.chunk;
  plan_.streamed_bytes = manifest.expert_bytes();
  for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
    const LayerManifest& entry = manifest.layers[layer];
    pages_.emplace_back(host_.block_count() * host_.block_bytes(layer), std::byte{0x47});
    CHECK(entry.record_bytes % sizeof(Line) == 0, "records that are not aligned");
    records_.emplace_back(entry.expert_count * entry.record_bytes / sizeof(Line));
    addresses_.emplace_back(entry.expert_count);
  }
  routed_.resize(manifest.layers.size());
  const uint64_t slot_bytes = manifest.max_record_bytes();
  slot_memory_.resize(options.slots * slot_bytes / sizeof(Line));
  std::ranges::fill(slot_memory_, Line{{std::byte{0x47}}});
  if (options.slots > 0) slots_ = {slot_memory_.data()->bytes, slot_bytes, options.slots};
}

bool FakeGpu::CountsDown(int* until) { return until != nullptr && *until > 0 && --*until == 0; }

void FakeGpu::Step(std::span<GpuSegment> batch) {
  std::vector<GpuSegment*> few;
  uint32_t few_tokens = 0;
  for (GpuSegment& segment : batch) {
    CHECK(Count(segment) > 0 && Count(segment) <= plan_.chunk, "no tokens, or more than a chunk");
    if (segment.cancelled != nullptr && segment.cancelled->load()) {
      segment.status = Cancelled("cancelled");
    } else if (together_ != nullptr && Count(segment) <= kMostAnswers) {
      few.push_back(&segment);
      few_tokens += Count(segment);
    } else {
      GpuSegment* const alone[] = {&segment};
      answers_ = false;
      ComputeBatch(alone);
      source_.Finish(copier_);
      CHECK(copier_.idle(), "copies are left");
    }
  }
  CHECK(few_tokens <= kMostAnswers, "more answers than are computed together");
  if (few.empty()) return;
  answers_ = true;
  ComputeBatch(few);
}

void FakeGpu::ComputeBatch(std::span<GpuSegment* const> segments) {
  std::vector<BatchSegment> batch;
  const bool fails = failed_ || CountsDown(steps_until_failure_);
  for (std::vector<uint32_t>& routed : routed_) routed.clear();
  for (size_t i = 0; i < segments.size(); ++i) Bring(*segments[i], states_[i]);
  Status copied = answers_ ? OkStatus() : CopyExperts();
  if (fails) {
    failed_ = true;
    copied = Internal("the device is gone");
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    const GpuSegment& segment = *segments[i];
    BatchSegment inner = {.tokens = segment.tokens, .state = &states_[i], .sink = segment.sink};
    inner.logits = segment.logits == 0                ? LogitsMode::kNone
                   : segment.logits == Count(segment) ? LogitsMode::kAll
                                                      : LogitsMode::kLast;
    if (inner.logits == LogitsMode::kNone) inner.sink = nullptr;
    inner.status = copied;
    batch.push_back(inner);
  }
  if (copied.ok()) model_->Forward(batch, *this);
  for (size_t i = 0; i < segments.size(); ++i) {
    segments[i]->status = batch[i].status;
    if (batch[i].status.ok()) {
      Return(*segments[i], states_[i]);
    } else {
      Spoil(*segments[i]);
    }
  }
}

// The segment's pages, as far as they are of use, into a sequence.
void FakeGpu::Bring(const GpuSegment& segment, SequenceState& state) {
  state.Reset();
  CHECK(state.Reserve(segment.first + Count(segment)), "no blocks");
  for (uint32_t layer = 0; layer < pages_.size(); ++layer) {
    for (const uint32_t page : segment.stale) {
      std::memcpy(Page(layer, page), HostBlock(layer, page), host_.block_bytes(layer));
    }
    const PositionBlocks blocks = state.positions(layer);
    for (uint32_t p = 0; p < PagesOf(segment.first + Count(segment)); ++p) {
      std::memcpy(blocks.first + blocks.blocks[p] * blocks.block_bytes,
                  Page(layer, segment.pages[p]), blocks.block_bytes);
    }
  }
  state.Commit(segment.first);
}

// What was written back to the pages, and to the host.
void FakeGpu::Return(const GpuSegment& segment, SequenceState& state) {
  for (uint32_t layer = 0; layer < pages_.size(); ++layer) {
    const PositionBlocks blocks = state.positions(layer);
    for (uint32_t p = segment.first / kKvBlockPositions;
         p < PagesOf(segment.first + Count(segment)); ++p) {
      std::byte* const page = Page(layer, segment.pages[p]);
      std::memcpy(page, blocks.first + blocks.blocks[p] * blocks.block_bytes, blocks.block_bytes);
      std::memcpy(HostBlock(layer, segment.pages[p]), page, blocks.block_bytes);
    }
  }
}

// From the segment's positions on, whatever is there: nothing of meaning.
void FakeGpu::Spoil(const GpuSegment& segment) {
  const uint32_t first_page = segment.first / kKvBlockPositions;
  for (uint32_t p = first_page; p < PagesOf(segment.first + Count(segment)); ++p) {
    std::memset(Page(0, segment.pages[p]), 0x55, host_.block_bytes(0));
    if (p > first_page) std::memset(HostBlock(0, segment.pages[p]), 0x55, host_.block_bytes(0));
  }
}

Status FakeGpu::CopyExperts() {
  const std::vector<LayerManifest>& layers = store_->manifest().layers;
  for (uint32_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].expert_count == 0) continue;
    std::ranges::fill(records_[layer], Line{});
    uint32_t next = layer + 1;
    while (next < layers.size() && layers[next].expert_count == 0) ++next;
    RETURN_IF_ERROR(source_.CopyLayer({.layer = layer,
                                       .next = next < layers.size() ? next : kNoLayer,
                                       .record_bytes = layers[layer].record_bytes,
                                       .to = Record(layer, 0),
                                       .addresses = addresses_[layer].data()},
                                      copier_));
    for (uint32_t e = 0; e < layers[layer].expert_count; ++e) {
      const std::byte*& address = addresses_[layer][e];
      if (address == nullptr) address = Record(layer, e);
    }
  }
  const Result<uint64_t> mark = copier_.Mark();
  if (mark.ok()) copier_.Wait(*mark);
  return mark.status();
}

Status FakeGpu::RunExperts(LayerId layer, const RoutingDecision& routing, const float* x,
                           float* out) {
  const size_t ranked = size_t{routing.token_count} * routing.top_k;
  routed_[layer.value()].assign(routing.experts, routing.experts + ranked);
  if (answers_) return RunTogether(layer, routing, x, out);
  Compute(layer, routing, x, addresses_[layer.value()].data(), out);
  return OkStatus();
}

Status FakeGpu::RunTogether(LayerId layer, const RoutingDecision& routing, const float* x,
                            float* out) {
  if (CountsDown(layers_until_failure_)) {
    failed_ = true;
    slot_copier_.Fail();
    return Internal("the device is gone");
  }
  const RoutedLayer routed = {.layer = layer.value(),
                              .token_count = routing.token_count,
                              .top_k = routing.top_k,
                              .experts = routing.experts,
                              .weights = routing.weights,
                              .hidden = routing.hidden};
  std::vector<const std::byte*> records(config_.expert_count);
  const size_t sums = size_t{routing.token_count} * config_.hidden;
  std::vector<float> host_out(sums, 1e30f);
  const Result<uint32_t> placed = together_->Place(routed, records.data());
  Result<bool> computed =
      placed.ok() ? together_->Compute(routed, host_out.data()) : Result<bool>(placed.status());
  if (computed.ok()) {
    Compute(layer, routing, x, records.data(), out);
    for (size_t i = 0; i < sums && *computed; ++i) out[i] += host_out[i];
    CHECK(*computed || host_out[0] == 1e30f, "an output that is none");
  }
  together_->Release(layer.value());
  return computed.status();
}

void FakeGpu::Compute(LayerId layer, const RoutingDecision& routing, const float* x,
                      const std::byte* const* records, float* out) {
  const uint32_t hidden = config_.hidden, ranked = routing.token_count * routing.top_k;
  const LayerManifest& manifest = store_->manifest().layers[layer.value()];
  std::vector<float> outputs((size_t{ranked} + 1) * hidden);  // the last row: zeros
  std::vector<uint32_t> rows(ranked, ranked), token_rows;
  token_rows.reserve(ranked);
  std::vector<ExpertTask> tasks;
  for (uint32_t e = 0; e < manifest.expert_count; ++e) {
    const size_t first = token_rows.size();
    for (uint32_t i = 0; i < ranked && records[e] != nullptr; ++i) {
      if (routing.experts[i] != e) continue;
      rows[i] = static_cast<uint32_t>(token_rows.size());
      token_rows.push_back(i / routing.top_k);
    }
    if (token_rows.size() == first) continue;
    const Status right =
        store_->VerifyRecord({layer, ExpertId(e)}, {records[e], manifest.record_bytes});
    CHECK(right.ok(), right.message());
    tasks.push_back({ViewExpert(layouts_[layer.value()], records[e]), &token_rows[first],
                     static_cast<uint32_t>(token_rows.size() - first), &outputs[first * hidden],
                     config_.activation});
  }
  if (!tasks.empty()) {
    backend_->SetExpertInput(x, hidden, routing.token_count, hidden,
                             layouts_[layer.value()].gate_up);
    backend_->RunExperts(tasks);
  }
  backend_->CombineExperts({outputs.data(), rows.data(), routing.weights, routing.token_count,
                            routing.top_k, hidden, out});
}

}  // namespace moraine
