// One report of `moraine stats`: rates and shares of an interval, from an engine's counters.
//
// iostat's grammar: the first report is of everything since the start, each further one of the time since
// the report before. What was not measured is absent here, null in JSON and n/a in text, never 0.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "base/status.h"
#include "engine/stats.h"
#include "engine/miss_curve.h"

namespace moraine {

struct StatsInterval {
  EngineStats stats;  // counters of the interval; gauges (memory, slots, queue) of its end
  int64_t length_ns = 0;
  bool since_start = true;
};

// From what /stats answered at two moments, `length_ns` apart on the caller's clock (an idle engine's own
// stands still). Since the start if the server was started again between them.
Result<StatsInterval> IntervalBetween(const std::string& before_json, const std::string& after_json,
                                      int64_t length_ns);
Result<StatsInterval> IntervalSinceStart(const std::string& json);

// What is known beside the counters.
struct StatsContext {
  std::optional<double> drive_gb_per_s;  // measured: moraine bench io --save, doctor --save
  std::optional<MissCurve> curve;
};

// Per token, of one phase. Absent if it computed none.
struct PhaseReport {
  double tokens_per_s = 0;  // while it computed
  double busy_share = 0;    // of the interval
  double ms = 0;            // the sum of the six below
  double attention_ms = 0, experts_ms = 0, stall_ms = 0, checksums_ms = 0, residency_ms = 0, other_ms = 0;
  std::optional<double> hit_share;  // of lookups, experts read ahead in time included
  double mib_read = 0;
};

enum class Bound : uint8_t { kNothing, kDrive, kCompute, kOther };

struct StatsReport {
  std::optional<PhaseReport> prefill, decode;
  std::optional<double> drive_gb_per_s, drive_share, read_p99_ms;  // while reading; share of the measured
  double drive_busy_share = 0;
  std::optional<double> prefetch_useful, prefetch_late, prefetch_wasted;  // shares of the bytes read ahead
  Bound decode_bound = Bound::kNothing;
  static constexpr std::array<double, 4> kCacheSizes = {0.5, 1, 1.5, 2};
  std::array<std::optional<double>, 4> projected_tokens_per_s;  // of decode, at so many times the cache
  std::string advice;  // one sentence, or empty
};

StatsReport MakeStatsReport(const StatsInterval& interval, const StatsContext& context);

std::string StatsReportText(const StatsInterval& interval, const StatsReport& report, bool per_layer);
// One line: the statistics of the interval as /stats has them, and "report".
std::string StatsReportJson(const StatsInterval& interval, const StatsReport& report);

}  // namespace moraine
