#include "engine/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "engine/runner_impl.h"
#include "engine/slot_memory.h"

namespace moraine {
namespace {

// A model without routed experts never calls its executor.
class NoExperts final : public MoeExecutor {
 public:
  Status RunExperts(LayerId, const RoutingDecision&, const float*, float*) override {
    return Internal("a model without experts has routed tokens");
  }
};

}  // namespace

Status Runner::Impl::Forward(std::span<const int32_t> tokens, const ForwardOptions& options) {
  SequenceState& sequence = sequences_[0];
  if (tokens.empty()) return InvalidArgument("no tokens");
  if (sequence.length() + tokens.size() > max_context_) {
    return InvalidArgument(fmt::format("context length exceeded: {} tokens and {} more, the limit is "
                                       "{}", sequence.length(), tokens.size(), max_context_));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || static_cast<uint32_t>(token) >= config_.vocab_size) {
      return InvalidArgument(
          fmt::format("token id {} is not below the vocabulary's {}", token, config_.vocab_size));
    }
  }
  for (size_t begin = 0, end = 0; begin < tokens.size(); begin = end) {
    end = begin + std::min<size_t>(prefill_chunk(), tokens.size() - begin);
    const auto chunk = tokens.subspan(begin, end - begin);
    const bool last = end == tokens.size();
    BatchSegment segment = {.tokens = chunk,
                            .state = &sequence,
                            .logits = options.logits,
                            .sink = options.sink,
                            .cancelled = options.cancelled};
    if (options.logits == LogitsMode::kLast && !last) segment.logits = LogitsMode::kNone;
    // Not a prompt of one token, nor the odd one at a prompt's end; but all of it if it goes one by one.
    segment.decode = sequence.length() > 0 && (tokens.size() == 1 || options_.prefill_chunk == 1);
    Step({&segment, 1});
    RETURN_IF_ERROR(segment.status);
    if (options.on_chunk != nullptr) {
      (*options.on_chunk)(static_cast<uint32_t>(end));
    }
  }
  return OkStatus();
}

void Runner::Impl::StepOnGpu(std::span<BatchSegment> batch) {
  gpu_batch_.clear();
  for (BatchSegment& segment : batch) {
    const auto count = static_cast<uint32_t>(segment.tokens.size());
    GpuSegment on_gpu{.tokens = segment.tokens,
                      .first = segment.state->length(),
                      .sequence = static_cast<uint32_t>(segment.state - sequences_.data()),
                      .sink = segment.sink,
                      .cancelled = segment.cancelled};
    if (segment.sink != nullptr && segment.logits != LogitsMode::kNone) {
      on_gpu.logits = segment.logits == LogitsMode::kAll ? count : 1;
    }
    if (segment.state->Reserve(count)) {
      on_gpu.pages = segment.state->positions(0).blocks;
      gpu_batch_.push_back(on_gpu);
    } else {
      segment.status = ResourceExhausted("no memory for keys and values is left");
    }
  }
  gpu_->Step(gpu_batch_);
  size_t next = 0;
  for (BatchSegment& segment : batch) {
    if (!segment.status.ok()) continue;
    segment.status = std::move(gpu_batch_[next++].status);
    if (segment.status.ok()) segment.state->Commit(static_cast<uint32_t>(segment.tokens.size()));
  }
}

void Runner::Impl::Step(std::span<BatchSegment> batch) {
  if (gpu_prefill_) {
    StepWithGpu(batch);
  } else {
    Compute(batch);
  }
}

void Runner::Impl::Compute(std::span<BatchSegment> batch) {
  NoExperts no_experts;
  MoeExecutor& executor = executor_ ? static_cast<MoeExecutor&>(*executor_) : no_experts;
  size_t rows = 0;
  decode_tokens_.clear();
  for (const BatchSegment& segment : batch) {
    rows += segment.tokens.size();
    if (segment.decode) decode_tokens_.push_back(segment.tokens[0]);
  }
  const StepBegin begin = BeginTiming();
  AdvanceResize(kStepResizeBytes, /*wait=*/false);
  if (residency_) residency_->BeginStep(static_cast<uint32_t>(rows));
  if (executor_) {
    // With a piece of a prompt among them the misses stream past the cache, as that prompt's would alone.
    const bool decode = decode_tokens_.size() == rows;
    executor_->BeginStep(decode ? AcquireMode::kCached : AcquireMode::kTransient,
                         decode ? std::span<const int32_t>(decode_tokens_)
                                : std::span<const int32_t>());
  }
  if (gpu_) {
    StepOnGpu(batch);
  } else {
    model_->Forward(batch, executor);
  }
  PhaseStats step = EndTiming(begin);
  if (gpu_) step.attention_ns = 0;
  Account(batch, step);
}

Runner::Impl::StepBegin Runner::Impl::BeginTiming() const {
  return {.ns = RealClock().NowNs(),
          .executor = executor_ ? executor_->times() : ExecutorTimes{},
          .bytes_read = residency_ ? residency_->stats().bytes_read : 0};
}

PhaseStats Runner::Impl::EndTiming(const StepBegin& begin) const {
  const ExecutorTimes& before = begin.executor;
  const ExecutorTimes after = executor_ ? executor_->times() : ExecutorTimes{};
  PhaseStats step;
  step.wall_ns = RealClock().NowNs() - begin.ns;
  step.expert_ns = after.kernel_ns - before.kernel_ns;
  step.stall_ns = after.stall_ns - before.stall_ns;
  step.verify_ns = after.verify_ns - before.verify_ns;
  step.residency_ns = after.residency_ns - before.residency_ns;
  step.attention_ns = step.wall_ns - (after.total_ns - before.total_ns);
  step.bytes_read = (residency_ ? residency_->stats().bytes_read : 0) - begin.bytes_read;
  return step;
}

// A step of a prompt and of answers is shared out by tokens: they cost about the same each.
void Runner::Impl::Account(std::span<const BatchSegment> batch, const PhaseStats& step) {
  uint64_t decoded = 0, prefilled = 0;
  for (const BatchSegment& segment : batch) {
    if (segment.status.ok()) (segment.decode ? decoded : prefilled) += segment.tokens.size();
  }
  for (const bool decode : {false, true}) {
    PhaseStats& phase = decode ? decode_ : prefill_;
    const uint64_t tokens = decode ? decoded : prefilled;
    if (tokens == 0) continue;
    const double part = static_cast<double>(tokens) / static_cast<double>(decoded + prefilled);
    const auto share = [&](auto whole) {
      return static_cast<decltype(whole)>(part * static_cast<double>(whole));
    };
    ++phase.steps;
    phase.tokens += tokens;
    phase.wall_ns += share(step.wall_ns);
    phase.attention_ns += share(step.attention_ns);
    phase.expert_ns += share(step.expert_ns);
    phase.stall_ns += share(step.stall_ns);
    phase.verify_ns += share(step.verify_ns);
    phase.residency_ns += share(step.residency_ns);
    phase.bytes_read += share(step.bytes_read);
  }
}

Status Runner::Impl::Warm(WarmOrder order,
                          const std::function<void(uint64_t, uint64_t)>& progress) {
  if (!residency_) return OkStatus();
  if (order == WarmOrder::kProfile && !has_profile_) {
    return NotFound(fmt::format("{}: no profile '{}' yet", store_->directory(), options_.profile));
  }
  WarmCache(ExpertsInOrder(order, profile_), *store_, *residency_, *scheduler_, progress);
  return OkStatus();
}

// Sections of others are set here when they have changed, and read in LoadProfile.
ProfileSnapshot Runner::Impl::Snapshot() const {
  ProfileSnapshot snapshot;
  snapshot.tokens = prefill_.tokens + decode_.tokens;
  if (!residency_) return snapshot;
  const std::vector<uint32_t> counts = config_.experts_per_layer();
  for (uint32_t layer = 0; layer < counts.size(); ++layer) {
    for (uint32_t e = 0; e < counts[layer]; ++e) {
      const ExpertState state = residency_->state({LayerId(layer), ExpertId(e)});
      snapshot.resident.push_back(state == ExpertState::kReady || state == ExpertState::kLeased);
    }
  }
  snapshot.heat.resize(snapshot.resident.size());
  residency_->policy().ExportHeat(snapshot.heat);
  snapshot.co_activation = executor_->co_activation();
  snapshot.sections[kTokenSection] = token_table_->Serialize();
  return snapshot;
}

// On any thread: reads what does not change after Open.
Status Runner::Impl::SetRamBudget(const RamBudget& budget) {
  if (gpu_) return FailedPrecondition("the model is on the GPU, and has no RAM budget");
  if (!residency_) return FailedPrecondition("the model has no routed experts, and so no budget");
  ASSIGN_OR_RETURN(MemoryLimit limit, DetectMemoryLimit());
  // What this process has is available to it.
  limit.available_bytes += ReadProcessMemory().resident_bytes;
  ASSIGN_OR_RETURN(SlotPlan plan,
                   PlanSlots(store_->manifest(), config_.top_k, fixed_, budget, limit));
  if (plan.slot_count > max_slots_) {
    if (budget.kind != RamBudget::Kind::kAutomatic) {
      return InvalidArgument(fmt::format(
          "RAM budget: {} experts would be resident; the maximum set at start is {} ({}); "
          "--ram-budget-max sets another",
          plan.slot_count, max_slots_,
          FormatByteSize(fixed_.total() + max_slots_ * SlotMemory(plan.slot_bytes))));
    }
    plan.slot_count = max_slots_;
  }
  wanted_budget_bytes_.store(plan.budget_bytes, std::memory_order_relaxed);
  wanted_slots_.store(plan.slot_count, std::memory_order_relaxed);
  return OkStatus();
}

RamBudgetRange Runner::Impl::BudgetRange() const {
  const uint64_t slot_memory = SlotMemory(plan_.slot_bytes);
  const auto bytes = [&](uint64_t slots) { return fixed_.total() + slots * slot_memory; };
  return {bytes(MinimumSlots(config_.top_k)),
          bytes(wanted_slots_.load(std::memory_order_relaxed)), bytes(max_slots_)};
}

bool Runner::Impl::AdvanceResize(uint64_t work_bytes, bool wait) {
  if (!residency_) return false;
  const uint32_t wanted = wanted_slots_.load(std::memory_order_relaxed);
  if (wanted != taken_slots_) {
    taken_slots_ = wanted;
    const Status status = residency_->SetSlotTarget(wanted);
    CHECK(status.ok(), status.message());
  }
  const ResidencyStats& stats = residency_->stats();
  const bool changing = stats.slot_count != stats.slot_target || stats.closing_slots > 0;
  const int64_t begin_ns = RealClock().NowNs();
  bool more = residency_->AdvanceResize(work_bytes);
  if (more && wait) {
    // Segments can be held by reads alone: nothing is leased between steps.
    residency_->Poll(10'000'000);
    more = residency_->AdvanceResize(work_bytes);
  }
  if (changing || more) resizing_ns_ += RealClock().NowNs() - begin_ns;
  return more;
}

Status Runner::Impl::Settle(int64_t wait_ns) {
  if (!residency_) return OkStatus();
  if (gpu_answers_) gpu_answers_->Finish();
  const int64_t give_up_ns = RealClock().NowNs() + wait_ns;
  residency_->CancelPrefetches();
  while (RealClock().NowNs() < give_up_ns &&
         (AdvanceResize(kStepResizeBytes, /*wait=*/true) || !scheduler_->idle())) {
    residency_->Poll(10'000'000);
  }
  const std::vector<uint32_t> counts = config_.experts_per_layer();
  uint32_t between = 0;
  for (uint32_t layer = 0; layer < counts.size(); ++layer) {
    for (uint32_t e = 0; e < counts[layer]; ++e) {
      const ExpertState state = residency_->state({LayerId(layer), ExpertId(e)});
      between += state != ExpertState::kAbsent && state != ExpertState::kReady &&
                 state != ExpertState::kQuarantined;
    }
  }
  const ResidencyStats& stats = residency_->stats();
  if (scheduler_->idle() && residency_->leases() == 0 && between == 0 &&
      stats.closing_slots == 0 && stats.slot_count == stats.slot_target) {
    return OkStatus();
  }
  return DeadlineExceeded(fmt::format(
      "after {} ms: {} leases, {} experts neither absent nor ready, {} reads in flight, {} slots of "
      "{} wanted, {} closing",
      wait_ns / 1'000'000, residency_->leases(), between, scheduler_->reader().in_flight(),
      stats.slot_count, stats.slot_target, stats.closing_slots));
}

std::string Runner::Impl::LossyModes() const {
  std::vector<std::string> modes;
  if (options_.defer_experts > 0) modes.push_back(fmt::format("defer {}", options_.defer_experts));
  if (options_.prefer_resident > 0) {
    modes.push_back(fmt::format("prefer resident {:g}", options_.prefer_resident));
  }
  if (options_.kv_format != KvFormat::kF32) {
    modes.push_back(fmt::format("KV {}", KvFormatName(options_.kv_format)));
  }
  return fmt::format("{}", fmt::join(modes, ", "));
}

EngineStats Runner::Impl::Stats() const {
  EngineStats s;
  s.model = info_.name;
  s.store = store_->directory();
  s.uptime_ns = RealClock().NowNs() - opened_ns_;
  s.prefill = prefill_;
  s.decode = decode_;
  s.expert_count = store_->manifest().expert_count();
  s.expert_bytes = store_->manifest().expert_bytes();
  s.lossy = LossyModes();
  const KvPoolStats kv = kv_pool_->stats();
  s.kv = {.blocks = kv.blocks, .held = kv.held, .cached = kv.cached, .evicted = kv.evicted};
  const ProcessMemory process = ReadProcessMemory();
  s.memory.resident_set_bytes = process.resident_bytes;
  s.memory.peak_resident_set_bytes = process.peak_resident_bytes;
  if (gpu_) {
    const VramPlan& plan = gpu_->plan();
    s.gpu = gpu_->gpu_name();
    s.gpu_memory = {.budget_bytes = plan.budget_bytes,
                    .dense_bytes = plan.dense_bytes,
                    .kv_bytes = plan.kv_bytes,
                    .scratch_bytes = plan.scratch_bytes,
                    .expert_bytes = plan.anchored_bytes,
                    .ring_bytes = plan.ring_bytes,
                    .streamed_bytes = plan.streamed_bytes};
    return s;
  }
  if (gpu_prefill_) {
    const GpuPrefillCounts counts = gpu_prefill_->counts();
    s.gpu_prefill = {.gpu = gpu_prefill_->gpu_name(),
                     .tokens = counts.tokens,
                     .chunks = counts.chunks,
                     .copied_bytes = counts.copied_bytes,
                     .break_even_tokens = gpu_prefill_->break_even_tokens(),
                     .failures = gpu_prefill_->chunk() == 0 ? 1u : 0u};
  }
  if (gpu_answers_) s.gpu_answers = gpu_answers_->Stats();
  s.io = scheduler_->reader().name();
  s.isa = IsaName(backend_->isa());
  s.policy = options_.policy;
  s.threads = pool_->thread_count();
  s.reads = scheduler_->stats();
  if (mirrored_ != nullptr) s.drives = mirrored_->drive_stats();
  s.memory.budget_bytes = wanted_budget_bytes_.load(std::memory_order_relaxed);
  s.memory.dense_bytes = fixed_.dense_bytes;
  s.memory.kv_bytes = fixed_.kv_bytes;
  s.memory.slot_bytes = segments_->mapped_bytes();
  s.memory.scratch_bytes = fixed_.scratch_bytes;
  if (!residency_) return s;
  s.residency = residency_->stats();
  const std::vector<uint32_t> counts = config_.experts_per_layer();
  for (uint32_t layer = 0; layer < counts.size(); ++layer) {
    if (counts[layer] == 0) continue;
    LayerStats entry;
    entry.layer = layer;
    entry.experts = counts[layer];
    entry.stall_ns = executor_->stall_ns_per_layer()[layer];
    for (uint32_t e = 0; e < counts[layer]; ++e) {
      const ExpertKey key{LayerId(layer), ExpertId(e)};
      const ExpertState state = residency_->state(key);
      if (state == ExpertState::kReady || state == ExpertState::kLeased) ++entry.resident;
      const LookupCounters& counters = residency_->counters(key);
      entry.lookups.hit += counters.hit;
      entry.lookups.cold_miss += counters.cold_miss;
      entry.lookups.in_flight_miss += counters.in_flight_miss;
      entry.lookups.prefetch_hit += counters.prefetch_hit;
    }
    s.layers.push_back(entry);
  }
  return s;
}

Runner::Runner() : impl_(std::make_unique<Impl>()) {}
Runner::~Runner() = default;

Result<std::unique_ptr<Runner>> Runner::Open(const RunnerOptions& options) {
  if (!options.tuned.empty()) return OpenTuned(options);
  std::unique_ptr<Runner> runner(new Runner());
  RETURN_IF_ERROR(runner->impl_->Open(options));
  return runner;
}

// A budget of the same class, or a machine with more going on, may lack what a longer chunk takes.
Result<std::unique_ptr<Runner>> Runner::OpenTuned(const RunnerOptions& options) {
  RunnerOptions untuned = options, tuned = options;
  untuned.tuned = tuned.tuned = {};
  const TunedSettings& found = options.tuned;
  if (found.threads) tuned.threads = *found.threads;
  if (found.prefill_chunk) tuned.prefill_chunk = *found.prefill_chunk;
  if (found.lookahead) tuned.lookahead = *found.lookahead;
  if (found.io) tuned.io.kind = *found.io;
  if (found.gpu_prefill_tokens) tuned.gpu_prefill_tokens = *found.gpu_prefill_tokens;
  auto runner = Open(tuned);
  if (runner.ok()) {
    LOG_INFO("tuned for this machine: {}", found.ToText());
    return runner;
  }
  const StatusCode code = runner.status().code();
  if (code != StatusCode::kResourceExhausted && code != StatusCode::kInvalidArgument) return runner;
  auto without = Open(untuned);
  if (without.ok()) {
    LOG_WARN("going on without what was tuned ({}): {}", found.ToText(), runner.status().message());
  }
  return without;
}

void Runner::SetLookahead(bool on) {
  if (impl_->executor_) impl_->executor_->set_lookahead(on);
}

void Runner::SetRoutingRecorder(RoutingRecorder* recorder) {
  if (impl_->executor_) impl_->executor_->set_recorder(recorder);
  impl_->recording_ = recorder != nullptr;
}

void Runner::SetLayerListener(std::function<void()> listener) {
  if (impl_->executor_) impl_->executor_->set_layer_listener(std::move(listener));
}

void Runner::ResetSequence() { impl_->sequences_[0].Reset(); }
uint32_t Runner::position() const { return impl_->sequences_[0].length(); }
uint32_t Runner::sequence_count() const { return impl_->options_.max_sequences; }
SequenceState& Runner::sequence(uint32_t index) { return impl_->sequences_[index]; }
KvPool& Runner::kv_pool() { return *impl_->kv_pool_; }
PrefixDisk* Runner::prefix_disk() { return impl_->prefix_disk_.get(); }
uint32_t Runner::prefill_chunk() const { return impl_->prefill_chunk(); }
uint32_t Runner::step_tokens() const {
  return std::max(impl_->prefill_chunk(), impl_->step_tokens());
}
void Runner::Step(std::span<BatchSegment> batch) { impl_->Step(batch); }
GpuModel* Runner::gpu() { return impl_->gpu_.get(); }
const GpuPrefill* Runner::gpu_prefill() const { return impl_->gpu_prefill_.get(); }
const GpuAnswers* Runner::gpu_answers() const { return impl_->gpu_answers_.get(); }
Status Runner::Forward(std::span<const int32_t> tokens, const ForwardOptions& options) {
  return impl_->Forward(tokens, options);
}
Status Runner::Warm(WarmOrder order, const std::function<void(uint64_t, uint64_t)>& progress) {
  return impl_->Warm(order, progress);
}

Status Runner::SetRamBudget(const RamBudget& budget) { return impl_->SetRamBudget(budget); }
RamBudgetRange Runner::ram_budget_range() const { return impl_->BudgetRange(); }
bool Runner::AdvanceResize(uint64_t work_bytes) {
  return impl_->AdvanceResize(work_bytes, /*wait=*/true);
}
Status Runner::Settle(int64_t wait_ns) { return impl_->Settle(wait_ns); }

uint64_t Runner::tokens() const { return impl_->prefill_.tokens + impl_->decode_.tokens; }
ProfileSnapshot Runner::Snapshot() const { return impl_->Snapshot(); }
const WorkloadProfile& Runner::profile() const { return impl_->profile_; }
Status Runner::SaveProfile() {
  if (!impl_->residency_) return OkStatus();
  WorkloadProfile& profile = impl_->profile_;
  const ProfileSnapshot snapshot = impl_->Snapshot();
  profile.Learn(snapshot, snapshot.tokens - std::exchange(impl_->learnt_tokens_, snapshot.tokens),
                std::time(nullptr));
  impl_->has_profile_ = true;
  return profile.Save(*impl_->store_, impl_->options_.profile);
}

const ModelConfig& Runner::config() const { return impl_->config_; }
const ModelInfo& Runner::info() const { return impl_->info_; }
Store& Runner::store() { return *impl_->store_; }
const Store& Runner::store() const { return *impl_->store_; }
uint32_t Runner::max_context() const { return impl_->max_context_; }
EngineStats Runner::Stats() const { return impl_->Stats(); }
const PhaseStats& Runner::prefill_stats() const { return impl_->prefill_; }
int64_t Runner::resizing_ns() const { return impl_->resizing_ns_; }
const PhaseStats& Runner::decode_stats() const { return impl_->decode_; }
const ResidencyManager* Runner::residency() const { return impl_->residency_.get(); }
void Runner::CheckInvariants() const {
  if (impl_->residency_) impl_->residency_->CheckInvariants();
  impl_->kv_pool_->CheckInvariants();
  if (impl_->prefix_disk_) impl_->prefix_disk_->CheckInvariants();
}

}  // namespace moraine
