// Runner's steps where a GPU computes prompts and the CPU everything else.
//
// Of a step the GPU takes its pieces of prompts first, one by one; then answers, and what it does not want,
// are a step on the CPU, or several: a chunk for the GPU is longer than what the CPU has scratch for.
#include <algorithm>

#include "base/log.h"
#include "engine/runner_impl.h"

namespace moraine {

void Runner::Impl::OpenGpuPrefill(uint32_t prefill_chunk) {
  parts_.reserve(options_.max_sequences);
  parts_batch_.reserve(options_.max_sequences);
  const auto not_there = [](const std::string& why) {
    LOG_WARN("prompts are computed on the CPU, too: {}", why);
  };
  if (!residency_) return not_there("the model has no routed experts");
  GpuPrefill::Options options;
  options.model = {.vram_budget_bytes = options_.vram_budget_bytes,
                   .max_context = kv_tokens_,
                   .prefill_chunk = prefill_chunk,
                   .kv_format = options_.kv_format,
                   .io = options_.io,
                   .threads = options_.threads,
                   .progress = options_.gpu_progress};
  options.least_tokens = options_.gpu_prefill_tokens;
  options.token_table = token_table_.get();
  const auto open = [this](const GpuModelOptions& model) {
    return options_.gpu_model_factory ? options_.gpu_model_factory(model)
                                      : GpuModel::Open(*store_, config_, layouts_, model);
  };
  auto opened = GpuPrefill::Open(config_, *kv_pool_, *residency_, options, open);
  options_.gpu_progress = nullptr;
  if (!opened.ok()) return not_there(opened.status().message());
  gpu_prefill_ = std::move(*opened);
  LOG_INFO("prompts on {}: {}", gpu_prefill_->gpu_name(), gpu_prefill_->plan().ToText());
}

uint32_t Runner::Impl::prefill_chunk() const {
  return std::max(options_.prefill_chunk, gpu_prefill_ ? gpu_prefill_->chunk() : 0);
}

void Runner::Impl::StepWithGpu(std::span<BatchSegment> batch) {
  size_t prompts = 0;
  for (const bool answers : {false, true}) {
    for (BatchSegment& segment : batch) {
      if (segment.decode != answers) continue;
      const uint32_t length = segment.state->length();
      const uint32_t done = answers ? 0 : PrefillOnGpu(segment);
      if (segment.status.ok() && done < segment.tokens.size()) {
        parts_.push_back({.segment = &segment, .done = done, .length_before = length});
      }
    }
    if (!answers) prompts = parts_.size();
  }
  // Answers are first in line for the CPU's steps.
  std::rotate(parts_.begin(), parts_.begin() + static_cast<ptrdiff_t>(prompts), parts_.end());
  ComputeParts();
}

// How many of the segment's tokens have been computed.
uint32_t Runner::Impl::PrefillOnGpu(BatchSegment& segment) {
  if (recording_) return 0;
  const auto count = static_cast<uint32_t>(segment.tokens.size());
  const uint32_t length_before = segment.state->length();
  const uint32_t probe = gpu_prefill_->ProbeTokens(count);
  if (probe > 0) {
    BatchSegment first = segment;
    first.tokens = segment.tokens.first(probe);
    if (first.logits == LogitsMode::kLast) first.logits = LogitsMode::kNone;
    std::vector<Part> others;
    parts_.swap(others);  // its time is measured
    parts_.push_back({.segment = &first, .length_before = length_before});
    ComputeParts();
    parts_.swap(others);
    segment.status = std::move(first.status);
    if (!segment.status.ok()) return 0;
  }
  if (!gpu_prefill_->Wants(count - probe)) return probe;
  AdvanceResize(kStepResizeBytes, /*wait=*/false);
  executor_->BeginStep(AcquireMode::kTransient);
  const int64_t begin_ns = RealClock().NowNs();
  const uint64_t bytes_before = residency_->stats().bytes_read;
  BatchSegment rest = segment;
  rest.tokens = segment.tokens.subspan(probe);
  const uint32_t done = gpu_prefill_->Run(rest);
  segment.status = rest.status;
  if (!segment.status.ok()) {
    CHECK(segment.state->Truncate(length_before).ok(), "a prompt cannot be taken back");
    return 0;
  }
  PhaseStats step;
  step.wall_ns = RealClock().NowNs() - begin_ns;
  step.bytes_read = residency_->stats().bytes_read - bytes_before;
  rest.tokens = rest.tokens.first(done);
  if (done > 0) Account({&rest, 1}, step);
  return probe + done;
}

void Runner::Impl::ComputeParts() {
  while (!parts_.empty()) ComputeSomeParts();
}

// One step of the CPU: as much of the parts, in order, as it has scratch for.
void Runner::Impl::ComputeSomeParts() {
  uint32_t room = step_tokens();
  parts_batch_.clear();
  for (Part& part : parts_) {
    const BatchSegment& whole = *part.segment;
    const auto left = static_cast<uint32_t>(whole.tokens.size()) - part.done;
    part.count = std::min(left, room);
    room -= part.count;
    if (part.count == 0) continue;
    BatchSegment piece = whole;
    piece.tokens = whole.tokens.subspan(part.done, part.count);
    if (part.count < left && piece.logits == LogitsMode::kLast) piece.logits = LogitsMode::kNone;
    // Blocks that are not there are an error that the step itself reports.
    if (piece.state->Reserve(part.count)) gpu_prefill_->BeginOnCpu(piece);
    parts_batch_.push_back(std::move(piece));
  }
  const int64_t begin_ns = RealClock().NowNs();
  Compute(parts_batch_);
  const BatchSegment& first = parts_batch_[0];
  if (parts_batch_.size() == 1 && !first.decode && first.status.ok()) {
    gpu_prefill_->RecordCpu(static_cast<uint32_t>(first.tokens.size()),
                            RealClock().NowNs() - begin_ns);
  }
  size_t at = 0;
  for (Part& part : parts_) {
    if (part.count == 0) continue;
    BatchSegment& whole = *part.segment;
    whole.status = std::move(parts_batch_[at++].status);
    part.done += part.count;
    if (whole.status.ok() || whole.state->length() == part.length_before) continue;
    CHECK(whole.state->Truncate(part.length_before).ok(), "a prompt cannot be taken back");
  }
  std::erase_if(parts_, [](const Part& part) {
    return !part.segment->status.ok() || part.done == part.segment->tokens.size();
  });
}

}  // namespace moraine
