// engine_simulation: decode of a recorded routing trace in simulated time.
//
//   build/release/engine_simulation tests/residency/traces/demo-chat.csv.gz --cache 0.1,0.25,0.5
//
// The engine's own executor, residency manager and read scheduler over a drive that moves one read after
// another at a fixed rate, and kernels that take the time of their bytes (tests/sim/engine_world.h). No
// noise: a change of a limit or of an order shows to the last digit, which no measurement on a shared
// machine gives. It knows nothing of contention between drive and kernels. The trace needs lookahead
// columns for reading ahead to have something to read.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "engine_world.h"
#include "residency/routing_trace.h"

namespace moraine {
namespace {

struct SimulationArguments {
  std::string trace, policy = "heat";
  std::vector<double> caches = {0.1, 0.25, 0.5};
  double drive_gb_per_s = 2.6, memory_gb_per_s = 22, latency_us = 90, verify_us = 80;
  double record_mb = 2.654208, attention_mb = 20, head_mb = 6.9;  // head: a layer's share of it
  uint32_t tokens = 1500;
  ReadSchedulerOptions scheduler;
  bool no_lookahead = false, perfect_lookahead = false;
};

// The world's records are three chunks of 4 KiB; everything in bytes is scaled to them.
struct Scale {
  double factor = 1;  // real bytes a simulated byte
  uint64_t operator()(double real_bytes) const { return static_cast<uint64_t>(real_bytes / factor); }
};

EngineWorldOptions WorldOf(const RoutingTrace& trace, const SimulationArguments& a, double cache,
                           const Scale& scale) {
  EngineWorldOptions options;
  options.layers = trace.layers;
  options.experts = trace.experts;
  options.top_k = trace.top_k;
  options.slot_count = static_cast<uint32_t>(cache * trace.layers * trace.experts + 0.5);
  options.policy = a.policy;
  options.queue_depth = 128;
  const double ns_per_mb = 1e6 / a.memory_gb_per_s;
  options.expert_ns = static_cast<int64_t>(a.record_mb * ns_per_mb);
  options.expert_token_ns = 0;
  options.attention_ns = static_cast<int64_t>((a.attention_mb + a.head_mb) * ns_per_mb);
  options.verify_ns = static_cast<int64_t>(a.verify_us * 1000);
  options.faults.min_latency_ns = static_cast<int64_t>(a.latency_us * 1000);
  options.faults.max_latency_ns = static_cast<int64_t>(a.latency_us * 1300);
  options.faults.bytes_per_second = scale(a.drive_gb_per_s * 1e9);
  options.scheduler = a.scheduler;
  options.scheduler.chunk_bytes = 4096;
  options.scheduler.speculative_bytes = scale(static_cast<double>(a.scheduler.speculative_bytes));
  return options;
}

struct Totals {
  int64_t now_ns = 0, stall_ns = 0, verify_ns = 0;
  uint64_t bytes = 0;
  LookupCounters lookups;
  uint64_t useful = 0, late = 0, wasted = 0;
};

Totals TotalsOf(EngineWorld& world) {
  const ResidencyStats& stats = world.manager().stats();
  const ReadSchedulerStats& reads = world.scheduler().stats();
  return {world.clock().NowNs(), world.executor().times().stall_ns,
          world.executor().times().verify_ns, reads.demand_bytes + reads.speculative_bytes,
          stats.decode, stats.prefetch_useful_bytes, stats.prefetch_late_bytes,
          stats.prefetch_wasted_bytes};
}

void Decode(EngineWorld& world, const RoutingTrace& trace, uint32_t token, bool perfect_lookahead) {
  world.BeginStep(1, AcquireMode::kCached);
  std::vector<uint32_t> experts, ahead;
  for (uint32_t layer = 0; layer < trace.layers; ++layer) {
    const auto row = trace.At(token, layer);
    if (row.size() != trace.top_k) continue;  // lost by the recorder
    experts.assign(row.begin(), row.end());
    const std::vector<float> weights(row.size(), 1.0f / static_cast<float>(row.size()));
    RoutingDecision routing;
    routing.token_count = 1;
    routing.top_k = trace.top_k;
    routing.experts = experts.data();
    routing.weights = weights.data();
    const bool last = layer + 1 == trace.layers;
    const auto next = perfect_lookahead && !last ? trace.At(token, layer + 1)
                                                 : trace.Lookahead(token, layer, 1);
    ahead.assign(next.begin(), next.end());
    const RouterLookahead lookahead{LayerId(layer + 1), ahead.data()};
    if (world.executor().LookaheadDepth() > 0 && ahead.size() == trace.top_k) {
      routing.lookaheads = {&lookahead, 1};
    }
    const Status status = world.RunLayer(LayerId(layer), routing);
    CHECK(status.ok() && world.OutputIsRight(LayerId(layer), routing), status.message());
  }
}

void Simulate(const RoutingTrace& trace, const SimulationArguments& a, double cache) {
  const Scale scale{a.record_mb * 1e6 / 12288};
  EngineWorld world(WorldOf(trace, a, cache, scale));
  world.executor().set_lookahead(!a.no_lookahead);
  const uint32_t count = std::min(trace.tokens(), a.tokens), warm = count / 4;
  Totals before;
  for (uint32_t token = 0; token < count; ++token) {
    if (token == warm) before = TotalsOf(world);
    Decode(world, trace, token, a.perfect_lookahead);
  }
  const Totals after = TotalsOf(world);
  const double tokens = count - warm;
  const double wall_s = static_cast<double>(after.now_ns - before.now_ns) * 1e-9 / tokens;
  const auto seconds = [&](int64_t Totals::*field) {
    return static_cast<double>(after.*field - before.*field) * 1e-9 / tokens;
  };
  const auto megabytes = [&](uint64_t Totals::*field) {
    return static_cast<double>(after.*field - before.*field) * scale.factor * 1e-6 / tokens;
  };
  const double compute_s = wall_s - seconds(&Totals::stall_ns) - seconds(&Totals::verify_ns);
  const double read_s = megabytes(&Totals::bytes) / (a.drive_gb_per_s * 1000);
  const double bound = 1 / std::max(compute_s, read_s);
  const LookupCounters &x = before.lookups, &y = after.lookups;
  const double hits = static_cast<double>(y.hit + y.prefetch_hit - x.hit - x.prefetch_hit);
  const double misses =
      static_cast<double>(y.cold_miss + y.in_flight_miss - x.cold_miss - x.in_flight_miss);
  const nlohmann::ordered_json json = {{"bench", "engine_simulation"},
                                       {"policy", a.policy},
                                       {"cache", cache},
                                       {"lookahead", !a.no_lookahead},
                                       {"perfect_lookahead", a.perfect_lookahead},
                                       {"tok_per_s", 1 / wall_s},
                                       {"bound_tok_per_s", bound},
                                       {"fraction", 1 / wall_s / bound},
                                       {"hit_rate", hits / (hits + misses)},
                                       {"mb_per_token", megabytes(&Totals::bytes)},
                                       {"useful_mb", megabytes(&Totals::useful)},
                                       {"late_mb", megabytes(&Totals::late)},
                                       {"wasted_mb", megabytes(&Totals::wasted)},
                                       {"stall_share", seconds(&Totals::stall_ns) / wall_s}};
  std::printf("%s\n", json.dump().c_str());
}

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  using namespace moraine;
  SimulationArguments a;
  CLI::App app("Decode of a routing trace in simulated time; one JSON line a cache size.");
  app.add_option("TRACE", a.trace, "a routing trace with lookahead columns")->required();
  app.add_option("--cache", a.caches, "shares of the experts with a slot")->delimiter(',');
  app.add_option("--policy", a.policy)->capture_default_str();
  app.add_option("--tokens", a.tokens, "of the trace, a quarter of them to warm up");
  app.add_option("--drive-gbps", a.drive_gb_per_s)->capture_default_str();
  app.add_option("--memory-gbps", a.memory_gb_per_s, "at which kernels stream")->capture_default_str();
  app.add_option("--latency-us", a.latency_us, "of one read")->capture_default_str();
  app.add_option("--verify-us", a.verify_us, "of a record's checksum")->capture_default_str();
  app.add_option("--record-mb", a.record_mb)->capture_default_str();
  app.add_option("--attention-mb", a.attention_mb, "dense weights a layer")->capture_default_str();
  app.add_option("--head-mb", a.head_mb, "a layer's share of the output matrix")
      ->capture_default_str();
  app.add_option("--speculative-depth", a.scheduler.speculative_depth)->capture_default_str();
  app.add_option("--speculative-bytes", a.scheduler.speculative_bytes)->capture_default_str();
  app.add_option("--beside", a.scheduler.demand_beside_speculation)->capture_default_str();
  app.add_flag("--no-lookahead", a.no_lookahead);
  app.add_flag("--perfect-lookahead", a.perfect_lookahead,
               "the next layer's experts are known: what overlap could gain at most");
  CLI11_PARSE(app, argc, argv);
  const auto trace = ReadRoutingTrace(a.trace);
  if (!trace.ok()) {
    std::fprintf(stderr, "engine_simulation: %s\n", trace.status().ToString().c_str());
    return 1;
  }
  for (const double cache : a.caches) Simulate(*trace, a, cache);
  return 0;
}
