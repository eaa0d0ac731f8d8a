// Statistics in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats): base
// units, counters end in _total. What is published here is in users' dashboards: names stay as they are.
#include <fmt/format.h>

#include <string>
#include <utility>

#include "engine/stats.h"

namespace moraine {
namespace {

// Label values: backslash, quote and line feed are escaped (Prometheus text format 0.0.4).
std::string EscapeLabel(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

// Collects metric families: HELP and TYPE once, then the samples.
class PrometheusText {
 public:
  void Family(const char* name, const char* type, const char* help) {
    name_ = name;
    out_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  void Sample(const std::string& labels, double value) {
    out_ += fmt::format("{}{} {}\n", name_, labels, value);
  }
  void Sample(const std::string& labels, uint64_t value) {
    out_ += fmt::format("{}{} {}\n", name_, labels, value);
  }
  void Bucket(double bound, uint64_t count) {
    out_ += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name_, bound, count);
  }
  void HistogramEnd(double sum, uint64_t count) {
    out_ += fmt::format("{0}_bucket{{le=\"+Inf\"}} {2}\n{0}_sum {1}\n{0}_count {2}\n", name_, sum, count);
  }
  void Single(const char* name, const char* type, const char* help, uint64_t value) {
    Family(name, type, help);
    Sample("", value);
  }
  std::string Take() { return std::move(out_); }

 private:
  std::string name_, out_;
};

void PhaseMetrics(const EngineStats& stats, PrometheusText* text) {
  const std::pair<const char*, const PhaseStats*> phases[] = {{"prefill", &stats.prefill},
                                                              {"decode", &stats.decode}};
  text->Family("moraine_tokens_total", "counter", "Tokens computed.");
  for (const auto& [name, phase] : phases) {
    text->Sample(fmt::format("{{phase=\"{}\"}}", name), phase->tokens);
  }
  text->Family("moraine_steps_total", "counter", "Forward steps.");
  for (const auto& [name, phase] : phases) {
    text->Sample(fmt::format("{{phase=\"{}\"}}", name), phase->steps);
  }
  text->Family("moraine_time_seconds_total", "counter",
               "Wall time of steps by where it went; the parts sum to the wall time.");
  for (const auto& [name, phase] : phases) {
    const std::pair<const char*, int64_t> parts[] = {{"attention", phase->attention_ns},
                                                     {"experts", phase->expert_ns},
                                                     {"stall", phase->stall_ns},
                                                     {"checksums", phase->verify_ns},
                                                     {"residency", phase->residency_ns},
                                                     {"other", phase->other_ns()}};
    for (const auto& [part, ns] : parts) {
      text->Sample(fmt::format("{{phase=\"{}\",part=\"{}\"}}", name, part),
                   static_cast<double>(ns) * 1e-9);
    }
  }
  text->Family("moraine_expert_read_bytes_total", "counter", "Bytes of expert records that landed.");
  for (const auto& [name, phase] : phases) {
    text->Sample(fmt::format("{{phase=\"{}\"}}", name), phase->bytes_read);
  }
}

void Histogram(const DurationCounts& durations, PrometheusText* text) {
  uint64_t below = 0;
  for (size_t bucket = 0; bucket + 1 < DurationCounts::kBuckets; ++bucket) {
    below += durations.counts[bucket];
    text->Bucket(static_cast<double>(DurationCounts::BoundNs(bucket)) / 1e9, below);
  }
  text->HistogramEnd(static_cast<double>(durations.sum_ns) / 1e9, durations.total());
}

void StepMetrics(const EngineStats& stats, PrometheusText* text) {
  const StepStats& s = stats.steps;
  text->Family("moraine_step_seconds", "histogram",
               "From the end of one step to the end of the next, while a request runs.");
  Histogram(s.turns, text);
  text->Family("moraine_token_wait_seconds", "histogram",
               "Between two tokens of an answer, in the engine.");
  Histogram(s.waits, text);
  const auto each = [&](const char* name, const char* type, const char* help, const char* label,
                        auto value) {
    text->Family(name, type, help);
    for (size_t part = 0; part < kStepParts; ++part) {
      text->Sample(fmt::format("{{{}=\"{}\"}}", label, StepPartName(static_cast<StepPart>(part))),
                   value(part));
    }
  };
  const auto seconds = [](int64_t ns) { return static_cast<double>(ns) * 1e-9; };
  each("moraine_step_part_seconds_total", "counter", "Time of steps by what it went into.", "part",
       [&](size_t part) { return seconds(s.part_ns[part]); });
  each("moraine_step_caused_total", "counter", "Steps by their largest part.", "cause",
       [&](size_t part) { return s.caused[part]; });
  each("moraine_step_longest_seconds", "gauge", "The longest step so far by its largest part.",
       "cause", [&](size_t part) { return seconds(s.longest_ns[part]); });
  text->Family("moraine_token_wait_preempted_longest_seconds", "gauge",
               "The longest wait for a token of a request that had to compute its prompt again.");
  text->Sample("", seconds(s.longest_preempted_ns));
}

void LookupSamples(const LookupCounters& c, const std::string& labels, PrometheusText* text) {
  text->Sample(fmt::format("{{{},result=\"hit\"}}", labels), c.hit);
  text->Sample(fmt::format("{{{},result=\"cold_miss\"}}", labels), c.cold_miss);
  text->Sample(fmt::format("{{{},result=\"in_flight_miss\"}}", labels), c.in_flight_miss);
  text->Sample(fmt::format("{{{},result=\"prefetch_hit\"}}", labels), c.prefetch_hit);
}

void ResidencyMetrics(const EngineStats& stats, PrometheusText* text) {
  const ResidencyStats& r = stats.residency;
  text->Family("moraine_expert_lookups_total", "counter", "Expert lookups by result.");
  LookupSamples(r.prefill, "phase=\"prefill\"", text);
  LookupSamples(r.decode, "phase=\"decode\"", text);
  text->Single("moraine_expert_evictions_total", "counter", "Experts dropped.", r.evictions);
  text->Single("moraine_experts_quarantined", "gauge", "Experts with a corrupt record.",
               r.quarantined);
  text->Single("moraine_expert_failed_reads_total", "counter", "Expert reads given up.",
               r.failed_reads);
  text->Single("moraine_expert_healed_total", "counter", "Corrupt records that a second read healed.",
               r.healed);
  text->Family("moraine_prefetch_experts_total", "counter", "Speculative reads by outcome.");
  text->Sample("{outcome=\"issued\"}", r.prefetch_issued);
  text->Sample("{outcome=\"used\"}", r.prefetch_used);
  text->Sample("{outcome=\"wasted\"}", r.prefetch_wasted);
  text->Family("moraine_prefetch_bytes_total", "counter", "Bytes read ahead by outcome.");
  text->Sample("{outcome=\"useful\"}", r.prefetch_useful_bytes);
  text->Sample("{outcome=\"late\"}", r.prefetch_late_bytes);
  text->Sample("{outcome=\"wasted\"}", r.prefetch_wasted_bytes);
  text->Single("moraine_experts_resident", "gauge", "Experts in memory.", r.resident);
  text->Single("moraine_experts", "gauge", "Experts of the store.", stats.expert_count);
  text->Single("moraine_expert_slots", "gauge", "Slots for experts.", r.slot_count);
  text->Single("moraine_expert_slots_target", "gauge", "Slots that the budget asks for.",
               r.slot_target);
  if (stats.layers.empty()) return;
  text->Family("moraine_layer_expert_lookups_total", "counter", "Lookups by layer and result.");
  for (const LayerStats& layer : stats.layers) {
    LookupSamples(layer.lookups, fmt::format("layer=\"{}\"", layer.layer), text);
  }
}

void ReadMetrics(const EngineStats& stats, PrometheusText* text) {
  const ReadSchedulerStats& r = stats.reads;
  text->Family("moraine_drive_read_bytes_total", "counter", "Bytes read by kind.");
  text->Sample("{kind=\"demand\"}", r.demand_bytes);
  text->Sample("{kind=\"speculative\"}", r.speculative_bytes);
  text->Family("moraine_drive_busy_seconds_total", "counter", "Time with a read in flight.");
  text->Sample("", static_cast<double>(r.busy_ns) * 1e-9);
  text->Family("moraine_drive_read_seconds", "histogram",
               "Expert records that were waited for, from the request to the last byte.");
  uint64_t below = 0;
  for (size_t bucket = 0; bucket + 1 < LatencyCounts::kBuckets; ++bucket) {
    below += r.demand_latency.counts[bucket];
    text->Bucket(static_cast<double>(LatencyCounts::BoundNs(bucket)) / 1e9, below);
  }
  text->HistogramEnd(static_cast<double>(r.demand_latency.sum_ns) / 1e9, r.demand_latency.total());
  text->Single("moraine_drive_retries_total", "counter", "Reads tried again.", r.retries);
  text->Single("moraine_drive_failures_total", "counter", "Records given up.", r.failures);
  text->Single("moraine_drive_deadline_misses_total", "counter", "Records past their deadline.",
               r.deadline_misses);
  text->Single("moraine_drive_submit_calls_total", "counter", "System calls that submit reads.",
               r.submit_calls);
  if (stats.drives.empty()) return;
  const auto each = [&](const char* name, const char* help, uint64_t DriveStats::*field) {
    text->Family(name, "counter", help);
    for (size_t i = 0; i < stats.drives.size(); ++i) {
      text->Sample(fmt::format("{{drive=\"{}\"}}", i), stats.drives[i].*field);
    }
  };
  each("moraine_mirror_read_bytes_total", "Bytes that each drive of a mirrored store read.",
       &DriveStats::bytes);
  each("moraine_mirror_errors_total", "Reads that the drive failed.", &DriveStats::errors);
  each("moraine_mirror_healed_total", "Of these, delivered by the other copy.", &DriveStats::healed);
}

void KvMetrics(const EngineStats& stats, PrometheusText* text) {
  const KvStats& kv = stats.kv;
  text->Family("moraine_kv_blocks", "gauge", "Blocks of keys and values by state.");
  text->Sample("{state=\"held\"}", uint64_t{kv.held});
  text->Sample("{state=\"cached\"}", uint64_t{kv.cached});
  text->Sample("{state=\"free\"}", uint64_t{kv.blocks - kv.held - kv.cached});
  text->Single("moraine_kv_evictions_total", "counter", "Cached blocks that were needed.", kv.evicted);
  text->Single("moraine_prompt_tokens_total", "counter", "Prompt tokens of requests that began.",
               kv.prompt_tokens);
  text->Single("moraine_prompt_tokens_reused_total", "counter",
               "Of these, found in the prefix cache.", kv.reused_tokens);
  text->Single("moraine_preemptions_total", "counter",
               "Times that a request gave its blocks to an older one.", kv.preempted);
  text->Single("moraine_prompt_tokens_restored_total", "counter",
               "Of those found in the prefix cache, read from disk.", kv.restored_tokens);
  text->Single("moraine_kv_disk_blocks", "gauge", "Blocks of keys and values on disk.",
               uint64_t{kv.disk_blocks});
  text->Single("moraine_kv_disk_failures_total", "counter",
               "Blocks that could not be read from disk or written there.", kv.disk_failures);
}

void GpuMetrics(const EngineStats& stats, PrometheusText* text) {
  if (stats.gpu_prefill.gpu.empty()) return;
  const GpuPrefillStats& prompts = stats.gpu_prefill;
  const GpuAnswersStats& answers = stats.gpu_answers;
  text->Family("moraine_gpu_tokens_total", "counter", "Tokens computed on the GPU, or together with it.");
  text->Sample("{phase=\"prefill\"}", prompts.tokens);
  text->Sample("{phase=\"decode\"}", answers.tokens);
  text->Single("moraine_gpu_failed", "gauge", "1: the GPU has failed and is not used any more.",
               uint64_t{prompts.failures});
  text->Single("moraine_gpu_failed_steps_total", "counter",
               "Steps of answers that were computed again on the CPU.", answers.failed_steps);
  text->Family("moraine_gpu_experts_total", "counter", "Experts of answers' layers by where they were computed.");
  text->Sample("{place=\"vram\"}", answers.experts_in_vram);
  text->Sample("{place=\"link\"}", answers.experts_over_link);
  text->Sample("{place=\"cpu\"}", answers.experts_on_cpu);
  text->Family("moraine_gpu_copied_bytes_total", "counter", "Bytes of experts copied to the GPU.");
  text->Sample("{phase=\"prefill\"}", prompts.copied_bytes);
  text->Sample("{phase=\"decode\"}", answers.copied_bytes);
  text->Single("moraine_vram_slots", "gauge", "Slots of single experts in VRAM.", uint64_t{answers.slots});
  text->Single("moraine_vram_slots_live", "gauge", "Of these, with an expert.", uint64_t{answers.live});
  text->Single("moraine_vram_promotions_total", "counter", "Experts copied to VRAM slots.", answers.promotions);
  text->Single("moraine_vram_demotions_total", "counter", "Of these, over another expert.",
               answers.demotions);
}

void MemoryMetrics(const EngineStats& stats, PrometheusText* text) {
  const MemoryStats& m = stats.memory;
  text->Family("moraine_memory_bytes", "gauge", "Memory by use.");
  text->Sample("{use=\"dense\"}", m.dense_bytes);
  text->Sample("{use=\"kv\"}", m.kv_bytes);
  text->Sample("{use=\"experts\"}", m.slot_bytes);
  text->Sample("{use=\"scratch\"}", m.scratch_bytes);
  text->Single("moraine_memory_budget_bytes", "gauge", "Budget of the process; 0: a share was given.",
               m.budget_bytes);
  text->Single("moraine_resident_set_bytes", "gauge", "Resident set of the process.",
               m.resident_set_bytes);
  text->Single("moraine_peak_resident_set_bytes", "gauge", "Largest resident set so far.",
               m.peak_resident_set_bytes);
}

}  // namespace

std::string EngineStats::ToPrometheus() const {
  PrometheusText text;
  text.Family("moraine_info", "gauge", "What is running.");
  text.Sample(fmt::format("{{model=\"{}\",io=\"{}\",isa=\"{}\",policy=\"{}\",threads=\"{}\"}}",
                          EscapeLabel(model), EscapeLabel(io), EscapeLabel(isa), EscapeLabel(policy),
                          threads),
              uint64_t{1});
  text.Family("moraine_uptime_seconds", "gauge", "Time since start.");
  text.Sample("", static_cast<double>(uptime_ns) * 1e-9);
  text.Single("moraine_requests_total", "counter", "Requests that ended.", requests);
  text.Single("moraine_requests_failed_total", "counter", "Requests that failed.", requests_failed);
  text.Single("moraine_requests_cancelled_total", "counter", "Requests that were cancelled.",
              requests_cancelled);
  text.Single("moraine_queue_length", "gauge", "Requests waiting.", queue_length);
  text.Single("moraine_running_requests", "gauge", "Requests computed together.", running);
  KvMetrics(*this, &text);
  PhaseMetrics(*this, &text);
  StepMetrics(*this, &text);
  ResidencyMetrics(*this, &text);
  ReadMetrics(*this, &text);
  MemoryMetrics(*this, &text);
  GpuMetrics(*this, &text);
  return text.Take();
}

}  // namespace moraine
