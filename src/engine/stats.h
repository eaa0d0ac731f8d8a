// EngineStats: where time and bytes went. One struct, one JSON form (`moraine stats --json`, /stats,
// the end of `moraine run`), so that every figure means the same everywhere.
//
// A step's wall time is split into what was measured (kernels, stall, checksums, residency) and other, the
// rest by difference, so the parts sum to the wall time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/step_times.h"
#include "io/mirrored_reader.h"
#include "io/read_scheduler.h"
#include "residency/residency_manager.h"

namespace moraine {

struct PhaseStats {
  uint64_t steps = 0, tokens = 0;
  int64_t wall_ns = 0;
  int64_t attention_ns = 0;  // attention blocks, norms, router, dense matrices, logits
  int64_t expert_ns = 0;     // routed expert kernels
  int64_t stall_ns = 0;      // waiting for expert reads with nothing to compute
  int64_t verify_ns = 0;     // checksums of records that arrived
  int64_t residency_ns = 0;  // lookups, evictions, submitting and reaping reads
  int64_t other_ns() const {
    return wall_ns - attention_ns - expert_ns - stall_ns - verify_ns - residency_ns;
  }
  uint64_t bytes_read = 0;   // expert records that landed
};

struct LayerStats {
  uint32_t layer = 0;
  uint32_t experts = 0, resident = 0;
  LookupCounters lookups;  // decode and prefill together
  int64_t stall_ns = 0;
};

struct MemoryStats {
  uint64_t budget_bytes = 0;    // 0: a percentage was given, only expert slots are bounded
  uint64_t dense_bytes = 0, kv_bytes = 0, slot_bytes = 0, scratch_bytes = 0;
  uint64_t resident_set_bytes = 0, peak_resident_set_bytes = 0;
};

// VRAM by use, and what is streamed to it. All 0 on the CPU.
struct GpuMemoryStats {
  uint64_t budget_bytes = 0;
  uint64_t dense_bytes = 0, kv_bytes = 0, scratch_bytes = 0;
  uint64_t expert_bytes = 0, ring_bytes = 0;
  uint64_t streamed_bytes = 0;  // in page-locked DRAM
};

// Prompts that a GPU computes for the CPU. All 0 without one.
struct GpuPrefillStats {
  std::string gpu;  // its name; empty: there is none
  uint64_t tokens = 0, chunks = 0;
  uint64_t copied_bytes = 0;       // of experts, to the GPU
  uint32_t break_even_tokens = 0;  // a shorter piece of a prompt stays on the CPU; 0: not known yet
  uint32_t failures = 0;           // after the first it is not used any more
};

// Answers that a GPU computes together with the CPU. All 0 without one.
struct GpuAnswersStats {
  uint64_t tokens = 0, steps = 0;
  uint64_t failed_steps = 0;  // of these, computed again on the CPU
  // Experts of layers, once a step that wants them, by where they were computed.
  uint64_t experts_in_vram = 0, experts_over_link = 0, experts_on_cpu = 0;
  uint32_t slots = 0, live = 0;            // in VRAM, for single experts
  uint64_t promotions = 0, demotions = 0;  // copies to slots; of these, over another expert
  uint64_t copied_bytes = 0;               // by them
  // What is learnt: of an expert of one token, and of a step of one; 0: not known.
  uint64_t cpu_expert_ns = 0, link_expert_ns = 0, together_step_ns = 0, cpu_step_ns = 0;
};

// Keys and values of all sequences, and the prefix cache.
struct KvStats {
  uint32_t blocks = 0;            // of kKvBlockPositions tokens each
  uint32_t held = 0, cached = 0;  // by sequences; by nobody, but findable
  uint64_t evicted = 0;           // cached ones that were needed
  uint64_t prompt_tokens = 0;     // of requests that began
  uint64_t reused_tokens = 0;     // of these, found in the cache
  uint64_t preempted = 0;         // requests that gave their blocks to older ones and began again
  uint64_t restored_tokens = 0;   // of those found: read from disk
  uint32_t disk_blocks = 0;       // on disk
  uint64_t disk_failures = 0;     // blocks that could not be read or written there
};

struct EngineStats {
  std::string model, store;
  std::string io, isa, policy;
  std::string lossy;  // modes that change what is computed; empty: exact
  int threads = 0;
  uint64_t requests = 0, requests_failed = 0, requests_cancelled = 0;
  uint32_t queue_length = 0, running = 0;  // requests that wait, requests that have a sequence
  int64_t uptime_ns = 0;
  PhaseStats prefill, decode;
  StepStats steps;
  ResidencyStats residency;
  ReadSchedulerStats reads;
  std::vector<DriveStats> drives;  // of a mirrored store
  MemoryStats memory;
  std::string gpu;  // its name; empty: on the CPU. On a GPU, phases have only their wall time
  GpuMemoryStats gpu_memory;
  GpuPrefillStats gpu_prefill;
  GpuAnswersStats gpu_answers;
  KvStats kv;
  uint64_t expert_count = 0, expert_bytes = 0;  // of the whole store
  std::vector<LayerStats> layers;               // layers with experts

  std::string ToJson() const;
  // For people: a summary, and one line a layer if asked for.
  std::string ToText(bool per_layer) const;
  // Prometheus text format 0.0.4, base units.
  std::string ToPrometheus() const;
};

// The inverse of ToJson, for `moraine stats`.
Result<EngineStats> ParseEngineStats(const std::string& json);

}  // namespace moraine
