#include "engine/stats.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "base/bytes.h"

namespace moraine {
namespace {

using nlohmann::ordered_json;

// Every field has a value of its own, so that two swapped fields cannot cancel out.
EngineStats Filled() {
  EngineStats stats;
  stats.model = "demo \"quoted\"";
  stats.store = "/stores/demo";
  stats.io = "io_uring";
  stats.isa = "avx2";
  stats.policy = "heat";
  stats.lossy = "defer 2";
  stats.threads = 4;
  stats.requests = 11;
  stats.requests_failed = 12;
  stats.requests_cancelled = 13;
  stats.queue_length = 14;
  stats.running = 16;
  stats.uptime_ns = 15'000'000'000;
  stats.prefill = {.steps = 21, .tokens = 512, .wall_ns = 2'000'000'000, .attention_ns = 500'000'000,
                   .expert_ns = 700'000'000, .stall_ns = 600'000'000, .verify_ns = 20'000'000,
                   .residency_ns = 10'000'000, .bytes_read = 64 * kMiB};
  stats.decode = {.steps = 100, .tokens = 100, .wall_ns = 1'000'000'000, .attention_ns = 250'000'000,
                  .expert_ns = 400'000'000, .stall_ns = 270'000'000, .verify_ns = 20'000'000,
                  .residency_ns = 10'000'000, .bytes_read = 200 * kMiB};
  for (const int64_t ms : {12, 14, 15, 16, 900}) stats.steps.turns.Add(ms * 1'000'000);
  for (const int64_t ms : {13, 2400}) stats.steps.waits.Add(ms * 1'000'000);
  stats.steps.longest_preempted_ns = 2'400'000'000;
  for (size_t part = 0; part < kStepParts; ++part) {
    const auto n = static_cast<int64_t>(part) + 1;
    stats.steps.part_ns[part] = 1'000'000 * n;
    stats.steps.caused[part] = static_cast<uint64_t>(50 + n);
    stats.steps.longest_ns[part] = 10'000'000 * (n % 7 + 1);
  }
  stats.residency.decode = {.hit = 700, .cold_miss = 200, .in_flight_miss = 60, .prefetch_hit = 40};
  stats.residency.prefill = {.hit = 31, .cold_miss = 32, .in_flight_miss = 33, .prefetch_hit = 34};
  stats.residency.evictions = 41;
  stats.residency.quarantined = 1;
  stats.residency.failed_reads = 42;
  stats.residency.healed = 142;
  stats.residency.prefetch_issued = 43;
  stats.residency.prefetch_used = 44;
  stats.residency.prefetch_wasted = 45;
  stats.residency.prefetch_late = 14;
  stats.residency.prefetch_useful_bytes = 4501;
  stats.residency.prefetch_late_bytes = 4502;
  stats.residency.prefetch_wasted_bytes = 4503;
  stats.residency.verify_ns = 4504;
  stats.residency.bytes_read = 46;
  stats.residency.slot_count = 47;
  stats.residency.ring_slots = 48;
  stats.residency.slot_target = 147;
  stats.residency.closing_slots = 148;
  stats.residency.moved = 149;
  stats.residency.resident = 49;
  stats.residency.slot_bytes = 2 * kMiB;
  stats.reads = {.demand_bytes = 3'000'000'000, .speculative_bytes = 1'000'000'000,
                 .demand_records = 53, .speculative_records = 54, .short_reads = 55, .retries = 56,
                 .failures = 57, .deadline_misses = 58, .cancelled = 59, .submit_calls = 60,
                 .demand_latency = {}, .busy_ns = 2'000'000'000};
  for (const int64_t ns : {30'000, 31'000, 1'000'000, 2'000'000'000}) {
    stats.reads.demand_latency.Add(ns);
  }
  stats.drives = {{"/nvme1/q30", 61, 62, 63, 64}, {"/nvme2/q30", 65, 66, 67, 68}};
  stats.memory = {.budget_bytes = 8 * kGiB, .dense_bytes = kGiB, .kv_bytes = 256 * kMiB,
                  .slot_bytes = 4 * kGiB, .scratch_bytes = 64 * kMiB,
                  .resident_set_bytes = 6 * kGiB, .peak_resident_set_bytes = 7 * kGiB};
  stats.gpu_prefill = {.gpu = "NVIDIA H200", .tokens = 8192, .chunks = 2, .copied_bytes = 30 * kGiB,
                       .break_even_tokens = 128, .failures = 1};
  stats.gpu_answers = {.tokens = 201, .steps = 202, .failed_steps = 203, .experts_in_vram = 600,
                       .experts_over_link = 300, .experts_on_cpu = 100, .slots = 204, .live = 205,
                       .promotions = 206, .demotions = 207, .copied_bytes = 3 * kGiB,
                       .cpu_expert_ns = 208, .link_expert_ns = 209, .together_step_ns = 210,
                       .cpu_step_ns = 211};
  stats.gpu_memory = {.budget_bytes = 16 * kGiB, .dense_bytes = 2 * kGiB, .kv_bytes = 512 * kMiB,
                      .scratch_bytes = 600 * kMiB, .expert_bytes = 9 * kGiB, .ring_bytes = 700 * kMiB,
                      .streamed_bytes = 5 * kGiB};
  stats.kv = {.blocks = 64, .held = 20, .cached = 30, .evicted = 71, .prompt_tokens = 72,
              .reused_tokens = 73, .preempted = 74, .restored_tokens = 75, .disk_blocks = 76,
              .disk_failures = 77};
  stats.expert_count = 320;
  stats.expert_bytes = UINT64_C(1) << 40;
  for (uint32_t layer : {1u, 3u}) {
    stats.layers.push_back({.layer = layer, .experts = 160, .resident = 20 + layer,
                            .lookups = {.hit = 75, .cold_miss = 14 + layer, .in_flight_miss = 6,
                                        .prefetch_hit = 5 - layer},
                            .stall_ns = 1'000'000 * layer});
  }
  return stats;
}

TEST(EngineStatsTest, JsonRoundTripKeepsEveryField) {
  const std::string json = Filled().ToJson();
  Result<EngineStats> parsed = ParseEngineStats(json);
  ASSERT_TRUE(parsed.ok()) << parsed.status().ToString();
  EXPECT_EQ(parsed->ToJson(), json);
  // Spot checks against the struct, since a field that both directions forget would round-trip.
  EXPECT_EQ(parsed->model, "demo \"quoted\"");
  EXPECT_EQ(parsed->decode.stall_ns, 270'000'000);
  EXPECT_EQ(parsed->residency.prefill.in_flight_miss, 33u);
  EXPECT_EQ(parsed->reads.submit_calls, 60u);
  EXPECT_EQ(parsed->residency.healed, 142u);
  EXPECT_EQ(parsed->steps.waits.longest_ns, 2'400'000'000);
  EXPECT_EQ(parsed->steps.caused[static_cast<size_t>(StepPart::kMixed)], 52u);
  ASSERT_EQ(parsed->drives.size(), 2u);
  EXPECT_EQ(parsed->drives[1].directory, "/nvme2/q30");
  EXPECT_EQ(parsed->drives[1].bytes, 66u);
  EXPECT_EQ(parsed->drives[1].healed, 68u);
  EXPECT_EQ(parsed->memory.peak_resident_set_bytes, 7 * kGiB);
  EXPECT_EQ(parsed->running, 16u);
  EXPECT_EQ(parsed->kv.reused_tokens, 73u);
  EXPECT_EQ(parsed->expert_bytes, UINT64_C(1) << 40);
  ASSERT_EQ(parsed->layers.size(), 2u);
  EXPECT_EQ(parsed->layers[1].stall_ns, 3'000'000);
  EXPECT_EQ(parsed->layers[1].lookups.prefetch_hit, 2u);
}

void ExpectNoZero(const ordered_json& json, const std::string& path) {
  for (const auto& [key, value] : json.items()) {
    if (key == "counts") continue;  // of buckets, which may be empty
    if (value.is_structured()) ExpectNoZero(value, path + "." + key);
    if (value.is_number()) {
      EXPECT_NE(value.get<int64_t>(), 0) << path << "." << key;
    }
  }
}

// Fails when a field of the JSON is not filled from the struct.
TEST(EngineStatsTest, JsonHasNoZeroFieldWhenAllAreSet) {
  ExpectNoZero(ordered_json::parse(Filled().ToJson()), "");
}

TEST(EngineStatsTest, TextOnAGpuSaysWhatIsThere) {
  EngineStats stats = Filled();
  stats.gpu = "NVIDIA H200";
  const std::string text = stats.ToText(true);
  for (const char* part : {"NVIDIA H200", "512 tokens", "dense 2.00 GiB", "experts 9.00 GiB",
                           "5.00 GiB of experts streamed", "ring of 700.0 MiB", "11 (12 failed"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << " in\n" << text;
  }
  EXPECT_EQ(text.find("io_uring"), std::string::npos) << "no drive is read";
}

TEST(EngineStatsTest, EveryMissingOrIllTypedFieldIsNamed) {
  const ordered_json good = ordered_json::parse(Filled().ToJson());
  int tried = 0;
  const ordered_json flat = good.flatten();
  for (const auto& [pointer, value] : flat.items()) {
    if (pointer.ends_with("/other_ns")) continue;  // derived
    ordered_json bad = good;
    bad[ordered_json::json_pointer(pointer)] = ordered_json::array();
    const Result<EngineStats> parsed = ParseEngineStats(bad.dump());
    ASSERT_FALSE(parsed.ok()) << pointer;
    EXPECT_EQ(parsed.status().code(), StatusCode::kInvalidArgument);
    // Of a bucket its array is named.
    const std::string path = pointer.substr(0, pointer.find_last_not_of("0123456789") + 1);
    const std::string place = path.ends_with('/') ? path.substr(0, path.size() - 1) : pointer;
    const std::string field = place.substr(place.rfind('/') + 1);
    EXPECT_NE(parsed.status().message().find(field), std::string::npos)
        << pointer << ": " << parsed.status().message();
    ++tried;
  }
  EXPECT_GE(tried, 80);
  ordered_json missing = good;
  missing["memory"].erase("kv_bytes");
  EXPECT_EQ(ParseEngineStats(missing.dump()).status().message(),
            "statistics: memory.kv_bytes is missing");
  EXPECT_FALSE(ParseEngineStats("{").ok());
  EXPECT_FALSE(ParseEngineStats("[]").ok());
}

TEST(EngineStatsTest, TextSaysWhereTheTimeWent) {
  const std::string text = Filled().ToText(false);
  EXPECT_NE(text.find("decode   100 tokens in 1.00 s: 100.00 tok/s, 10.00 ms/token\n"
                      "  time    attention 2.500 ms (25.0 %)  experts 4.000 ms (40.0 %)"
                      "  stall 2.700 ms (27.0 %)  checksums 0.200 ms (2.0 %)  residency 0.100 ms (1.0 %)"
                      "  other 0.500 ms (5.0 %)\n"
                      "  lookup  hit 700 (70.0 %)  cold 200 (20.0 %)  in flight 60 (6.0 %)"
                      "  prefetched 40 (4.0 %)\n"
                      "  read    2.00 MiB/token, 200.0 MiB in all\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("2.00 GB/s while busy (2.00 s)"), std::string::npos) << text;
  EXPECT_NE(text.find("memory   6.00 GiB resident (peak 7.00 GiB), budget 8.00 GiB"),
            std::string::npos)
      << text;
  EXPECT_EQ(text.find("layer "), std::string::npos);
  EXPECT_NE(text.find("steps    half within 16 ms, 99 % within 900 ms; the longest so far 900 ms "
                      "(admit); a token waited for 2400 ms at most, of a preempted request 2400 ms"),
            std::string::npos)
      << text;
}

TEST(EngineStatsTest, PercentagesOfTimeSumToTheWallTime) {
  const std::string text = Filled().ToText(false);
  const std::regex time_line("  time .*");
  const std::regex percent("\\(([0-9.]+) %\\)");
  int lines = 0;
  for (std::sregex_iterator line(text.begin(), text.end(), time_line), end; line != end; ++line) {
    const std::string content = line->str();
    double sum = 0;
    for (std::sregex_iterator part(content.begin(), content.end(), percent); part != end; ++part) {
      sum += std::stod((*part)[1]);
    }
    EXPECT_NEAR(sum, 100.0, 0.2) << content;  // four figures rounded to 0.1
    ++lines;
  }
  EXPECT_EQ(lines, 2);
}

TEST(EngineStatsTest, LayerTableHasOneLineALayer) {
  const std::string text = Filled().ToText(true);
  EXPECT_NE(text.find("    1    21/160      79.0        15         6         4       1.00\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("    3    23/160 "), std::string::npos) << text;
}

TEST(EngineStatsTest, TextOfAnUnusedEngineDividesByNothing) {
  const std::string text = EngineStats().ToText(true);
  EXPECT_NE(text.find("decode   no tokens"), std::string::npos);
  EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  EXPECT_EQ(text.find("inf "), std::string::npos) << text;
}

TEST(EngineStatsTest, PrometheusTextIsWellFormed) {
  const std::string text = Filled().ToPrometheus();
  const std::regex sample(
      "moraine_[a-z_]+(\\{[a-z]+=\"([^\"\\\\]|\\\\.)*\"(,[a-z]+=\"([^\"\\\\]|\\\\.)*\")*\\})? "
      "[0-9.e+-]+");
  std::istringstream lines(text);
  std::set<std::string> types;
  std::string line, family;
  while (std::getline(lines, line)) {
    if (line.rfind("# TYPE ", 0) == 0) {
      family = line.substr(7, line.find(' ', 7) - 7);
      EXPECT_TRUE(types.insert(family).second) << "declared twice: " << family;
    } else if (line.rfind("# HELP ", 0) != 0) {
      EXPECT_TRUE(std::regex_match(line, sample)) << line;
      std::string name = line.substr(0, line.find_first_of("{ "));
      for (const char* part : {"_bucket", "_sum", "_count"}) {
        if (name == family + part) name = family;
      }
      EXPECT_EQ(name, family) << "outside its family";
    }
  }
  EXPECT_NE(text.find("moraine_tokens_total{phase=\"decode\"} 100\n"), std::string::npos);
  EXPECT_NE(text.find("moraine_info{model=\"demo \\\"quoted\\\"\""), std::string::npos) << text;
  EXPECT_NE(text.find("moraine_time_seconds_total{phase=\"decode\",part=\"other\"} 0.05\n"),
            std::string::npos)
      << text;
  for (const char* expected : {"moraine_drive_read_seconds_bucket{le=\"3.2e-05\"} 2\n",
                           "moraine_drive_read_seconds_bucket{le=\"0.001024\"} 3\n",
                           "moraine_drive_read_seconds_bucket{le=\"+Inf\"} 4\n",
                           "moraine_drive_read_seconds_sum 2.001061\n",
                           "moraine_drive_read_seconds_count 4\n"}) {
    EXPECT_NE(text.find(expected), std::string::npos) << expected << text;
  }
  for (const char* expected : {"moraine_step_seconds_bucket{le=\"0.016\"} 4\n",
                               "moraine_step_seconds_count 5\n",
                               "moraine_token_wait_seconds_bucket{le=\"+Inf\"} 2\n",
                               "moraine_step_caused_total{cause=\"mixed\"} 52\n",
                               "moraine_step_part_seconds_total{part=\"prompt\"} 0.003\n",
                               "moraine_step_longest_seconds{cause=\"admit\"} 0.07\n",
                               "moraine_token_wait_preempted_longest_seconds 2.4"}) {
    EXPECT_NE(text.find(expected), std::string::npos) << expected << text;
  }
  EXPECT_NE(text.find("moraine_layer_expert_lookups_total{layer=\"3\",result=\"hit\"} 75\n"),
            std::string::npos);
}

}  // namespace
}  // namespace moraine
