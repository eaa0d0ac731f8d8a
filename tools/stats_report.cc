#include "stats_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/bytes.h"

namespace moraine {
namespace {

using Json = nlohmann::ordered_json;

// Members of /stats that are states and not counts; everything else below them, too.
bool IsGauge(const std::string& name) {
  static const std::set<std::string> kGauges = {
      "threads", "queue_length", "expert_count", "expert_bytes", "memory", "quarantined", "slot_count",
      "ring_slots", "resident", "slot_target", "longest_ns", "longest_preempted_ns", "closing_slots", "slot_bytes", "layer", "experts"};
  return kGauges.count(name) > 0;
}

// after - before, for all counts; false if one of them has fallen or the forms differ.
bool Subtract(const Json& before, Json* after) {
  if (before.type() != after->type() && !(before.is_number() && after->is_number())) return false;
  if (after->is_number_integer()) {
    const int64_t difference = after->get<int64_t>() - before.get<int64_t>();
    *after = difference;
    return true;  // wall times by difference may fall by rounding
  }
  if (after->is_array()) {
    if (before.size() != after->size()) return false;
    for (size_t i = 0; i < after->size(); ++i) {
      if (!Subtract(before[i], &(*after)[i])) return false;
    }
  }
  if (after->is_object()) {
    for (auto& [name, value] : after->items()) {
      if (IsGauge(name)) continue;
      const auto found = before.find(name);
      if (found == before.end() || !Subtract(*found, &value)) return false;
    }
  }
  return true;
}

uint64_t Total(const LookupCounters& c) {
  return c.hit + c.cold_miss + c.in_flight_miss + c.prefetch_hit;
}

std::optional<double> HitShare(const LookupCounters& c) {
  if (Total(c) == 0) return std::nullopt;
  return static_cast<double>(c.hit + c.prefetch_hit) / static_cast<double>(Total(c));
}

std::optional<PhaseReport> ReportOf(const PhaseStats& phase, const LookupCounters& lookups,
                                    int64_t interval_ns) {
  if (phase.tokens == 0 || phase.wall_ns <= 0) return std::nullopt;
  const double tokens = static_cast<double>(phase.tokens);
  const auto ms = [&](int64_t ns) { return static_cast<double>(ns) * 1e-6 / tokens; };
  PhaseReport report;
  report.tokens_per_s = tokens * 1e9 / static_cast<double>(phase.wall_ns);
  report.busy_share = interval_ns > 0 ? static_cast<double>(phase.wall_ns) / static_cast<double>(interval_ns) : 0;
  report.ms = ms(phase.wall_ns);
  report.attention_ms = ms(phase.attention_ns);
  report.experts_ms = ms(phase.expert_ns);
  report.stall_ms = ms(phase.stall_ns);
  report.checksums_ms = ms(phase.verify_ns);
  report.residency_ms = ms(phase.residency_ns);
  report.other_ms = ms(phase.other_ns());
  report.hit_share = HitShare(lookups);
  report.mib_read = static_cast<double>(phase.bytes_read) / static_cast<double>(kMiB) / tokens;
  return report;
}

// What takes most of a decoded token's time; nothing where no part takes a third of it.
Bound BoundOf(const PhaseReport& decode) {
  const std::pair<double, Bound> parts[] = {
      {decode.stall_ms, Bound::kDrive},
      {decode.attention_ms + decode.experts_ms + decode.checksums_ms, Bound::kCompute},
      {decode.residency_ms + decode.other_ms, Bound::kOther}};
  const auto& largest = *std::max_element(std::begin(parts), std::end(parts));
  return largest.first * 3 >= decode.ms ? largest.second : Bound::kNothing;
}

// The stall grows and shrinks with the bytes that miss, and no token is faster than its reads.
void Project(const StatsInterval& interval, const MissCurve& curve, StatsReport* report) {
  const EngineStats& stats = interval.stats;
  if (!report->decode || report->decode->mib_read <= 0) return;
  const double resident =
      static_cast<double>(stats.residency.slot_count) / static_cast<double>(stats.expert_count);
  const double now = curve.MissShare(resident);
  if (now <= 0) return;
  const double read_bytes = static_cast<double>(stats.prefill.bytes_read + stats.decode.bytes_read);
  const double busy_ms = static_cast<double>(stats.reads.busy_ns) * 1e-6 *
                         (static_cast<double>(stats.decode.bytes_read) / read_bytes) /
                         static_cast<double>(stats.decode.tokens);
  for (size_t i = 0; i < StatsReport::kCacheSizes.size(); ++i) {
    const double ratio = curve.MissShare(resident * StatsReport::kCacheSizes[i]) / now;
    const double computing_ms = report->decode->ms - report->decode->stall_ms;
    const double ms = std::max(computing_ms + report->decode->stall_ms * ratio, busy_ms * ratio);
    report->projected_tokens_per_s[i] = ratio == 1 ? report->decode->tokens_per_s : 1000 / ms;
  }
}

std::string Advice(const StatsInterval& interval, const StatsReport& report) {
  const EngineStats& stats = interval.stats;
  if (stats.residency.quarantined > 0) {
    return fmt::format("{} experts have corrupt records: moraine verify {}", stats.residency.quarantined,
                       stats.store);
  }
  if (stats.reads.failures > 0) {
    return fmt::format("{} reads failed: moraine doctor {}", stats.reads.failures, stats.store);
  }
  if (!report.decode || report.decode_bound != Bound::kDrive) {
    if (stats.queue_length > 0) return fmt::format("{} requests wait", stats.queue_length);
    return "";
  }
  const auto& now = report.projected_tokens_per_s[1];
  for (const size_t i : {size_t{2}, size_t{3}}) {
    const auto& then = report.projected_tokens_per_s[i];
    if (!now || !then || *then < 1.1 * *now) continue;
    const double more = static_cast<double>(stats.memory.slot_bytes) * (StatsReport::kCacheSizes[i] - 1);
    return fmt::format("{} more for --ram-budget would give about {:.0f} % more decode tok/s",
                       FormatByteSize(static_cast<uint64_t>(more)), 100 * (*then / *now - 1));
  }
  if (report.drive_share && *report.drive_share < 0.5) {
    return fmt::format("the drive gives {:.0f} % of what was measured: moraine doctor {}",
                       100 * *report.drive_share, stats.store);
  }
  if (!report.drive_gb_per_s || report.drive_share) return "";
  return fmt::format("what the drive can do is not known: moraine bench io {} --save", stats.store);
}

}  // namespace

Result<StatsInterval> IntervalSinceStart(const std::string& json) {
  StatsInterval interval;
  ASSIGN_OR_RETURN(interval.stats, ParseEngineStats(json));
  interval.length_ns = interval.stats.uptime_ns;
  return interval;
}

Result<StatsInterval> IntervalBetween(const std::string& before_json, const std::string& after_json,
                                      int64_t length_ns) {
  ASSIGN_OR_RETURN(StatsInterval interval, IntervalSinceStart(after_json));
  const Json before = Json::parse(before_json, nullptr, false);
  Json after = Json::parse(after_json);  // ParseEngineStats has read it
  const int64_t end_ns = interval.stats.uptime_ns;
  if (!Subtract(before, &after)) return interval;
  // Counters that have fallen are another process's.
  if (after["uptime_ns"] < 0 || after["requests"] < 0 || after["decode"]["tokens"] < 0) return interval;
  ASSIGN_OR_RETURN(interval.stats, ParseEngineStats(after.dump()));
  interval.length_ns = length_ns;
  interval.since_start = false;
  interval.stats.uptime_ns = end_ns;
  return interval;
}

StatsReport MakeStatsReport(const StatsInterval& interval, const StatsContext& context) {
  const EngineStats& stats = interval.stats;
  StatsReport report;
  report.prefill = ReportOf(stats.prefill, stats.residency.prefill, interval.length_ns);
  report.decode = ReportOf(stats.decode, stats.residency.decode, interval.length_ns);
  if (report.decode) report.decode_bound = BoundOf(*report.decode);
  const double busy_ns = static_cast<double>(stats.reads.busy_ns);
  if (busy_ns > 0) {
    report.drive_gb_per_s =
        static_cast<double>(stats.reads.demand_bytes + stats.reads.speculative_bytes) / busy_ns;
    if (context.drive_gb_per_s) report.drive_share = *report.drive_gb_per_s / *context.drive_gb_per_s;
  }
  if (interval.length_ns > 0) report.drive_busy_share = busy_ns / static_cast<double>(interval.length_ns);
  if (const auto p99 = stats.reads.demand_latency.QuantileNs(0.99)) {
    report.read_p99_ms = static_cast<double>(*p99) * 1e-6;
  }
  const ResidencyStats& r = stats.residency;
  const double ahead = static_cast<double>(r.prefetch_useful_bytes + r.prefetch_late_bytes + r.prefetch_wasted_bytes);
  if (ahead > 0) {
    report.prefetch_useful = static_cast<double>(r.prefetch_useful_bytes) / ahead;
    report.prefetch_late = static_cast<double>(r.prefetch_late_bytes) / ahead;
    report.prefetch_wasted = static_cast<double>(r.prefetch_wasted_bytes) / ahead;
  }
  if (context.curve) Project(interval, *context.curve, &report);
  report.advice = Advice(interval, report);
  return report;
}

namespace {

const char* BoundName(Bound bound) {
  switch (bound) {
    case Bound::kDrive: return "drive";
    case Bound::kCompute: return "compute";
    case Bound::kOther: return "other";
    case Bound::kNothing: break;
  }
  return "n/a";
}

// A column of `width`, n/a where there is nothing.
std::string Cell(const std::optional<double>& value, int width, int decimals, double factor = 1) {
  if (!value) return fmt::format("{:>{}}", "n/a", width);
  return fmt::format("{:>{}.{}f}", *value * factor, width, decimals);
}

std::string PhaseLine(const char* name, const std::optional<PhaseReport>& report) {
  const auto cell = [&](double PhaseReport::*field, int width, int decimals, double factor = 1) {
    return Cell(report ? std::optional<double>((*report).*field) : std::nullopt, width, decimals, factor);
  };
  return fmt::format("{:<8}", name) + cell(&PhaseReport::tokens_per_s, 10, 2) +
         cell(&PhaseReport::busy_share, 8, 1, 100) + cell(&PhaseReport::ms, 10, 3) +
         cell(&PhaseReport::attention_ms, 9, 3) + cell(&PhaseReport::experts_ms, 9, 3) +
         cell(&PhaseReport::stall_ms, 9, 3) + cell(&PhaseReport::checksums_ms, 8, 3) +
         cell(&PhaseReport::residency_ms, 8, 3) + cell(&PhaseReport::other_ms, 8, 3) +
         Cell(report ? report->hit_share : std::nullopt, 8, 1, 100) +
         cell(&PhaseReport::mib_read, 10, 2) + "\n";
}

std::string LayerTable(const StatsInterval& interval) {
  std::string out = "layer  resident      hit%      cold  inflight  prefetch  stall ms/token\n";
  const double tokens = static_cast<double>(interval.stats.prefill.tokens + interval.stats.decode.tokens);
  for (const LayerStats& layer : interval.stats.layers) {
    const LookupCounters& c = layer.lookups;
    const double stall_ms = static_cast<double>(layer.stall_ns) * 1e-6;
    out += fmt::format("{:>5}  {:>8}{}  {:>8}  {:>8}  {:>8}{}\n", layer.layer,
                       fmt::format("{}/{}", layer.resident, layer.experts), Cell(HitShare(c), 10, 1, 100),
                       c.cold_miss, c.in_flight_miss, c.prefetch_hit,
                       Cell(tokens > 0 ? std::optional(stall_ms / tokens) : std::nullopt, 16, 4));
  }
  return out;
}

}  // namespace

std::string StatsReportText(const StatsInterval& interval, const StatsReport& report, bool per_layer) {
  const EngineStats& s = interval.stats;
  std::string out = fmt::format(
      "{} ({}, {}, {}, {} threads{}{}): {:.1f} s{}, {} requests ({} failed, {} cancelled), {} waiting\n",
      s.model, s.io, s.policy, s.isa, s.threads, s.lossy.empty() ? "" : ", LOSSY: ", s.lossy,
      static_cast<double>(interval.length_ns) * 1e-9, interval.since_start ? " since start" : "",
      s.requests, s.requests_failed, s.requests_cancelled, s.queue_length);
  out += "phase        tok/s   busy%    ms/tok     attn  experts    stall   check   resid   other    hit%   "
         "MiB/tok\n";
  out += PhaseLine("prefill", report.prefill) + PhaseLine("decode", report.decode);
  out += "drive         GB/s    max%     busy%   p99 ms   ahead:  useful%   late% wasted%\n";
  out += "        " + Cell(report.drive_gb_per_s, 10, 2) + Cell(report.drive_share, 8, 1, 100) +
         Cell(report.drive_busy_share, 10, 1, 100) + Cell(report.read_p99_ms, 9, 2) +
         Cell(report.prefetch_useful, 18, 1, 100) + Cell(report.prefetch_late, 8, 1, 100) +
         Cell(report.prefetch_wasted, 8, 1, 100) + "\n";
  out += fmt::format("memory  {} of {} experts in {} of slots, dense {}, KV {}; {} resident of {}\n",
                     s.residency.resident, s.expert_count, FormatByteSize(s.memory.slot_bytes),
                     FormatByteSize(s.memory.dense_bytes), FormatByteSize(s.memory.kv_bytes),
                     FormatByteSize(s.memory.resident_set_bytes),
                     s.memory.budget_bytes == 0 ? "a share of the experts"
                                                : FormatByteSize(s.memory.budget_bytes));
  if (s.residency.slot_target != s.residency.slot_count || s.residency.closing_slots > 0) {
    out += fmt::format("        changing to {} slots from {}; {} are being given back\n",
                       s.residency.slot_target, s.residency.slot_count, s.residency.closing_slots);
  }
  out += s.steps.ToText();
  for (const DriveStats& drive : s.drives) {
    out += fmt::format("mirror  {}: {} in {} reads, {} errors, {} of them healed by the other copy\n",
                       drive.directory, FormatByteSize(drive.bytes), drive.reads, drive.errors, drive.healed);
  }
  out += fmt::format("decode is bound by {}; tok/s at", BoundName(report.decode_bound));
  for (size_t i = 0; i < StatsReport::kCacheSizes.size(); ++i) {
    out += fmt::format(" {}x the cache {}{}", StatsReport::kCacheSizes[i],
                       Cell(report.projected_tokens_per_s[i], 0, 1),
                       i + 1 < StatsReport::kCacheSizes.size() ? "," : " (projected)\n");
  }
  if (!report.advice.empty()) out += "advice  " + report.advice + "\n";
  if (per_layer) out += LayerTable(interval);
  return out;
}

namespace {

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json PhaseJson(const std::optional<PhaseReport>& report) {
  if (!report) return nullptr;
  return {{"tokens_per_s", report->tokens_per_s},
          {"busy_share", report->busy_share},
          {"ms_per_token", report->ms},
          {"parts_ms_per_token",
           {{"attention", report->attention_ms},
            {"experts", report->experts_ms},
            {"stall", report->stall_ms},
            {"checksums", report->checksums_ms},
            {"residency", report->residency_ms},
            {"other", report->other_ms}}},
          {"hit_share", OrNull(report->hit_share)},
          {"mib_per_token", report->mib_read}};
}

}  // namespace

std::string StatsReportJson(const StatsInterval& interval, const StatsReport& report) {
  Json json = Json::parse(interval.stats.ToJson());
  Json& r = json["report"];
  r["since_start"] = interval.since_start;
  r["interval_ns"] = interval.length_ns;
  r["prefill"] = PhaseJson(report.prefill);
  r["decode"] = PhaseJson(report.decode);
  r["drive"] = {{"gb_per_s", OrNull(report.drive_gb_per_s)},
                {"share_of_measured", OrNull(report.drive_share)},
                {"busy_share", report.drive_busy_share},
                {"read_p99_ms", OrNull(report.read_p99_ms)}};
  r["prefetch"] = {{"useful_share", OrNull(report.prefetch_useful)},
                   {"late_share", OrNull(report.prefetch_late)},
                   {"wasted_share", OrNull(report.prefetch_wasted)}};
  r["decode_bound"] = report.decode_bound == Bound::kNothing ? Json() : Json(BoundName(report.decode_bound));
  Json& projection = r["projection"] = Json::array();
  for (size_t i = 0; i < StatsReport::kCacheSizes.size(); ++i) {
    projection.push_back({{"cache", StatsReport::kCacheSizes[i]},
                          {"decode_tokens_per_s", OrNull(report.projected_tokens_per_s[i])}});
  }
  r["advice"] = report.advice.empty() ? Json() : Json(report.advice);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace moraine
