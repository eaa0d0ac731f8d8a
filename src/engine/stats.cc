#include "engine/stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/bytes.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// One list of fields a struct, visited by the writer and by the reader, so that the two cannot drift
// apart. `f(name, member)`.
template <typename Visitor, typename S>
void VisitPhase(S& s, Visitor&& f) {
  f("steps", s.steps);
  f("tokens", s.tokens);
  f("wall_ns", s.wall_ns);
  f("attention_ns", s.attention_ns);
  f("expert_ns", s.expert_ns);
  f("stall_ns", s.stall_ns);
  f("verify_ns", s.verify_ns);
  f("residency_ns", s.residency_ns);
  f("bytes_read", s.bytes_read);
}

template <typename Visitor, typename S>
void VisitLookups(S& s, Visitor&& f) {
  f("hit", s.hit);
  f("cold_miss", s.cold_miss);
  f("in_flight_miss", s.in_flight_miss);
  f("prefetch_hit", s.prefetch_hit);
}

template <typename Visitor, typename S>
void VisitResidency(S& s, Visitor&& f) {
  f("evictions", s.evictions);
  f("quarantined", s.quarantined);
  f("failed_reads", s.failed_reads);
  f("healed", s.healed);
  f("prefetch_issued", s.prefetch_issued);
  f("prefetch_used", s.prefetch_used);
  f("prefetch_late", s.prefetch_late);
  f("prefetch_wasted", s.prefetch_wasted);
  f("prefetch_useful_bytes", s.prefetch_useful_bytes);
  f("prefetch_late_bytes", s.prefetch_late_bytes);
  f("prefetch_wasted_bytes", s.prefetch_wasted_bytes);
  f("bytes_read", s.bytes_read);
  f("verify_ns", s.verify_ns);
  f("slot_count", s.slot_count);
  f("ring_slots", s.ring_slots);
  f("resident", s.resident);
  f("slot_target", s.slot_target);
  f("closing_slots", s.closing_slots);
  f("moved", s.moved);
  f("slot_bytes", s.slot_bytes);
}

template <typename Visitor, typename S>
void VisitReads(S& s, Visitor&& f) {
  f("demand_bytes", s.demand_bytes);
  f("speculative_bytes", s.speculative_bytes);
  f("demand_records", s.demand_records);
  f("speculative_records", s.speculative_records);
  f("short_reads", s.short_reads);
  f("retries", s.retries);
  f("failures", s.failures);
  f("deadline_misses", s.deadline_misses);
  f("cancelled", s.cancelled);
  f("submit_calls", s.submit_calls);
  f("demand_latency", s.demand_latency);
  f("busy_ns", s.busy_ns);
}

template <typename Visitor, typename S>
void VisitDrive(S& s, Visitor&& f) {
  f("directory", s.directory);
  f("reads", s.reads);
  f("bytes", s.bytes);
  f("errors", s.errors);
  f("healed", s.healed);
}

template <typename Visitor, typename S>
void VisitMemory(S& s, Visitor&& f) {
  f("budget_bytes", s.budget_bytes);
  f("dense_bytes", s.dense_bytes);
  f("kv_bytes", s.kv_bytes);
  f("slot_bytes", s.slot_bytes);
  f("scratch_bytes", s.scratch_bytes);
  f("resident_set_bytes", s.resident_set_bytes);
  f("peak_resident_set_bytes", s.peak_resident_set_bytes);
}

template <typename Visitor, typename S>
void VisitGpuMemory(S& s, Visitor&& f) {
  f("budget_bytes", s.budget_bytes);
  f("dense_bytes", s.dense_bytes);
  f("kv_bytes", s.kv_bytes);
  f("scratch_bytes", s.scratch_bytes);
  f("expert_bytes", s.expert_bytes);
  f("ring_bytes", s.ring_bytes);
  f("streamed_bytes", s.streamed_bytes);
}

template <typename Visitor, typename S>
void VisitGpuPrefill(S& s, Visitor&& f) {
  f("gpu", s.gpu);
  f("tokens", s.tokens);
  f("chunks", s.chunks);
  f("copied_bytes", s.copied_bytes);
  f("break_even_tokens", s.break_even_tokens);
  f("failures", s.failures);
}

template <typename Visitor, typename S>
void VisitGpuAnswers(S& s, Visitor&& f) {
  f("tokens", s.tokens);
  f("steps", s.steps);
  f("failed_steps", s.failed_steps);
  f("experts_in_vram", s.experts_in_vram);
  f("experts_over_link", s.experts_over_link);
  f("experts_on_cpu", s.experts_on_cpu);
  f("slots", s.slots);
  f("live", s.live);
  f("promotions", s.promotions);
  f("demotions", s.demotions);
  f("copied_bytes", s.copied_bytes);
  f("cpu_expert_ns", s.cpu_expert_ns);
  f("link_expert_ns", s.link_expert_ns);
  f("together_step_ns", s.together_step_ns);
  f("cpu_step_ns", s.cpu_step_ns);
}

template <typename Visitor, typename S>
void VisitKv(S& s, Visitor&& f) {
  f("blocks", s.blocks);
  f("held", s.held);
  f("cached", s.cached);
  f("evicted", s.evicted);
  f("prompt_tokens", s.prompt_tokens);
  f("reused_tokens", s.reused_tokens);
  f("preempted", s.preempted);
  f("restored_tokens", s.restored_tokens);
  f("disk_blocks", s.disk_blocks);
  f("disk_failures", s.disk_failures);
}

template <typename Visitor, typename S>
void VisitSteps(S& s, Visitor&& f) {
  f("turns", s.turns);
  f("waits", s.waits);
  f("longest_preempted_ns", s.longest_preempted_ns);
}

// Of one part, by name.
template <typename Visitor, typename S>
void VisitStepPart(S& s, size_t part, Visitor&& f) {
  f("time_ns", s.part_ns[part]);
  f("caused", s.caused[part]);
  f("longest_ns", s.longest_ns[part]);
}

template <typename Visitor, typename S>
void VisitTop(S& s, Visitor&& f) {
  f("model", s.model);
  f("store", s.store);
  f("io", s.io);
  f("isa", s.isa);
  f("policy", s.policy);
  f("lossy", s.lossy);
  f("gpu", s.gpu);
  f("threads", s.threads);
  f("requests", s.requests);
  f("requests_failed", s.requests_failed);
  f("requests_cancelled", s.requests_cancelled);
  f("queue_length", s.queue_length);
  f("running", s.running);
  f("uptime_ns", s.uptime_ns);
  f("expert_count", s.expert_count);
  f("expert_bytes", s.expert_bytes);
}

template <typename Visitor, typename S>
void VisitLayer(S& s, Visitor&& f) {
  f("layer", s.layer);
  f("experts", s.experts);
  f("resident", s.resident);
  f("stall_ns", s.stall_ns);
}

struct Writer {
  Json& out;
  template <typename T>
  void operator()(const char* name, const T& value) const {
    out[name] = value;
  }
  void operator()(const char* name, const LatencyCounts& latency) const {
    out[name] = {{"counts", latency.counts}, {"sum_ns", latency.sum_ns}};
  }
  void operator()(const char* name, const DurationCounts& durations) const {
    out[name] = {{"counts", durations.counts},
                 {"sum_ns", durations.sum_ns},
                 {"longest_ns", durations.longest_ns}};
  }
};

Json LookupsJson(const LookupCounters& lookups) {
  Json json;
  VisitLookups(lookups, Writer{json});
  return json;
}

Json StepsJson(const StepStats& steps) {
  Json json;
  VisitSteps(steps, Writer{json});
  for (size_t part = 0; part < kStepParts; ++part) {
    VisitStepPart(steps, part, Writer{json["parts"][StepPartName(static_cast<StepPart>(part))]});
  }
  return json;
}

Json PhaseJson(const PhaseStats& phase) {
  Json json;
  VisitPhase(phase, Writer{json});
  json["other_ns"] = phase.other_ns();  // for readers; recomputed when parsed
  return json;
}

// Keeps the first error, which names the field's path.
class Reader {
 public:
  Reader(const Json& object, std::string path, Status* status)
      : object_(object), path_(std::move(path)), status_(status) {}

  template <typename T>
  void operator()(const char* name, T& out) const {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if constexpr (std::is_same_v<T, std::string>) {
      if (!value->is_string()) return Fail(name, "a string", *value);
    } else {
      // Counters never exceed 2^63, so any integer of JSON that is stored fits 64 bits.
      if (!value->is_number_integer()) return Fail(name, "an integer", *value);
    }
    out = value->get<T>();
  }

  void operator()(const char* name, LatencyCounts& out) const {
    Nested(name, Json::value_t::object, [&](const Json& json, const std::string& path) {
      const Reader inner(json, path + ".", status_);
      inner("sum_ns", out.sum_ns);
      inner.Buckets(&out.counts);
    });
  }
  void operator()(const char* name, DurationCounts& out) const {
    Nested(name, Json::value_t::object, [&](const Json& json, const std::string& path) {
      const Reader inner(json, path + ".", status_);
      inner("sum_ns", out.sum_ns);
      inner("longest_ns", out.longest_ns);
      inner.Buckets(&out.counts);
    });
  }

  // An object or array below; calls `read` with it.
  template <typename F>
  void Nested(const char* name, Json::value_t type, F&& read) const {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (value->type() != type) {
      return Fail(name, type == Json::value_t::array ? "an array" : "an object", *value);
    }
    read(*value, path_ + name);
  }

 private:
  template <typename Counts>
  void Buckets(Counts* counts) const {
    Nested("counts", Json::value_t::array, [&](const Json& list, const std::string&) {
      const auto is_count = [](const Json& count) { return count.is_number_integer(); };
      if (list.size() != counts->size() || !std::all_of(list.begin(), list.end(), is_count)) {
        return Fail("counts", "an integer for each bucket", list);
      }
      std::copy(list.begin(), list.end(), counts->begin());
    });
  }
  const Json* Find(const char* name) const {
    if (!status_->ok()) return nullptr;
    const auto found = object_.find(name);
    if (found != object_.end()) return &*found;
    *status_ = InvalidArgument(fmt::format("statistics: {}{} is missing", path_, name));
    return nullptr;
  }
  void Fail(const char* name, const char* expected, const Json& found) const {
    *status_ = InvalidArgument(fmt::format("statistics: {}{}: expected {}, found {}", path_, name,
                                           expected, found.type_name()));
  }

  const Json& object_;
  std::string path_;
  Status* status_;
};

void ReadLookups(const Reader& parent, const char* name, LookupCounters* out, Status* status) {
  parent.Nested(name, Json::value_t::object, [&](const Json& json, const std::string& path) {
    VisitLookups(*out, Reader(json, path + ".", status));
  });
}

Status ReadStats(const Json& json, EngineStats* stats) {
  Status status;
  const Reader top(json, "", &status);
  VisitTop(*stats, top);
  const auto object = [&](const char* name, auto&& visit) {
    top.Nested(name, Json::value_t::object, [&](const Json& inner, const std::string& path) {
      visit(Reader(inner, path + ".", &status));
    });
  };
  object("prefill", [&](const Reader& r) { VisitPhase(stats->prefill, r); });
  object("decode", [&](const Reader& r) { VisitPhase(stats->decode, r); });
  object("steps", [&](const Reader& r) {
    VisitSteps(stats->steps, r);
    r.Nested("parts", Json::value_t::object, [&](const Json& parts, const std::string& path) {
      const Reader all(parts, path + ".", &status);
      for (size_t part = 0; part < kStepParts; ++part) {
        all.Nested(StepPartName(static_cast<StepPart>(part)), Json::value_t::object,
                   [&](const Json& one, const std::string& place) {
                     VisitStepPart(stats->steps, part, Reader(one, place + ".", &status));
                   });
      }
    });
  });
  object("residency", [&](const Reader& r) {
    VisitResidency(stats->residency, r);
    ReadLookups(r, "decode", &stats->residency.decode, &status);
    ReadLookups(r, "prefill", &stats->residency.prefill, &status);
  });
  object("reads", [&](const Reader& r) { VisitReads(stats->reads, r); });
  object("memory", [&](const Reader& r) { VisitMemory(stats->memory, r); });
  object("gpu_memory", [&](const Reader& r) { VisitGpuMemory(stats->gpu_memory, r); });
  object("gpu_prefill", [&](const Reader& r) { VisitGpuPrefill(stats->gpu_prefill, r); });
  object("gpu_answers", [&](const Reader& r) { VisitGpuAnswers(stats->gpu_answers, r); });
  object("kv", [&](const Reader& r) { VisitKv(stats->kv, r); });
  top.Nested("drives", Json::value_t::array, [&](const Json& list, const std::string& path) {
    for (size_t i = 0; i < list.size(); ++i) {
      VisitDrive(stats->drives.emplace_back(),
                 Reader(list[i], fmt::format("{}[{}].", path, i), &status));
    }
  });
  top.Nested("layers", Json::value_t::array, [&](const Json& list, const std::string& path) {
    for (size_t i = 0; i < list.size(); ++i) {
      const Reader r(list[i], fmt::format("{}[{}].", path, i), &status);
      LayerStats& layer = stats->layers.emplace_back();
      VisitLayer(layer, r);
      ReadLookups(r, "lookups", &layer.lookups, &status);
    }
  });
  return status;
}

double Ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

uint64_t Total(const LookupCounters& c) {
  return c.hit + c.cold_miss + c.in_flight_miss + c.prefetch_hit;
}

std::string SpeedText(const char* name, const PhaseStats& phase) {
  if (phase.tokens == 0) return fmt::format("{:<8} no tokens\n", name);
  const double tokens = static_cast<double>(phase.tokens);
  const double wall = static_cast<double>(phase.wall_ns);
  return fmt::format("{:<8} {} tokens in {:.2f} s: {:.2f} tok/s, {:.2f} ms/token\n", name,
                     phase.tokens, wall * 1e-9, Ratio(tokens, wall * 1e-9), wall * 1e-6 / tokens);
}

// One phase: speed, where its time went, what it read. The four parts sum to the wall time because
// `other` is the difference.
std::string PhaseText(const char* name, const PhaseStats& phase, const LookupCounters& lookups) {
  std::string out = SpeedText(name, phase);
  if (phase.tokens == 0) return out;
  const double tokens = static_cast<double>(phase.tokens);
  const double wall = static_cast<double>(phase.wall_ns);
  const auto part = [&](const char* what, int64_t ns) {
    const double time = static_cast<double>(ns);
    return fmt::format("  {} {:.3f} ms ({:.1f} %)", what, time * 1e-6 / tokens,
                       100 * Ratio(time, wall));
  };
  out += "  time  " + part("attention", phase.attention_ns) + part("experts", phase.expert_ns) +
         part("stall", phase.stall_ns) + part("checksums", phase.verify_ns) +
         part("residency", phase.residency_ns) + part("other", phase.other_ns()) + "\n";
  const double total = static_cast<double>(Total(lookups));
  const auto share = [&](const char* what, uint64_t count) {
    return fmt::format("  {} {} ({:.1f} %)", what, count,
                       100 * Ratio(static_cast<double>(count), total));
  };
  out += "  lookup" + share("hit", lookups.hit) + share("cold", lookups.cold_miss) +
         share("in flight", lookups.in_flight_miss) + share("prefetched", lookups.prefetch_hit) + "\n";
  out += fmt::format("  read    {:.2f} MiB/token, {} in all\n",
                     static_cast<double>(phase.bytes_read) / static_cast<double>(kMiB) / tokens,
                     FormatByteSize(phase.bytes_read));
  return out;
}

std::string LayerTable(const std::vector<LayerStats>& layers) {
  std::string out = "layer   resident    hit %      cold  inflight  prefetch   stall ms\n";
  for (const LayerStats& layer : layers) {
    const LookupCounters& c = layer.lookups;
    const double hit_percent = 100 * Ratio(static_cast<double>(c.hit + c.prefetch_hit),
                                           static_cast<double>(Total(c)));
    out += fmt::format("{:>5}  {:>4}/{:<4}  {:>7.1f}  {:>8}  {:>8}  {:>8}  {:>9.2f}\n", layer.layer,
                       layer.resident, layer.experts, hit_percent, c.cold_miss, c.in_flight_miss,
                       c.prefetch_hit, static_cast<double>(layer.stall_ns) * 1e-6);
  }
  return out;
}

}  // namespace

std::string EngineStats::ToJson() const {
  Json json;
  VisitTop(*this, Writer{json});
  json["prefill"] = PhaseJson(prefill);
  json["decode"] = PhaseJson(decode);
  json["steps"] = StepsJson(steps);
  Json& r = json["residency"];
  VisitResidency(residency, Writer{r});
  r["decode"] = LookupsJson(residency.decode);
  r["prefill"] = LookupsJson(residency.prefill);
  VisitReads(reads, Writer{json["reads"]});
  VisitMemory(memory, Writer{json["memory"]});
  VisitGpuMemory(gpu_memory, Writer{json["gpu_memory"]});
  VisitGpuPrefill(gpu_prefill, Writer{json["gpu_prefill"]});
  VisitGpuAnswers(gpu_answers, Writer{json["gpu_answers"]});
  VisitKv(kv, Writer{json["kv"]});
  Json& drive_list = json["drives"] = Json::array();
  for (const DriveStats& drive : drives) {
    Json entry;
    VisitDrive(drive, Writer{entry});
    drive_list.push_back(std::move(entry));
  }
  Json& list = json["layers"] = Json::array();
  for (const LayerStats& layer : layers) {
    Json entry;
    VisitLayer(layer, Writer{entry});
    entry["lookups"] = LookupsJson(layer.lookups);
    list.push_back(std::move(entry));
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<EngineStats> ParseEngineStats(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return InvalidArgument(fmt::format("statistics: expected a JSON object, found {}",
                                       json.is_discarded() ? "malformed JSON" : json.type_name()));
  }
  EngineStats stats;
  RETURN_IF_ERROR(ReadStats(json, &stats));
  return stats;
}

namespace {

std::string RequestsText(const EngineStats& s) {
  const KvStats& kv = s.kv;
  return fmt::format("requests {} ({} failed, {} cancelled), {} running, {} waiting\n", s.requests,
                     s.requests_failed, s.requests_cancelled, s.running, s.queue_length) +
         fmt::format("KV       {} of {} blocks held, {} cached; {} of {} prompt tokens reused, {} "
                     "requests preempted\n", kv.held, kv.blocks, kv.cached, kv.reused_tokens,
                     kv.prompt_tokens, kv.preempted) +
         s.steps.ToText();
}

std::string GpuPrefillText(const GpuPrefillStats& s) {
  return fmt::format("         {} tokens of prompts in {} chunks on {}{}, {} of experts copied{}\n", s.tokens,
                     s.chunks, s.gpu, s.failures > 0 ? " (which has failed)" : "",
                     FormatByteSize(s.copied_bytes),
                     s.break_even_tokens == 0
                         ? ""
                         : fmt::format("; shorter than {} tokens: on the CPU", s.break_even_tokens));
}

std::string GpuAnswersText(const GpuAnswersStats& s) {
  const double experts = static_cast<double>(s.experts_in_vram + s.experts_over_link + s.experts_on_cpu);
  const auto percent = [&](uint64_t part) { return 100 * Ratio(static_cast<double>(part), experts); };
  return fmt::format("         {} tokens of answers together with it: {:.1f} % of experts in VRAM, {:.1f} % over "
                     "the link, {:.1f} % on the CPU; {} steps failed\n",
                     s.tokens, percent(s.experts_in_vram), percent(s.experts_over_link),
                     percent(s.experts_on_cpu), s.failed_steps) +
         fmt::format("VRAM     {} of {} slots live, {} promotions ({} over another), {} copied\n", s.live,
                     s.slots, s.promotions, s.demotions, FormatByteSize(s.copied_bytes));
}

// Phases have no parts there, and nothing is read once the model is loaded.
std::string GpuText(const EngineStats& s) {
  const GpuMemoryStats& m = s.gpu_memory;
  std::string out = fmt::format("model    {} ({}{}{})\n", s.model, s.gpu,
                                s.lossy.empty() ? "" : ", LOSSY: ", s.lossy);
  out += SpeedText("prefill", s.prefill) + SpeedText("decode", s.decode);
  out += fmt::format("VRAM     dense {}, KV {}, experts {}, scratch {}, budget {}\n",
                     FormatByteSize(m.dense_bytes), FormatByteSize(m.kv_bytes),
                     FormatByteSize(m.expert_bytes), FormatByteSize(m.scratch_bytes),
                     FormatByteSize(m.budget_bytes));
  if (m.streamed_bytes > 0) {
    out += fmt::format("         {} of experts streamed from DRAM through a ring of {}\n",
                       FormatByteSize(m.streamed_bytes), FormatByteSize(m.ring_bytes));
  }
  out += fmt::format("memory   {} resident (peak {})\n",
                     FormatByteSize(s.memory.resident_set_bytes),
                     FormatByteSize(s.memory.peak_resident_set_bytes));
  return out + RequestsText(s);
}

}  // namespace

std::string EngineStats::ToText(bool per_layer) const {
  if (!gpu.empty()) return GpuText(*this);
  std::string out =
      fmt::format("model    {} ({}, {}, {} threads, policy {}{}{})\n", model, io, isa, threads, policy,
                  lossy.empty() ? "" : ", LOSSY: ", lossy);
  out += PhaseText("prefill", prefill, residency.prefill);
  out += PhaseText("decode", decode, residency.decode);
  if (!gpu_prefill.gpu.empty()) out += GpuPrefillText(gpu_prefill);
  if (gpu_answers.steps > 0) out += GpuAnswersText(gpu_answers);
  const double busy_s = static_cast<double>(reads.busy_ns) * 1e-9;
  const uint64_t read_bytes = reads.demand_bytes + reads.speculative_bytes;
  out += fmt::format(
      "drive    {} read, {:.2f} GB/s while busy ({:.2f} s), {} retries, {} failures\n",
      FormatByteSize(read_bytes), Ratio(static_cast<double>(read_bytes) * 1e-9, busy_s), busy_s,
      reads.retries, reads.failures);
  for (const DriveStats& drive : drives) {
    out += fmt::format("         {}: {} in {} reads, {} errors, {} of them healed by the other copy\n",
                       drive.directory, FormatByteSize(drive.bytes), drive.reads, drive.errors,
                       drive.healed);
  }
  out += fmt::format("experts  {} of {} resident, {} slots of {}, {} evictions\n", residency.resident,
                     expert_count, residency.slot_count, FormatByteSize(residency.slot_bytes),
                     residency.evictions);
  if (residency.slot_target != residency.slot_count || residency.closing_slots > 0) {
    out += fmt::format("         the budget is changing to {} slots; {} are being given back\n",
                       residency.slot_target, residency.closing_slots);
  }
  if (residency.healed > 0) {
    out += fmt::format("         {} records were right only when read again: run `moraine verify {}`\n",
                       residency.healed, store);
  }
  if (residency.quarantined > 0) {
    out += fmt::format("         {} experts have corrupt records: run `moraine verify {}`\n",
                       residency.quarantined, store);
  }
  out += fmt::format("memory   {} resident (peak {}), budget {}\n",
                     FormatByteSize(memory.resident_set_bytes),
                     FormatByteSize(memory.peak_resident_set_bytes),
                     memory.budget_bytes == 0 ? "a share of the experts"
                                              : FormatByteSize(memory.budget_bytes));
  out += fmt::format("         dense {}, KV {}, experts {}, scratch {}\n",
                     FormatByteSize(memory.dense_bytes), FormatByteSize(memory.kv_bytes),
                     FormatByteSize(memory.slot_bytes), FormatByteSize(memory.scratch_bytes));
  out += RequestsText(*this);
  if (per_layer) out += LayerTable(layers);
  return out;
}

}  // namespace moraine
