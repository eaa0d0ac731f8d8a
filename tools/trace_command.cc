// moraine trace: `record` is in trace_record_command.cc. `replay`: routing traces through the eviction
// policies, beside Belady's OPT.
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "commands.h"
#include "common_options.h"
#include "residency/eviction_policy.h"
#include "residency/trace_replay.h"

namespace moraine {
namespace {

struct ReplayArguments {
  std::vector<std::string> traces, policies = {"all"}, caches = {"5%", "10%", "20%", "30%"};
  bool json = false, curve = false, shift = false, lookahead = false;
  double device_gbps = 0, record_bytes = 0, compute_ms = 0;
};

// "10%" as 0.1.
Result<std::vector<double>> ParseCaches(const ReplayArguments& a) {
  std::vector<double> caches;
  if (a.curve) {
    for (const double percent : {1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100}) {
      caches.push_back(percent / 100);
    }
    return caches;
  }
  for (const std::string& text : a.caches) {
    char* end = nullptr;
    const double percent = std::strtod(text.c_str(), &end);
    if (end == text.c_str() || std::string(end) != "%" || !(percent > 0 && percent <= 100)) {
      return InvalidArgument("--cache '" + text + "': expected a share of the experts, as in 10%");
    }
    caches.push_back(percent / 100);
  }
  return caches;
}

std::vector<std::string> ParsePolicies(const ReplayArguments& a) {
  if (a.policies != std::vector<std::string>{"all"}) return a.policies;
  return {EvictionPolicyNames().begin(), EvictionPolicyNames().end()};
}

class Report {
 public:
  Report(const ReplayArguments& a, std::span<const std::string> names) : a_(a), names_(names) {
    device_ = {a.device_gbps * 1e9, a.record_bytes, a.compute_ms * 1e-3};
  }

  Status Print(std::span<const RoutingTrace> traces, std::span<const double> caches,
               std::span<const std::string> policies) {
    for (const double cache : caches) {
      const double experts = double{1} * traces.front().layers * traces.front().experts;
      cache_ = cache;
      slots_ = static_cast<uint32_t>(std::lround(cache * experts));
      if (a_.curve && slots_ < traces.front().top_k) continue;  // too few for one layer
      ASSIGN_OR_RETURN(optimal_, ReplayOptimal(traces, slots_, /*bypass=*/false));
      ASSIGN_OR_RETURN(bypass_, ReplayOptimal(traces, slots_, /*bypass=*/true));
      for (const std::string& policy : policies) {
        ASSIGN_OR_RETURN(const std::vector<ReplayCount> counts,
                         ReplayTraces(traces, {policy, slots_, a_.lookahead}));
        ReplayCount all, optimal, bypass;
        for (size_t i = 0; i < counts.size(); ++i) {
          Line(policy, names_[i], counts[i], optimal_[i], bypass_[i]);
          all += counts[i];
          optimal += optimal_[i];
          bypass += bypass_[i];
        }
        if (counts.size() > 1) Line(policy, "all", all, optimal, bypass);
      }
    }
    return OkStatus();
  }

 private:
  void Line(const std::string& policy, const std::string& name, const ReplayCount& count,
            const ReplayCount& optimal, const ReplayCount& bypass) {
    const bool device = device_.bytes_per_second > 0 || device_.compute_seconds > 0;
    const ProjectedSpeed speed = ProjectSpeed(count, device_);
    if (a_.json) {
      const auto rounded = [](double rate) { return std::round(rate * 1e5) / 1e5; };
      nlohmann::ordered_json line = {{"policy", policy},
                                     {"cache", cache_},
                                     {"slots", slots_},
                                     {"decode_hit_rate", rounded(count.hit_rate())},
                                     {"opt_hit_rate", rounded(optimal.hit_rate())},
                                     {"opt_bypass_hit_rate", rounded(bypass.hit_rate())},
                                     {"trace", name},
                                     {"tokens", count.tokens},
                                     {"misses_per_token", count.misses_per_token()}};
      if (device) {
        line["tokens_per_second"] = speed.overlapped;
        line["tokens_per_second_serial"] = speed.serial;
      }
      std::printf("%s\n", line.dump().c_str());
      return;
    }
    if (!header_printed_) {
      std::printf("%-10s %6s %6s %7s %7s %7s %9s%s  %s\n", "policy", "cache", "slots", "hits %",
                  "OPT %", "bypass", "miss/tok", device ? "   tok/s  serial" : "", "trace");
      header_printed_ = true;
    }
    std::printf("%-10s %5.1f%% %6u %7.1f %7.1f %7.1f %9.1f", policy.c_str(), 100 * cache_, slots_,
                100 * count.hit_rate(), 100 * optimal.hit_rate(), 100 * bypass.hit_rate(),
                count.misses_per_token());
    if (device) std::printf(" %7.2f %7.2f", speed.overlapped, speed.serial);
    std::printf("  %s\n", name.c_str());
  }

  const ReplayArguments& a_;
  const std::span<const std::string> names_;
  DeviceModel device_;
  bool header_printed_ = false;
  double cache_ = 0;
  uint32_t slots_ = 0;
  std::vector<ReplayCount> optimal_, bypass_;
};

Status Replay(const ReplayArguments& a) {
  ASSIGN_OR_RETURN(const std::vector<double> caches, ParseCaches(a));
  std::vector<RoutingTrace> traces;
  for (const std::string& path : a.traces) {
    ASSIGN_OR_RETURN(RoutingTrace trace, ReadRoutingTrace(path));
    traces.push_back(std::move(trace));
  }
  const std::vector<std::string> policies = ParsePolicies(a);
  Report report(a, a.traces);
  if (a.shift) return report.Print(traces, caches, policies);
  for (size_t i = 0; i < traces.size(); ++i) {
    Report one(a, std::span(a.traces).subspan(i, 1));
    RETURN_IF_ERROR(one.Print({&traces[i], 1}, caches, policies));
  }
  return OkStatus();
}

}  // namespace

void RegisterTraceCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("trace", "Record routing, and replay it through eviction policies");
  command->require_subcommand(1);
  RegisterTraceRecordCommand(*command, exit_code);
  auto a = std::make_shared<ReplayArguments>();
  CLI::App* replay = command->add_subcommand(
      "replay", "Hit rates of eviction policies on routing traces, beside the optimum");
  replay->add_option("TRACE", a->traces, "routing traces, gzip CSV")->required();
  std::vector<std::string> names(EvictionPolicyNames().begin(), EvictionPolicyNames().end());
  names.push_back("all");
  replay->add_option("--policy", a->policies, "policies, by commas; all: every one")
      ->delimiter(',')
      ->check(CLI::IsMember(names));
  CLI::Option* cache = replay->add_option("--cache", a->caches,
                                          "cache sizes as shares of all experts, by commas")
                           ->delimiter(',');
  replay->add_flag("--curve", a->curve, "a miss-ratio curve: cache sizes from 1 to 100 %")
      ->excludes(cache);
  replay->add_flag("--shift", a->shift,
                   "the traces one after another through one cache, as a change of subject");
  replay->add_flag("--lookahead", a->lookahead,
                   "use the lookahead that the trace has recorded in eviction");
  replay->add_flag("--json", a->json, "one JSON object a line");
  replay->add_option("--device-gbps", a->device_gbps, "project tokens/s: drive bandwidth, GB/s")
      ->check(CLI::NonNegativeNumber);
  replay->add_option("--record-bytes", a->record_bytes, "bytes of one expert")
      ->check(CLI::NonNegativeNumber);
  replay->add_option("--compute-ms", a->compute_ms, "compute time of one token")
      ->check(CLI::NonNegativeNumber);
  replay->callback([a, exit_code] {
    const Status status = Replay(*a);
    if (!status.ok()) *exit_code = PrintError(status);
  });
}

}  // namespace moraine
