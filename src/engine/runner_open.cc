#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/fixed_memory.h"
#include "engine/gpu/gpu_support.h"
#include "engine/generation_config.h"
#include "engine/manifest_check.h"
#include "engine/runner_impl.h"
#include "store/profile_section.h"
#include "store/record_checksum.h"

namespace moraine {
namespace {

// A read that takes this long is not coming: a busy drive answers in milliseconds, a SATA disk that
// retries a bad sector gives up after 7 to 20 s. The request fails, the slot waits for the device.
constexpr int64_t kReadDeadlineNs = 30'000'000'000;

// --parallel unless it is given: batches of 8 already read an expert for more than two tokens on average;
// fewer where each sequence takes recurrent state (158 MB for Qwen3-Next).
constexpr uint32_t kDefaultSequences = 8, kDefaultRecurrentSequences = 4;

}  // namespace

Status Runner::Impl::Open(const RunnerOptions& options) {
  options_ = options;
  options_.gpu_prefill |= options.gpu_hybrid;
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
  info_.max_sequences = options_.max_sequences;
  if (options.gpu && options_.gpu_prefill) {
    return InvalidArgument("everything on a GPU, or only prompts: not both");
  }
  if (!options.gpu && options.gpus.size() > 1) {
    return InvalidArgument("several GPUs compute everything or nothing: prompts only is for one");
  }
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
  OpenPrefixDisk(isa);
  RETURN_IF_ERROR(OpenResidency(topology));
  ASSIGN_OR_RETURN(dense_, DenseWeights::Load(*store_));
  model_ = std::make_unique<DecoderModel>(config_, *dense_, *backend_, step_tokens());
  if (options_.gpu_prefill) OpenGpuPrefill(options.prefill_chunk);
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

// The identity is all that a bit of keys and values depends on: the weights (a store's UUID is its own), how
// they are computed, and how they are kept.
void Runner::Impl::OpenPrefixDisk(Isa isa) {
  if (options_.prefix_disk.directory.empty()) return;
  if (SequenceState::RecurrentBytes(StateShapesOf(config_, options_.kv_format)) > 0) {
    LOG_WARN("{} has recurrent state, so there is no prefix cache to keep on disk", info_.name);
    return;
  }
  if (options_.gpu_prefill) {
    // The GPU's copy of a block would not learn that another's content came from the disk, nor is what it
    // computes to the bit what a CPU's identity promises.
    LOG_WARN("the prefix cache stays in memory only: prompts are computed on a GPU");
    return;
  }
  const std::string identity =
      fmt::format("store {} KV {} ISA {} lossy '{}' moraine {}", store_->manifest().store_uuid,
                  KvFormatName(options_.kv_format), IsaName(isa), LossyModes(), MORAINE_VERSION);
  auto disk = PrefixDisk::Open(options_.prefix_disk, identity, *kv_pool_);
  if (!disk.ok()) {
    LOG_WARN("the prefix cache stays in memory only: {}", disk.status().ToString());
    return;
  }
  prefix_disk_ = std::move(*disk);
}

Status Runner::Impl::OpenGpu() {
  if (!options_.prefix_disk.directory.empty()) {
    return InvalidArgument("a prefix cache on disk is of keys and values in memory; on a GPU there are none");
  }
  if (options_.defer_experts > 0 || options_.prefer_resident > 0) {
    return InvalidArgument("the lossy modes depend on what is in memory; on a GPU there are none");
  }
  ASSIGN_OR_RETURN(gpu_, GpuModel::Open(*store_, config_, layouts_,
                                        {.vram_budget_bytes = options_.vram_budget_bytes,
                                         .gpus = options_.gpus,
                                         .max_context = kv_tokens_,
                                         .prefill_chunk = options_.prefill_chunk,
                                         .kv_format = options_.kv_format,
                                         .max_sequences = options_.max_sequences,
                                         .io = options_.io,
                                         .link_limit_bytes_per_s = options_.link_limit_bytes_per_s,
                                         .threads = options_.threads,
                                         .progress = options_.gpu_progress}));
  options_.gpu_progress = nullptr;
  options_.prefill_chunk = gpu_->max_chunk();
  // Which pages of VRAM are whose is told by the blocks of a pool that has next to no memory of its own.
  static_assert(kGpuPagePositions == kKvBlockPositions);
  CHECK(gpu_->page_count() >= KvPool::BlocksFor(kv_tokens_), "fewer pages than blocks");
  // So does what says that a sequence cannot go back.
  const uint64_t recurrent_bytes = HasRecurrentState(config_) ? 1 : 0;
  RETURN_IF_ERROR(OpenSequences(
      {LayerStateShape{.position_bytes = 1, .recurrent_bytes = recurrent_bytes}}));
  gpu_batch_.reserve(options_.max_sequences);
  LOG_INFO("{}: {}", gpu_->gpu_name(), gpu_->plan().ToText());
  return OkStatus();
}

// Slots and, unless it was given, the prefill chunk: first with the default chunk, then with what the slots
// spare, if the minimum still fits.
Status Runner::Impl::PlanMemory(const Manifest& manifest, const MemoryLimit& limit) {
  const auto fixed_with = [&](uint32_t chunk) {
    FixedMemory fixed = CountFixedMemory(manifest, config_,
                                         {.context = kv_tokens_,
                                          .sequences = options_.max_sequences,
                                          .step_tokens = std::max(chunk, options_.max_sequences),
                                          .kv_format = options_.kv_format});
    if (!options_.prefix_disk.directory.empty()) {
      fixed.kv_bytes += PrefixDisk::MemoryBytes(StateShapesOf(config_, options_.kv_format),
                                                options_.prefix_disk.budget_bytes);
    }
    return fixed;
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
  if (options_.gpu_prefill && options_.gpu_model_factory) {
    // A played GPU reads all memory.
    segments.page_lock = [](std::span<std::byte>) { return Result<std::shared_ptr<void>>(nullptr); };
  } else if (options_.gpu_prefill && FindGpu().ok()) {
    segments.page_lock = LockForGpu;
  }
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
    executor_ = std::make_unique<ExpertExecutor>(config_, layouts_, *residency_,
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

}  // namespace moraine
