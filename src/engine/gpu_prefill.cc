#include "engine/gpu_prefill.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "model/sequence_state.h"

namespace moraine {

GpuPrefill::GpuPrefill(const ModelConfig& config, KvPool& kv_pool, ResidencyManager& residency,
                       const Options& options)
    : config_(config),
      residency_(residency),
      token_table_(options.token_table),
      together_(options.together),
      tier_(options.tier),
      experts_(residency, config.experts_per_layer(), options.tier),
      mirror_(kv_pool.block_count()),
      choice_(options.least_tokens) {
  stale_.reserve(kv_pool.block_count());
  token_counts_.resize(config.expert_count);
  taken_.reserve(config.expert_count);
  weights_.reserve(config.expert_count);
}

Result<std::unique_ptr<GpuPrefill>> GpuPrefill::Open(const ModelConfig& config, KvPool& kv_pool,
                                                     ResidencyManager& residency, Options options,
                                                     const OpenModel& open) {
  std::unique_ptr<GpuPrefill> prefill(new GpuPrefill(config, kv_pool, residency, options));
  options.model.host_kv = &kv_pool;
  options.model.source = &prefill->experts_;
  ASSIGN_OR_RETURN(prefill->model_, open(options.model));
  auto lock = LockForGpu(kv_pool.memory());
  if (lock.ok()) {
    prefill->kv_lock_ = std::move(*lock);
  } else {
    LOG_WARN("keys and values are not page-locked, copies of them are slow: {}",
             lock.status().message());
  }
  if (options.least_tokens == 0) {
    const auto link_gb_per_s = prefill->model_->MeasureLink();
    // Bytes over GB/s are nanoseconds. Without it the first piece tells.
    prefill->choice_.set_gpu_expected_ns(
        link_gb_per_s.ok() ? static_cast<double>(prefill->plan().streamed_bytes) / *link_gb_per_s : 0);
  }
  return prefill;
}

uint32_t GpuPrefill::Run(BatchSegment& segment) {
  const auto count = static_cast<uint32_t>(segment.tokens.size());
  SequenceState& state = *segment.state;
  const uint32_t length_before = state.length();
  if (!state.Reserve(count)) {
    segment.status = ResourceExhausted("no memory for keys and values is left");
    return 0;
  }
  uint32_t done = 0;
  while (done < count) {
    const uint32_t piece = std::min(count - done, model_->max_chunk());
    const int64_t begin_ns = RealClock().NowNs();
    const Status status = RunPiece(segment, done, piece);
    if (status.code() == StatusCode::kCancelled) {
      segment.status = status;
      CHECK(state.Truncate(length_before).ok(), "a prompt of a model with recurrent state");
      return 0;
    }
    if (!status.ok()) {
      Fail(status);
      return done;
    }
    choice_.Record(true, piece, RealClock().NowNs() - begin_ns);
    done += piece;
  }
  return done;
}

void GpuPrefill::Fail(const Status& why) {
  LOG_WARN("all is computed on the CPU from now on, the GPU has failed: {}", why.message());
  failed_ = true;
}

Status GpuPrefill::RunPiece(const BatchSegment& segment, uint32_t begin, uint32_t count) {
  SequenceState& state = *segment.state;
  const uint32_t first = state.length();
  const uint32_t* const blocks = state.positions(0).blocks;
  GpuSegment on_gpu{.tokens = segment.tokens.subspan(begin, count),
                    .first = first,
                    .pages = blocks,
                    .sink = segment.sink,
                    .cancelled = segment.cancelled};
  const bool last = begin + count == segment.tokens.size();
  if (segment.sink != nullptr && segment.logits != LogitsMode::kNone) {
    on_gpu.logits = segment.logits == LogitsMode::kAll ? count : (last ? 1 : 0);
  }
  residency_.BeginStep(count);
  // Nothing more to copy: the prompt has the link.
  if (tier_ != nullptr) RETURN_IF_ERROR(tier_->BeginStep(count, 0));
  if (together_ != nullptr) together_->BeginStep(on_gpu.tokens);
  mirror_.TakeStale(blocks, first, &stale_);
  on_gpu.stale = stale_;
  mirror_.BeginWrite(blocks, first, count);
  model_->Step({&on_gpu, 1});
  if (!on_gpu.status.ok()) {
    // What was to be brought over may not have come.
    mirror_.BeginWrite(blocks, 0, first + count);
    return on_gpu.status;
  }
  mirror_.EndDeviceWrite(blocks, first, count);
  state.Commit(count);
  counts_.tokens += count;
  ++counts_.chunks;
  // Who computed experts of this piece has learnt what it took.
  if (together_ == nullptr || !together_->asked()) Learn(on_gpu.tokens);
  return OkStatus();
}

void GpuPrefill::Learn(std::span<const int32_t> tokens) {
  const size_t ranked = tokens.size() * config_.top_k;
  bool first_moe_layer = true;
  for (uint32_t layer = 0; layer < config_.layers.size(); ++layer) {
    if (config_.layers[layer].feed_forward != FeedForwardKind::kMoe) continue;
    const uint32_t* const routed = model_->routed(layer);
    std::ranges::fill(token_counts_, 0);
    for (size_t i = 0; i < ranked; ++i) ++token_counts_[routed[i]];
    taken_.clear();
    weights_.clear();
    for (uint32_t e = 0; e < token_counts_.size(); ++e) {
      if (token_counts_[e] == 0) continue;
      const ExpertKey key{LayerId(layer), ExpertId(e)};
      const auto weight = static_cast<float>(token_counts_[e]);
      if (tier_ != nullptr) tier_->Note(key, weight);
      if (tier_ != nullptr && tier_->Find(key) != nullptr) {
        residency_.NoteUseElsewhere(key, weight);
        continue;
      }
      taken_.emplace_back(e);
      weights_.push_back(weight);
    }
    residency_.Learn(LayerId(layer), taken_, weights_);
    if (token_table_ != nullptr && std::exchange(first_moe_layer, false)) {
      for (size_t t = 0; t < tokens.size(); ++t) {
        token_table_->Learn(tokens[t], routed + t * config_.top_k);
      }
    }
  }
}

void GpuPrefill::BeginOnCpu(const BatchSegment& segment) {
  const SequenceState& state = *segment.state;
  mirror_.BeginWrite(state.positions(0).blocks, state.length(),
                     static_cast<uint32_t>(segment.tokens.size()));
}

GpuPrefillCounts GpuPrefill::counts() const {
  GpuPrefillCounts counts = counts_;
  counts.copied_bytes = experts_.copied_bytes();
  return counts;
}

}  // namespace moraine
