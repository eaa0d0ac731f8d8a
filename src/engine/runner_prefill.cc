// Runner's steps where a GPU computes prompts, and perhaps answers together with the CPU.
//
// Of a step the GPU takes its pieces of prompts first, one by one; then answers, if they are its; what is left
// is a step on the CPU, or several: a chunk for the GPU is longer than what the CPU has scratch for.
#include <algorithm>

#include "base/log.h"
#include "engine/runner_impl.h"

namespace moraine {

void Runner::Impl::OpenGpuPrefill(uint32_t prefill_chunk) {
  parts_.reserve(options_.max_sequences);
  parts_batch_.reserve(options_.max_sequences);
  const auto not_there = [this](const std::string& why) {
    LOG_WARN("all is computed on the CPU: {}", why);
    gpu_answers_.reset();
  };
  if (!residency_) return not_there("the model has no routed experts");
  GpuPrefill::Options options;
  options.model = {.vram_budget_bytes = options_.vram_budget_bytes,
                   .gpus = options_.gpus,
                   .max_context = kv_tokens_,
                   .prefill_chunk = prefill_chunk,
                   .kv_format = options_.kv_format,
                   .io = options_.io,
                   .link_limit_bytes_per_s = options_.link_limit_bytes_per_s,
                   .threads = options_.threads,
                   .progress = options_.gpu_progress};
  options.least_tokens = options_.gpu_prefill_tokens;
  options.token_table = token_table_.get();
  if (options_.gpu_hybrid) MakeGpuAnswers();
  if (gpu_answers_) {
    options.tier = &gpu_answers_->tier();
    options.together = &gpu_answers_->experts();
    options.model.host_experts = &gpu_answers_->experts();
  }
  const auto open = [this](const GpuModelOptions& model) {
    return options_.gpu_model_factory ? options_.gpu_model_factory(model)
                                      : GpuModel::Open(*store_, config_, layouts_, model);
  };
  auto opened = GpuPrefill::Open(config_, *kv_pool_, *residency_, options, open);
  options_.gpu_progress = nullptr;
  if (!opened.ok()) return not_there(opened.status().message());
  gpu_prefill_ = std::move(*opened);
  LOG_INFO("{} on {}: {}", gpu_answers_ ? "prompts, and answers with the CPU," : "prompts",
           gpu_prefill_->gpu_name(), gpu_prefill_->plan().ToText());
  if (!gpu_answers_) return;
  std::vector<float> heat(store_->manifest().expert_count());
  residency_->policy().ExportHeat(heat);
  gpu_answers_->Attach(*gpu_prefill_, heat, segments_->page_locked());
}

void Runner::Impl::MakeGpuAnswers() {
  if (options_.defer_experts > 0 || options_.prefer_resident > 0) {
    LOG_WARN("answers are computed on the CPU alone: the lossy modes are the CPU's");
    return;
  }
  answers_.reserve(options_.max_sequences);
  answered_.resize(options_.max_sequences);
  GpuAnswers::Options answers;
  answers.always = options_.gpu_hybrid_always;
  answers.tier.experts_per_layer = config_.experts_per_layer();
  for (const LayerManifest& layer : store_->manifest().layers) {
    answers.tier.record_bytes.push_back(layer.record_bytes);
  }
  gpu_answers_ = std::make_unique<GpuAnswers>(config_, *model_, *executor_, *residency_, answers);
}

uint32_t Runner::Impl::prefill_chunk() const {
  return std::max(options_.prefill_chunk, gpu_prefill_ ? gpu_prefill_->chunk() : 0);
}

void Runner::Impl::StepWithGpu(std::span<BatchSegment> batch) {
  answers_.clear();
  for (BatchSegment& segment : batch) {
    if (segment.decode) {
      answers_.push_back(&segment);
      continue;
    }
    const uint32_t length = segment.state->length();
    const uint32_t done = PrefillOnGpu(segment);
    if (segment.status.ok() && done < segment.tokens.size()) {
      parts_.push_back({.segment = &segment, .done = done, .length_before = length});
    }
  }
  AnswerWithGpu();
  const size_t prompts = parts_.size();
  for (BatchSegment* segment : answers_) {
    parts_.push_back({.segment = segment, .length_before = segment->state->length()});
  }
  // Answers are first in line for the CPU's steps.
  std::rotate(parts_.begin(), parts_.begin() + static_cast<ptrdiff_t>(prompts), parts_.end());
  ComputeParts();
}

// Leaves those in answers_ that the CPU shall compute.
void Runner::Impl::AnswerWithGpu() {
  const auto count = static_cast<uint32_t>(answers_.size());
  if (!gpu_answers_ || count == 0 || recording_ || !gpu_answers_->Wants(count)) return;
  const StepBegin begin = BeginTiming();
  AdvanceResize(kStepResizeBytes, /*wait=*/false);
  gpu_answers_->Run(answers_, std::span(answered_).first(count));
  const PhaseStats step = EndTiming(begin);
  parts_batch_.clear();
  size_t left = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (answered_[i]) {
      parts_batch_.push_back(*answers_[i]);
    } else {
      answers_[left++] = answers_[i];
    }
  }
  answers_.resize(left);
  Account(parts_batch_, step);
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
  const int64_t step_ns = RealClock().NowNs() - begin_ns;
  const BatchSegment& first = parts_batch_[0];
  if (parts_batch_.size() == 1 && !first.decode && first.status.ok()) {
    gpu_prefill_->RecordCpu(static_cast<uint32_t>(first.tokens.size()), step_ns);
  }
  if (gpu_answers_ && std::ranges::all_of(parts_batch_, [](const BatchSegment& segment) {
        return segment.decode && segment.status.ok();
      })) {
    gpu_answers_->RecordCpu(static_cast<uint32_t>(parts_batch_.size()), step_ns);
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
