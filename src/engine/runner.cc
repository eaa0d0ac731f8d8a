#include "engine/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include "base/log.h"
#include "compute/cpu_backend.h"
#include "engine/dense_weights.h"
#include "engine/expert_executor.h"
#include "engine/fixed_memory.h"
#include "engine/generation_config.h"
#include "engine/gpu/gpu_model.h"
#include "engine/manifest_check.h"
#include "engine/slot_memory.h"
#include "engine/store_record_source.h"
#include "io/mirrored_reader.h"
#include "model/decoder_model.h"
#include "model/kv_pool.h"
#include "model/sequence_state.h"
#include "residency/slot_segments.h"
#include "store/profile_section.h"
#include "store/record_checksum.h"

namespace moraine {
namespace {

// What a change of budget may move before a chunk: 64 MiB are copied or zeroed in about 10 ms.
constexpr uint64_t kStepResizeBytes = 64 * kMiB;

constexpr char kTokenSection[] = "token_experts";  // of the profile: TokenExpertTable

// A read that takes this long is not coming: a busy drive answers in milliseconds, a SATA disk that
// retries a bad sector gives up after 7 to 20 s. The request fails, the slot waits for the device.
constexpr int64_t kReadDeadlineNs = 30'000'000'000;

// --parallel unless it is given: batches of 8 already read an expert for more than two tokens on average;
// fewer where each sequence takes recurrent state (158 MB for Qwen3-Next).
constexpr uint32_t kDefaultSequences = 8, kDefaultRecurrentSequences = 4;

}  // namespace

class Runner::Impl {
 public:
  Status Open(const RunnerOptions& options);
  Status Forward(std::span<const int32_t> tokens, const ForwardOptions& options);
  void Step(std::span<BatchSegment> batch);
  void Account(std::span<const BatchSegment> batch, const PhaseStats& step);
  Status Warm(WarmOrder order, const std::function<void(uint64_t, uint64_t)>& progress);
  ProfileSnapshot Snapshot() const;
  Status LoadProfile();
  void SetProfileAside(const Status& why);
  EngineStats Stats() const;
  std::string LossyModes() const;

  Result<std::vector<FileId>> OpenPacks(std::unique_ptr<BlockReader>* reader);
  Status PlanMemory(const Manifest& manifest, const MemoryLimit& limit);
  uint32_t step_tokens() const { return std::max(options_.prefill_chunk, options_.max_sequences); }
  Status OpenSequences(const std::vector<LayerStateShape>& shapes);
  Status OpenGpu();
  void StepOnGpu(std::span<BatchSegment> batch);
  Status OpenResidency(const Topology& topology);
  Status SetRamBudget(const RamBudget& budget);
  RamBudgetRange BudgetRange() const;
  bool AdvanceResize(uint64_t work_bytes, bool wait);
  Status Settle(int64_t wait_ns);

  RunnerOptions options_;
  ModelConfig config_;
  ModelInfo info_;
  uint32_t kv_tokens_ = 0, max_context_ = 0;  // of all sequences; of one
  std::vector<ExpertLayout> layouts_;  // moved into executor_
  SlotPlan plan_;
  FixedMemory fixed_;
  uint32_t max_slots_ = 0;
  // Written by SetRamBudget on any thread, taken up by AdvanceResize. relaxed: each stands for itself.
  std::atomic<uint32_t> wanted_slots_{0};
  std::atomic<uint64_t> wanted_budget_bytes_{0};
  uint32_t taken_slots_ = 0;  // of wanted_slots_
  WorkloadProfile profile_;
  bool has_profile_ = false;
  uint64_t learnt_tokens_ = 0;  // by SaveProfile
  int64_t opened_ns_ = 0;
  PhaseStats prefill_, decode_;

  // In order of construction; destroyed in reverse: residency waits for reads before segments go.
  std::unique_ptr<Store> store_;
  std::unique_ptr<DenseWeights> dense_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<CpuBackend> backend_;
  std::unique_ptr<KvPool> kv_pool_;
  std::vector<SequenceState> sequences_;
  std::vector<int32_t> decode_tokens_;  // of a step
  std::unique_ptr<SlotSegments> segments_;
  std::unique_ptr<ReadScheduler> scheduler_;
  const MirroredReader* mirrored_ = nullptr;  // the scheduler's reader, if the store has a mirror
  std::unique_ptr<StoreRecordSource> source_;
  std::unique_ptr<ResidencyManager> residency_;
  std::unique_ptr<TokenExpertTable> token_table_;
  std::unique_ptr<ExpertExecutor> executor_;
  std::unique_ptr<DecoderModel> model_;
  // Instead of all of these but the store.
  std::unique_ptr<GpuModel> gpu_;
  std::vector<GpuSegment> gpu_batch_;  // of a step
};

Status Runner::Impl::Open(const RunnerOptions& options) {
  options_ = options;
  opened_ns_ = RealClock().NowNs();
  ASSIGN_OR_RETURN(store_, Store::Open(options.store_directory, options.store_mode));
  const Manifest& manifest = store_->manifest();
  ASSIGN_OR_RETURN(config_, ParseModelConfig(manifest.model_config,
                                             options.store_directory + ": config.json"));
  auto layouts = ReadLayouts(manifest, config_);
  if (!layouts.ok()) return layouts.status().WithContext(options.store_directory);
  layouts_ = std::move(*layouts);
  const Status dense = CheckDense(manifest, config_);
  if (!dense.ok()) return dense.WithContext(options.store_directory);
  info_ = {.name = manifest.source.description,
           .architecture = config_.model_type,
           .max_context = 0,
           .vocab_size = config_.vocab_size,
           .eos_tokens = config_.eos_tokens};
  AddEosTokens(manifest, config_.vocab_size, &info_.eos_tokens);
  if (options.max_sequences == 0) {
    const uint64_t recurrent =
        SequenceState::RecurrentBytes(StateShapesOf(config_, options.kv_format));
    options_.max_sequences = recurrent > 0 ? kDefaultRecurrentSequences : kDefaultSequences;
  }
  const uint64_t most_tokens = uint64_t{config_.max_position} * options_.max_sequences;
  if (options.max_context > most_tokens) {
    return InvalidArgument(fmt::format("--max-context is {}, the model allows at most {}{}",
                                       options.max_context, config_.max_position,
                                       options_.max_sequences == 1 ? "" : " a sequence"));
  }
  kv_tokens_ = options.max_context > 0 ? options.max_context
                                       : std::min(config_.max_position, kDefaultContext);
  max_context_ = std::min(kv_tokens_, config_.max_position);
  info_.max_context = max_context_;
  if (options.gpu) return OpenGpu();

  ASSIGN_OR_RETURN(const Isa isa, ChooseIsa(options.isa));
  ASSIGN_OR_RETURN(const MemoryLimit limit, DetectMemoryLimit());
  // The plan first: a budget that is too small must say so before gigabytes have been read.
  RETURN_IF_ERROR(PlanMemory(manifest, limit));
  max_slots_ = plan_.slot_count;
  if (options.ram_budget_max) {
    ASSIGN_OR_RETURN(const SlotPlan most, PlanSlots(manifest, config_.top_k, fixed_,
                                                    *options.ram_budget_max, limit));
    if (most.slot_count < plan_.slot_count) {
      return InvalidArgument(fmt::format("the maximum RAM budget holds {} experts, the RAM budget {}",
                                         most.slot_count, plan_.slot_count));
    }
    max_slots_ = most.slot_count;
  }
  wanted_slots_ = taken_slots_ = plan_.slot_count;
  wanted_budget_bytes_ = plan_.budget_bytes;

  const Topology topology = Topology::Detect();
  pool_ = std::make_unique<ThreadPool>(topology, ThreadPoolOptions{options.threads, true});
  backend_ = std::make_unique<CpuBackend>(isa, *pool_, step_tokens(),
                                          DecoderModel::WidestInput(config_));
  RETURN_IF_ERROR(OpenSequences(StateShapesOf(config_, options_.kv_format)));
  RETURN_IF_ERROR(OpenResidency(topology));
  ASSIGN_OR_RETURN(dense_, DenseWeights::Load(*store_));
  model_ = std::make_unique<DecoderModel>(config_, *dense_, *backend_, step_tokens());
  return OkStatus();
}

Status Runner::Impl::OpenSequences(const std::vector<LayerStateShape>& shapes) {
  ASSIGN_OR_RETURN(kv_pool_, KvPool::Create(shapes, options_.kv_format,
                                            KvPool::BlocksFor(kv_tokens_)));
  sequences_.reserve(options_.max_sequences);
  for (uint32_t i = 0; i < options_.max_sequences; ++i) {
    ASSIGN_OR_RETURN(SequenceState state,
                     SequenceState::Create(shapes, kv_pool_.get(), max_context_));
    sequences_.push_back(std::move(state));
  }
  decode_tokens_.reserve(step_tokens());
  return OkStatus();
}

Status Runner::Impl::OpenGpu() {
  if (options_.defer_experts > 0 || options_.prefer_resident > 0) {
    return InvalidArgument("the lossy modes depend on what is in memory; on a GPU there are none");
  }
  ASSIGN_OR_RETURN(gpu_, GpuModel::Open(*store_, config_, layouts_,
                                        {.vram_budget_bytes = options_.vram_budget_bytes,
                                         .max_context = kv_tokens_,
                                         .prefill_chunk = options_.prefill_chunk,
                                         .kv_format = options_.kv_format,
                                         .io = options_.io,
                                         .threads = options_.threads,
                                         .progress = options_.gpu_progress}));
  options_.gpu_progress = nullptr;
  options_.prefill_chunk = gpu_->max_chunk();
  // Which pages of VRAM are whose is told by the blocks of a pool that has next to no memory of its own.
  static_assert(kGpuPagePositions == kKvBlockPositions);
  CHECK(gpu_->page_count() >= KvPool::BlocksFor(kv_tokens_), "fewer pages than blocks");
  RETURN_IF_ERROR(OpenSequences({LayerStateShape{.position_bytes = 1}}));
  gpu_batch_.reserve(options_.max_sequences);
  LOG_INFO("{}: {}", gpu_->gpu_name(), gpu_->plan().ToText());
  return OkStatus();
}

void Runner::Impl::StepOnGpu(std::span<BatchSegment> batch) {
  gpu_batch_.clear();
  for (BatchSegment& segment : batch) {
    const auto count = static_cast<uint32_t>(segment.tokens.size());
    GpuSegment on_gpu{.tokens = segment.tokens,
                      .first = segment.state->length(),
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

// Slots and, unless it was given, the prefill chunk: first with the default chunk, then with what the slots
// spare, if the minimum still fits.
Status Runner::Impl::PlanMemory(const Manifest& manifest, const MemoryLimit& limit) {
  const auto fixed_with = [&](uint32_t chunk) {
    return CountFixedMemory(manifest, config_,
                            {.context = kv_tokens_,
                             .sequences = options_.max_sequences,
                             .step_tokens = std::max(chunk, options_.max_sequences),
                             .kv_format = options_.kv_format});
  };
  const bool choose = options_.prefill_chunk == 0;
  if (choose) options_.prefill_chunk = RunnerOptions().prefill_chunk;
  options_.prefill_chunk = std::min(options_.prefill_chunk, max_context_);
  fixed_ = fixed_with(options_.prefill_chunk);
  ASSIGN_OR_RETURN(plan_, PlanSlots(manifest, config_.top_k, fixed_, options_.ram_budget, limit));
  if (!choose || plan_.all_resident) return OkStatus();
  const uint32_t chunk =
      ChoosePrefillChunk(max_context_, plan_.slot_count * plan_.slot_bytes,
                         [&](uint32_t tokens) { return fixed_with(tokens).scratch_bytes; });
  const FixedMemory fixed = fixed_with(chunk);
  const auto plan = PlanSlots(manifest, config_.top_k, fixed, options_.ram_budget, limit);
  if (!plan.ok()) return OkStatus();
  options_.prefill_chunk = chunk;
  fixed_ = fixed;
  plan_ = *plan;
  return OkStatus();
}

// Puts a MirroredReader in front of the reader if the store has a mirror.
Result<std::vector<FileId>> Runner::Impl::OpenPacks(std::unique_ptr<BlockReader>* reader) {
  std::vector<FileId> files;
  const DriveSet& drives = store_->drives();
  if (!drives.mirror) {
    for (const std::string& path : store_->expert_pack_paths()) {
      ASSIGN_OR_RETURN(const FileId file, (*reader)->OpenFile(path));
      files.push_back(file);
    }
    return files;
  }
  std::vector<MirroredReader::Drive> mirrored_drives;
  for (const DriveSet::Drive& drive : drives.ExpertDrives(store_->directory())) {
    mirrored_drives.push_back({drive.directory, drive.weight});
  }
  auto mirrored = std::make_unique<MirroredReader>(std::move(*reader), mirrored_drives);
  for (uint32_t pack = 0; pack < store_->expert_pack_paths().size(); ++pack) {
    const std::vector<std::string> paths = store_->expert_pack_copies(pack);
    ASSIGN_OR_RETURN(const FileId file,
                     mirrored->OpenCopies({{paths[0], pack % drives.stripe_count()},
                                           {paths[1], drives.stripe_count()}}));
    files.push_back(file);
  }
  mirrored_ = mirrored.get();
  *reader = std::move(mirrored);
  return files;
}

Status Runner::Impl::OpenResidency(const Topology& topology) {
  ASSIGN_OR_RETURN(std::unique_ptr<BlockReader> reader,
                   options_.reader_factory ? options_.reader_factory()
                                           : CreateBlockReader(options_.io));
  ASSIGN_OR_RETURN(std::vector<FileId> files, OpenPacks(&reader));
  SlotSegmentsOptions segments;
  segments.slot_bytes = std::max<uint64_t>(plan_.slot_bytes, 4096);
  segments.max_slots = max_slots_;
  segments.reader = reader.get();
  if (topology.nodes.size() > 1) {
    segments.numa_nodes.clear();
    for (const NumaNode& node : topology.nodes) segments.numa_nodes.push_back(node.id);
  }
  segments_ = std::make_unique<SlotSegments>(std::move(segments));
  scheduler_ = std::make_unique<ReadScheduler>(
      std::move(reader), ReadSchedulerOptions{.chunk_alignment = kChecksumPieceBytes});
  source_ = std::make_unique<StoreRecordSource>(
      *store_, std::move(files), segments_->segment_count() * segments_->slots_per_segment(), *pool_);

  ResidencyOptions residency;
  residency.experts_per_layer = config_.experts_per_layer();
  residency.top_k = config_.top_k;
  residency.slot_count = plan_.slot_count;
  residency.max_slot_count = max_slots_;
  residency.policy = options_.policy;
  residency.read_deadline_ns = kReadDeadlineNs;
  if (plan_.slot_count > 0) {
    ASSIGN_OR_RETURN(residency_,
                     ResidencyManager::Create(residency, *segments_, *source_, *scheduler_));
    executor_ = std::make_unique<ExpertExecutor>(config_, std::move(layouts_), *residency_,
                                                 *backend_, step_tokens());
    executor_->set_lookahead(options_.lookahead);
    token_table_ = std::make_unique<TokenExpertTable>(config_.vocab_size, config_.top_k);
    executor_->set_token_table(token_table_.get());
    executor_->set_deferral(options_.defer_experts);
    executor_->set_resident_preference(options_.prefer_resident);
    RETURN_IF_ERROR(LoadProfile());
  }
  return OkStatus();
}

Status Runner::Impl::LoadProfile() {
  RETURN_IF_ERROR(CheckProfileName("profile", options_.profile));
  const ModelIdentity identity = IdentityOf(store_->manifest(), config_.top_k);
  profile_ = WorkloadProfile::Empty(identity);
  auto loaded = WorkloadProfile::Load(*store_, options_.profile, identity);
  if (!loaded.ok()) {
    if (loaded.status().code() != StatusCode::kNotFound) SetProfileAside(loaded.status());
    return OkStatus();
  }
  profile_ = std::move(*loaded);
  has_profile_ = true;
  residency_->policy().ImportHeat(profile_.PolicyHeat());
  executor_->co_activation().Import(profile_.co_activation);
  // Whoever keeps a section of its own reads it here and sets it in Snapshot.
  if (const std::string* const tokens = profile_.FindSection(kTokenSection)) {
    const Status restored = token_table_->Restore(*tokens, config_.expert_count);
    if (!restored.ok()) LOG_WARN("going on without a token table: {}", restored.ToString());
  }
  return OkStatus();
}

// One that cannot be used keeps nobody from serving, and is not overwritten by what is learnt now.
void Runner::Impl::SetProfileAside(const Status& why) {
  LOG_WARN("going on without a profile: {}", why.ToString());
  if (store_->mode() != StoreMode::kReadWrite) return;
  const std::string aside = options_.profile.substr(0, 56) + ".damaged";
  const Status renamed = store_->RenameProfile(options_.profile, aside);
  if (renamed.ok()) {
    LOG_WARN("profile '{}' is now called '{}'", options_.profile, aside);
  } else {
    LOG_WARN("profile '{}' could not be set aside: {}", options_.profile, renamed.ToString());
  }
}

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
  for (size_t begin = 0; begin < tokens.size(); begin += options_.prefill_chunk) {
    const auto chunk =
        tokens.subspan(begin, std::min<size_t>(options_.prefill_chunk, tokens.size() - begin));
    const bool last = begin + chunk.size() == tokens.size();
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
      (*options.on_chunk)(static_cast<uint32_t>(begin + chunk.size()));
    }
  }
  return OkStatus();
}

void Runner::Impl::Step(std::span<BatchSegment> batch) {
  NoExperts no_experts;
  MoeExecutor& executor = executor_ ? static_cast<MoeExecutor&>(*executor_) : no_experts;
  size_t rows = 0;
  decode_tokens_.clear();
  for (const BatchSegment& segment : batch) {
    rows += segment.tokens.size();
    if (segment.decode) decode_tokens_.push_back(segment.tokens[0]);
  }
  const int64_t start = RealClock().NowNs();
  const ExecutorTimes before = executor_ ? executor_->times() : ExecutorTimes{};
  const uint64_t bytes_before = residency_ ? residency_->stats().bytes_read : 0;
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
  const int64_t model_ns = gpu_ ? 0 : RealClock().NowNs() - start;
  const ExecutorTimes after = executor_ ? executor_->times() : ExecutorTimes{};
  PhaseStats step;
  step.expert_ns = after.kernel_ns - before.kernel_ns;
  step.stall_ns = after.stall_ns - before.stall_ns;
  step.verify_ns = after.verify_ns - before.verify_ns;
  step.residency_ns = after.residency_ns - before.residency_ns;
  step.attention_ns = model_ns - (after.total_ns - before.total_ns);
  step.bytes_read = (residency_ ? residency_->stats().bytes_read : 0) - bytes_before;
  step.wall_ns = RealClock().NowNs() - start;
  Account(batch, step);
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
  if (!residency_->AdvanceResize(work_bytes)) return false;
  if (!wait) return true;
  // Segments can be held by reads alone: nothing is leased between steps.
  residency_->Poll(10'000'000);
  return residency_->AdvanceResize(work_bytes);
}

Status Runner::Impl::Settle(int64_t wait_ns) {
  if (!residency_) return OkStatus();
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
  std::unique_ptr<Runner> runner(new Runner());
  RETURN_IF_ERROR(runner->impl_->Open(options));
  return runner;
}

void Runner::SetLookahead(bool on) {
  if (impl_->executor_) impl_->executor_->set_lookahead(on);
}

void Runner::SetRoutingRecorder(RoutingRecorder* recorder) {
  if (impl_->executor_) impl_->executor_->set_recorder(recorder);
}

void Runner::ResetSequence() { impl_->sequences_[0].Reset(); }
uint32_t Runner::position() const { return impl_->sequences_[0].length(); }
uint32_t Runner::sequence_count() const { return impl_->options_.max_sequences; }
SequenceState& Runner::sequence(uint32_t index) { return impl_->sequences_[index]; }
KvPool& Runner::kv_pool() { return *impl_->kv_pool_; }
uint32_t Runner::prefill_chunk() const { return impl_->options_.prefill_chunk; }
uint32_t Runner::step_tokens() const { return impl_->step_tokens(); }
void Runner::Step(std::span<BatchSegment> batch) { impl_->Step(batch); }
GpuModel* Runner::gpu() { return impl_->gpu_.get(); }
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
const PhaseStats& Runner::decode_stats() const { return impl_->decode_; }
const ResidencyManager* Runner::residency() const { return impl_->residency_.get(); }
void Runner::CheckInvariants() const {
  if (impl_->residency_) impl_->residency_->CheckInvariants();
  impl_->kv_pool_->CheckInvariants();
}

}  // namespace moraine
