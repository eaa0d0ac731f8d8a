// Runner: the model over a store, on the calling thread. `eval` and tests use it directly; Engine
// runs one on its thread.
//
// This is where model, residency and compute meet: Runner owns the dense weights, the slots, the
// residency manager and the I/O, and implements the model's MoeExecutor: leases for the resident
// experts, one batched submit for the missing, resident ones computed while misses land, outputs
// summed in router order.
//
// Threads: owned by one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "compute/kv_format.h"
#include "engine/budget.h"
#include "engine/cache_warmer.h"
#include "engine/prefix_disk_options.h"
#include "engine/routing_recorder.h"
#include "engine/stats.h"
#include "engine/tuned_settings.h"
#include "engine/workload_profile.h"
#include "io/block_reader.h"
#include "model/batch_segment.h"
#include "model/config.h"
#include "store/store.h"

namespace moraine {

class GpuModel;
struct GpuModelOptions;

struct RunnerOptions {
  std::string store_directory;
  StoreMode store_mode = StoreMode::kReadOnly;
  RamBudget ram_budget;         // default: from the machine
  std::optional<RamBudget> ram_budget_max;  // what SetRamBudget may ask for; default: ram_budget
  std::string policy = "heat";
  BlockReaderOptions io;
  // Replaces CreateBlockReader(io), so that tests can inject a device with faults.
  std::function<Result<std::unique_ptr<BlockReader>>()> reader_factory;
  std::string isa;              // "": the best
  int threads = 0;              // 0: one per CPU
  uint32_t max_context = 0;     // tokens of KV, of all sequences; 0: the model's, at most 4096
  uint32_t max_sequences = 1;   // that are computed together; 0: 8, of a model with recurrent state 4
  KvFormat kv_format = KvFormat::kF32;  // the others are lossy
  uint32_t prefill_chunk = 512; // tokens; 0: 512 to 2048, by what the budget spares
  // Everything but sampling on an NVIDIA GPU (gpu/gpu_model.h). Budget, policy, ISA, lookahead and the lossy
  // modes are the CPU's and have no effect, prefill_chunk 0 means chosen by the VRAM budget, and
  // kv_format is bf16 or f32, which is float32 throughout: prompts at the speed of decode.
  bool gpu = false;
  uint64_t vram_budget_bytes = 0;  // of each GPU; 0: what is free, but for a reserve
  std::vector<uint32_t> gpus;      // by number, which divide the layers; empty: the first; several only with gpu
  // Or prompts on a GPU and answers on the CPU (gpu_prefill.h): all of the CPU's options hold, kv_format is
  // bf16 (or f32, as above), and the longest chunk is the GPU's. Where there is no GPU, or not enough of it,
  // that is logged and all is computed on the CPU.
  bool gpu_prefill = false;
  uint32_t gpu_prefill_tokens = 0;  // of the shortest piece of a prompt that goes there; 0: found out
  // And answers on both together (gpu_answers.h); implies gpu_prefill. Not with the lossy modes. always: as long as it
  // works; otherwise where it is faster than the CPU alone, which is timed now and then.
  bool gpu_hybrid = false, gpu_hybrid_always = false;
  double link_limit_bytes_per_s = 0;  // above 0: emulates a slower link (gpu/gpu_model.h)
  // Replaces GpuModel::Open for it, so that tests need no GPU.
  std::function<Result<std::unique_ptr<GpuModel>>(const GpuModelOptions&)> gpu_model_factory;
  // Told how much of the weights a GPU has; on the thread that opens.
  std::function<void(uint64_t done_bytes, uint64_t total_bytes)> gpu_progress;
  bool lookahead = true;         // read ahead what the next router probably wants
  // Lossy, decode only: what is computed then depends on what is in memory (expert_executor.h).
  uint32_t defer_experts = 0;    // of a layer, that may join one layer late
  float prefer_resident = 0;     // how far routers lean to experts in memory
  // Where the prefix cache goes on on disk (prefix_disk.h). What keeps it from that is logged, and gone on
  // without. Not with gpu, and without effect for models with recurrent state.
  PrefixDiskOptions prefix_disk;
  // Profile to start from, if there is one. One that is damaged is logged, renamed to NAME.damaged, and
  // gone on without.
  std::string profile = kDefaultProfile;
  // Settings that stand in for those above, as found by measuring; where the model cannot be opened with them,
  // that is logged and it is opened without.
  TunedSettings tuned = {};
};

// What people call the model.
struct ModelInfo {
  std::string name;  // directory name of the source
  std::string architecture;
  uint32_t max_context = 0;
  uint32_t max_sequences = 0;  // that are computed together
  uint32_t vocab_size = 0;
  std::vector<int32_t> eos_tokens;
  int64_t created_unix = 0;
};

class KvPool;
class GpuAnswers;
class GpuModel;
class GpuPrefill;
class PrefixDisk;

class Runner {
 public:
  static Result<std::unique_ptr<Runner>> Open(const RunnerOptions& options);
  ~Runner();

  // Whether decode reads ahead from now on; RunnerOptions::lookahead is how it begins.
  void SetLookahead(bool on);

  // Writes down the routing of all tokens from now on; null: no more. Not owned.
  void SetRoutingRecorder(RoutingRecorder* recorder);
  // Called on this thread at each MoE layer of a step, on the CPU: ExpertExecutor::set_layer_listener.
  void SetLayerListener(std::function<void()> listener);

  // Sequences that may be computed together: index < sequence_count(). They share the tokens of KV, and one
  // may have max_context() of them.
  uint32_t sequence_count() const;
  SequenceState& sequence(uint32_t index);
  KvPool& kv_pool();
  PrefixDisk* prefix_disk();  // null: there is none
  // One step: the tokens of all segments, of different sequences, together at most step_tokens(). What
  // decodes shares its reads of experts, and they stay in the cache; where a part of a prompt is among
  // them, misses stream past it. Each segment has its status, as DecoderModel::Forward says; errors of
  // reads name the expert and meet only those who want it.
  void Step(std::span<BatchSegment> batch);
  uint32_t step_tokens() const;    // the larger of both:
  uint32_t prefill_chunk() const;  // and sequence_count()

  // Sequence 0 by itself, for whoever needs no other. Empties it.
  void ResetSequence();
  uint32_t position() const;  // tokens in it

  using LogitsMode = moraine::LogitsMode;
  using LogitsSink = moraine::LogitsSink;
  struct ForwardOptions {
    LogitsMode logits = LogitsMode::kLast;
    const LogitsSink* sink = nullptr;             // called in order of position
    const std::atomic<bool>* cancelled = nullptr; // looked at once a layer
    const std::function<void(uint32_t done_tokens)>* on_chunk = nullptr;
  };
  // Appends tokens to sequence 0, in chunks of prefill_chunk; one token is a decode step. On error
  // the sequence is as before the failed chunk (kCancelled too); errors of reads name the expert.
  Status Forward(std::span<const int32_t> tokens, const ForwardOptions& options);

  // The budget from now on, as long as it lies between the minimum and the maximum set at Open
  // (kInvalidArgument naming the one that is missed). Takes effect by AdvanceResize, which Forward
  // calls before each chunk; memory really goes back to the system. Thread-safe.
  Status SetRamBudget(const RamBudget& budget);
  // Bytes of the process. Thread-safe.
  RamBudgetRange ram_budget_range() const;
  // Goes on with a change of budget for about `work_bytes` of copying, mapping and unmapping; true
  // while something is left to do. Waits up to 10 ms for reads that are in the way.
  bool AdvanceResize(uint64_t work_bytes);
  // Between two calls of Forward: gives up what is read ahead, finishes a change of budget and waits
  // until nothing is being read. kDeadlineExceeded after wait_ns (0: only looks), telling what does not
  // end; that a lease is held or a slot is lost shows here, too.
  Status Settle(int64_t wait_ns);

  // Fills the cache (engine/cache_warmer.h). kProfile: kNotFound if there is no profile.
  Status Warm(WarmOrder order,
              const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress);
  uint64_t tokens() const;  // computed since Open
  // What was learnt so far; cheap enough for between two steps.
  ProfileSnapshot Snapshot() const;
  // What was in the store at Open, or an empty profile.
  const WorkloadProfile& profile() const;
  // Learns from a snapshot and saves, on this thread.
  Status SaveProfile();

  // Where it computes, if all on a GPU.
  GpuModel* gpu();
  // What computes prompts on a GPU, if that is asked for and can be had.
  const GpuPrefill* gpu_prefill() const;
  // What computes answers on both, if that is asked for and can be had.
  const GpuAnswers* gpu_answers() const;
  const ModelConfig& config() const;
  const ModelInfo& info() const;
  Store& store();
  const Store& store() const;
  uint32_t max_context() const;  // of one sequence
  EngineStats Stats() const;
  // Totals since Open, as in Stats(), which is too dear for every step.
  const PhaseStats& prefill_stats() const;
  // Time that changes of the budget have taken, steps' parts of them and others.
  int64_t resizing_ns() const;
  const PhaseStats& decode_stats() const;
  // Null: the model has no experts in slots.
  const ResidencyManager* residency() const;
  void CheckInvariants() const;

 private:
  Runner();
  static Result<std::unique_ptr<Runner>> OpenTuned(const RunnerOptions& options);
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// What `moraine inspect` recommends, for the default context and chunk.
Result<BudgetAdvice> AdviseBudget(const Manifest& manifest);

}  // namespace moraine
