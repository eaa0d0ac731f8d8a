#include "engine/gpu_answers.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "model/sequence_state.h"

namespace moraine {
namespace {

// Of a step's time, the part in which the link may copy experts into VRAM: as long as slots are
// free, and then. What a step reads over the link is delayed by as much at most.
constexpr double kFillingShare = 0.5, kSteadyShare = 0.1;
// Where the link could not be measured: half of PCIe 4.
constexpr double kLinkBytesPerNs = 12;

}  // namespace

GpuAnswers::GpuAnswers(const ModelConfig& config, DecoderModel& model, ExpertExecutor& executor,
                       ResidencyManager& residency, const Options& options, const Clock& clock)
    : config_(config),
      executor_(executor),
      residency_(residency),
      clock_(clock),
      most_copies_(options.tier.most_copies),
      tier_(options.tier, residency),
      experts_(config, model, executor, residency, tier_, clock),
      choice_(options.always),
      link_bytes_per_ns_(kLinkBytesPerNs) {
  tokens_.reserve(HybridExperts::kMostTokens);
  on_gpu_.reserve(HybridExperts::kMostTokens);
  indices_.reserve(HybridExperts::kMostTokens);
  stale_.resize(HybridExperts::kMostTokens);
}

GpuAnswers::~GpuAnswers() = default;

void GpuAnswers::Attach(GpuPrefill& gpu, std::span<const float> heat, bool page_locked) {
  gpu_ = &gpu;
  tier_.ImportHeat(heat);
  const VramSlots slots = gpu.model().vram_slots();
  if (slots.count > 0) tier_.Attach(slots, gpu.model().slot_copier());
  const auto link_gb_per_s = gpu.model().MeasureLink();
  if (link_gb_per_s.ok()) link_bytes_per_ns_ = *link_gb_per_s;  // the same unit
  if (page_locked) {
    experts_.AllowLink(static_cast<double>(residency_.stats().slot_bytes) / link_bytes_per_ns_);
  }
}

bool GpuAnswers::Wants(uint32_t tokens) const {
  return gpu_ != nullptr && gpu_->chunk() > 0 && choice_.OnGpu(tokens);
}

void GpuAnswers::Run(std::span<BatchSegment* const> segments, std::span<uint8_t> computed) {
  std::ranges::fill(computed, 0);
  for (size_t begin = 0, count = 0; begin < segments.size(); begin += count) {
    count = std::min<size_t>(HybridExperts::kMostTokens, segments.size() - begin);
    const int64_t begin_ns = clock_.NowNs();
    const Status status =
        RunTogether(segments.subspan(begin, count), computed.subspan(begin, count));
    last_step_ns_ = clock_.NowNs() - begin_ns;
    ++steps_;
    if (status.ok()) {
      choice_.Record(true, static_cast<uint32_t>(count), last_step_ns_);
      continue;
    }
    ++failed_steps_;
    // An expert that could not be read is not the GPU's fault.
    if (!experts_.failure().ok()) continue;
    gpu_->Fail(status);
    tier_.Drop();
    return;
  }
}

// Together there are at most kMostTokens a step: so many's share of it.
void GpuAnswers::RecordCpu(uint32_t tokens, int64_t ns) {
  constexpr uint32_t kMost = HybridExperts::kMostTokens;
  choice_.Record(false, tokens, tokens > kMost ? ns * kMost / tokens : ns);
}

// Marks the arrivals of before and begins copies, with what the link has to spare.
Status GpuAnswers::BeginTier(uint32_t tokens) {
  const ResidencyStats& stats = residency_.stats();
  const uint32_t cache = std::min(stats.slot_count, stats.slot_target) - stats.ring_slots;
  // The executor needs slots for a layer of one token, and gets more than that.
  tier_.set_most_copies(
      std::min(most_copies_, cache > config_.top_k ? (cache - config_.top_k) / 4 : 0));
  const double share = tier_.filling() ? kFillingShare : kSteadyShare;
  return tier_.BeginStep(tokens, static_cast<uint64_t>(share * link_bytes_per_ns_ *
                                                       static_cast<double>(last_step_ns_)));
}

// The error of those that were not computed.
Status GpuAnswers::RunTogether(std::span<BatchSegment* const> segments,
                               std::span<uint8_t> computed) {
  const auto count = static_cast<uint32_t>(segments.size());
  tokens_.clear();
  on_gpu_.clear();
  indices_.clear();
  for (uint32_t i = 0; i < count; ++i) Enqueue(*segments[i], i);
  if (on_gpu_.empty()) return OkStatus();
  residency_.BeginStep(static_cast<uint32_t>(tokens_.size()));
  RETURN_IF_ERROR(BeginTier(static_cast<uint32_t>(tokens_.size())));
  executor_.BeginStep(AcquireMode::kCached, tokens_, &tier_);
  experts_.BeginStep(tokens_);
  gpu_->model().Step(on_gpu_);
  KvMirror& mirror = gpu_->mirror();
  Status failed;
  for (size_t i = 0; i < on_gpu_.size(); ++i) {
    BatchSegment& segment = *segments[indices_[i]];
    const Status& status = on_gpu_[i].status;
    const uint32_t* const blocks = on_gpu_[i].pages;
    if (status.ok()) {
      mirror.EndDeviceWrite(blocks, on_gpu_[i].first, 1);
      segment.state->Commit(1);
      ++answered_tokens_;
    } else {
      // What was to be brought over may not have come.
      mirror.BeginWrite(blocks, 0, on_gpu_[i].first + 1);
    }
    if (status.ok() || status.code() == StatusCode::kCancelled) {
      segment.status = status;
      computed[indices_[i]] = 1;
    } else {
      failed = status;
    }
  }
  return failed;
}

void GpuAnswers::Enqueue(const BatchSegment& segment, uint32_t index) {
  CHECK(segment.tokens.size() == 1, "answers come token by token");
  SequenceState& state = *segment.state;
  if (!state.Reserve(1)) return;  // the CPU's step says what there is to say
  const uint32_t first = state.length();
  const uint32_t* const blocks = state.positions(0).blocks;
  gpu_->mirror().TakeStale(blocks, first, &stale_[index]);
  gpu_->mirror().BeginWrite(blocks, first, 1);
  const bool logits = segment.sink != nullptr && segment.logits != LogitsMode::kNone;
  on_gpu_.push_back({.tokens = segment.tokens,
                     .first = first,
                     .pages = blocks,
                     .stale = stale_[index],
                     .logits = logits ? 1u : 0u,
                     .sink = segment.sink,
                     .cancelled = segment.cancelled});
  indices_.push_back(index);
  tokens_.push_back(segment.tokens[0]);
}

GpuAnswersStats GpuAnswers::Stats() const {
  const HybridCounts& experts = experts_.counts();
  const VramTierCounts& tier = tier_.counts();
  const auto ns = [](auto value) { return static_cast<uint64_t>(value); };
  return {.tokens = answered_tokens_,
          .steps = steps_,
          .failed_steps = failed_steps_,
          .experts_in_vram = experts.in_vram,
          .experts_over_link = experts.over_link,
          .experts_on_cpu = experts.on_cpu,
          .slots = tier.slots,
          .live = tier.live,
          .promotions = tier.promotions,
          .demotions = tier.demotions,
          .copied_bytes = tier.copied_bytes,
          .cpu_expert_ns = ns(experts_.split().cpu_ns(1, 1)),
          .link_expert_ns = ns(experts_.split().link_ns()),
          .together_step_ns = ns(choice_.median_ns(true, 1)),
          .cpu_step_ns = ns(choice_.median_ns(false, 1))};
}

}  // namespace moraine
