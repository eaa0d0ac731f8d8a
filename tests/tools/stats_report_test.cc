#include "stats_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/bytes.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

// A server after `seconds` of decoding 10 tokens a second, 60 % of the time waiting for the drive.
EngineStats StatsAfter(int seconds) {
  EngineStats stats;
  const auto n = static_cast<uint64_t>(seconds);
  const int64_t ms = 1'000'000 * static_cast<int64_t>(seconds);
  stats.model = "m";
  stats.store = "/absent";
  stats.expert_count = 20;
  stats.threads = 4;
  stats.requests = n;
  stats.queue_length = 2;
  stats.uptime_ns = 1000 * ms;
  stats.decode = {.steps = 10 * n, .tokens = 10 * n, .wall_ns = 500 * ms, .attention_ns = 50 * ms,
                  .expert_ns = 100 * ms, .stall_ns = 300 * ms, .verify_ns = 20 * ms,
                  .residency_ns = 20 * ms, .bytes_read = 100 * n * kMiB};
  stats.residency.decode = {.hit = 70 * n, .cold_miss = 20 * n, .in_flight_miss = 5 * n,
                            .prefetch_hit = 5 * n};
  stats.residency.prefetch_useful_bytes = 60 * n;
  stats.residency.prefetch_late_bytes = 10 * n;
  stats.residency.prefetch_wasted_bytes = 30 * n;
  stats.residency.slot_count = 10;
  stats.residency.slot_target = 10;
  stats.residency.resident = 9;
  stats.memory.slot_bytes = 10 * kMiB;
  stats.reads.demand_bytes = 800'000'000 * n;
  stats.reads.busy_ns = 400'000'000 * n;
  for (uint64_t i = 0; i < 10 * n; ++i) stats.reads.demand_latency.Add(1'000'000);
  stats.layers.push_back({.layer = 3, .experts = 16, .resident = 9,
                          .lookups = {.hit = 30 * n, .cold_miss = 10 * n}, .stall_ns = 300 * ms});
  return stats;
}

StatsInterval Since(const EngineStats& stats) {
  const auto interval = IntervalSinceStart(stats.ToJson());
  EXPECT_TRUE(interval.ok()) << interval.status().ToString();
  return *interval;
}

TEST(StatsReportTest, RatesPartsAndShares) {
  const StatsReport report = MakeStatsReport(Since(StatsAfter(10)), {.drive_gb_per_s = 4.0, .curve = {}});
  EXPECT_FALSE(report.prefill);
  ASSERT_TRUE(report.decode);
  const PhaseReport& decode = *report.decode;
  EXPECT_DOUBLE_EQ(decode.tokens_per_s, 20);  // while it computed, half of the time
  EXPECT_DOUBLE_EQ(decode.busy_share, 0.5);
  EXPECT_DOUBLE_EQ(decode.ms, 50);
  EXPECT_DOUBLE_EQ(decode.attention_ms + decode.experts_ms + decode.stall_ms + decode.checksums_ms +
                       decode.residency_ms + decode.other_ms,
                   decode.ms);
  EXPECT_DOUBLE_EQ(decode.stall_ms, 30);
  EXPECT_DOUBLE_EQ(decode.other_ms, 1);
  EXPECT_DOUBLE_EQ(*decode.hit_share, 0.75);
  EXPECT_DOUBLE_EQ(decode.mib_read, 10);
  EXPECT_DOUBLE_EQ(*report.drive_gb_per_s, 2);
  EXPECT_DOUBLE_EQ(*report.drive_share, 0.5);
  EXPECT_DOUBLE_EQ(report.drive_busy_share, 0.4);
  EXPECT_DOUBLE_EQ(*report.read_p99_ms, 1.024);
  EXPECT_DOUBLE_EQ(*report.prefetch_useful, 0.6);
  EXPECT_DOUBLE_EQ(*report.prefetch_wasted, 0.3);
  EXPECT_EQ(report.decode_bound, Bound::kDrive);
  EXPECT_FALSE(report.projected_tokens_per_s[1]);
}

TEST(StatsReportTest, AnIntervalIsTheDifferenceAndGaugesAreItsEnd) {
  EngineStats after = StatsAfter(15);
  after.queue_length = 1;
  after.residency.resident = 8;
  after.memory.slot_bytes = 5 * kMiB;
  const auto interval = IntervalBetween(StatsAfter(10).ToJson(), after.ToJson(), 5'000'000'000);
  ASSERT_TRUE(interval.ok()) << interval.status().ToString();
  EXPECT_FALSE(interval->since_start);
  EXPECT_EQ(interval->length_ns, 5'000'000'000);
  const EngineStats& s = interval->stats;
  EXPECT_EQ(s.requests, 5u);
  EXPECT_EQ(s.decode.tokens, 50u);
  EXPECT_EQ(s.residency.decode.hit, 350u);
  EXPECT_EQ(s.reads.demand_latency.total(), 50u);
  EXPECT_EQ(s.layers.at(0).lookups.cold_miss, 50u);
  EXPECT_EQ(s.layers[0].layer, 3u);
  EXPECT_EQ(s.layers[0].experts, 16u);
  EXPECT_EQ(s.threads, 4);
  EXPECT_EQ(s.queue_length, 1u);
  EXPECT_EQ(s.residency.resident, 8u);
  EXPECT_EQ(s.residency.slot_count, 10u);
  EXPECT_EQ(s.memory.slot_bytes, 5 * kMiB);
}

TEST(StatsReportTest, AServerThatWasStartedAgainIsReportedSinceItsStart) {
  const auto interval = IntervalBetween(StatsAfter(10).ToJson(), StatsAfter(3).ToJson(), 1);
  ASSERT_TRUE(interval.ok());
  EXPECT_TRUE(interval->since_start);
  EXPECT_EQ(interval->stats.decode.tokens, 30u);
  EXPECT_FALSE(IntervalBetween(StatsAfter(1).ToJson(), "{}", 1).ok());
}

TEST(StatsReportTest, WhatWasNotMeasuredIsSaidSo) {
  EngineStats idle = StatsAfter(10);
  idle.decode = {};
  idle.reads = {};
  idle.residency = {};
  const StatsInterval interval = Since(idle);
  const StatsReport report = MakeStatsReport(interval, {});
  const std::string text = StatsReportText(interval, report, true);
  EXPECT_NE(text.find("decode         n/a     n/a       n/a"), std::string::npos) << text;
  EXPECT_NE(text.find("bound by n/a"), std::string::npos) << text;
  const ordered_json json = ordered_json::parse(StatsReportJson(interval, report))["report"];
  EXPECT_TRUE(json["decode"].is_null());
  EXPECT_TRUE(json["drive"]["gb_per_s"].is_null());
  EXPECT_TRUE(json["drive"]["read_p99_ms"].is_null());
  EXPECT_TRUE(json["projection"][3]["decode_tokens_per_s"].is_null());
}

TEST(StatsReportTest, ProjectionFollowsTheCurveAndTheDrive) {
  // 10 slots of 20 experts used alike: half of the lookups miss, none with all.
  ASSERT_EQ(StatsAfter(10).residency.slot_count, 10u);
  const StatsContext context = {.drive_gb_per_s = {}, .curve = MissCurve(std::vector<float>(20, 0.1f))};
  const StatsInterval interval = Since(StatsAfter(10));
  const StatsReport report = MakeStatsReport(interval, context);
  // 20 ms of computing and 30 ms of stall a token; the drive is busy for 40 ms of them.
  EXPECT_NEAR(*report.projected_tokens_per_s[0], 1000 / (20 + 30 * 1.5), 1e-3);
  EXPECT_DOUBLE_EQ(*report.projected_tokens_per_s[1], 20);
  EXPECT_NEAR(*report.projected_tokens_per_s[2], 1000 / (20 + 30 * 0.5), 1e-3);
  EXPECT_NEAR(*report.projected_tokens_per_s[3], 1000 / 20.0, 1e-3);
  EXPECT_EQ(report.advice, "5.00 MiB more for --ram-budget would give about 43 % more decode tok/s");
  // Nobody decodes faster than the drive delivers.
  EngineStats busy = StatsAfter(10);
  busy.decode.stall_ns = 0;
  busy.decode.attention_ns += 3'000'000'000;
  busy.reads.busy_ns = 5'000'000'000;
  const StatsReport bound = MakeStatsReport(Since(busy), context);
  EXPECT_EQ(bound.decode_bound, Bound::kCompute);
  EXPECT_NEAR(*bound.projected_tokens_per_s[0], 1000 / (50 * 1.5), 1e-3);
  EXPECT_NEAR(*bound.projected_tokens_per_s[3], 20, 1e-3);
}

TEST(StatsReportTest, AdviceNamesWhatIsBroken) {
  EngineStats stats = StatsAfter(10);
  stats.residency.quarantined = 3;
  EXPECT_EQ(MakeStatsReport(Since(stats), {}).advice, "3 experts have corrupt records: moraine verify /absent");
  stats = StatsAfter(10);
  stats.reads.failures = 1;
  EXPECT_EQ(MakeStatsReport(Since(stats), {}).advice, "1 reads failed: moraine doctor /absent");
  EXPECT_EQ(MakeStatsReport(Since(StatsAfter(10)), {.drive_gb_per_s = 5.0, .curve = {}}).advice,
            "the drive gives 40 % of what was measured: moraine doctor /absent");
  EXPECT_EQ(MakeStatsReport(Since(StatsAfter(10)), {}).advice,
            "what the drive can do is not known: moraine bench io /absent --save");
}

}  // namespace
}  // namespace moraine
