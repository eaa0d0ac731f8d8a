// Simulation of the whole engine below the model: decode and prefill steps of random shapes through the real
// executor, residency manager and read scheduler, over a simulated drive with faults, with kernels that
// take simulated time. After every layer the manager's invariants hold, the sum that the executor
// returned is right to the bit or it returned an error with a name in it, and nothing is leased any more.
//
//   engine_sim_test --seed 17      replays one seed (simulation_main.h)
#include "engine_world.h"
#include "simulation_main.h"

namespace moraine {
namespace {

EngineWorldOptions RandomOptions(Random& random, uint64_t seed) {
  EngineWorldOptions options;
  options.seed = seed;
  options.layers = 1 + static_cast<uint32_t>(random.Below(6));
  options.top_k = 1 + static_cast<uint32_t>(random.Below(4));
  options.experts = options.top_k + static_cast<uint32_t>(random.Below(14));
  options.max_tokens = 1 + static_cast<uint32_t>(random.Below(24));
  const uint32_t total = options.layers * options.experts;
  options.slot_count = MinimumSlots(options.top_k) +
                       static_cast<uint32_t>(random.Chance(0.3) ? 0 : random.Below(total));
  if (random.Chance(0.5)) {
    options.max_slot_count = options.slot_count + static_cast<uint32_t>(random.Below(20));
    options.slots_per_segment = 1 + static_cast<uint32_t>(random.Below(6));
  }
  const char* const policies[] = {"heat", "sieve", "lru"};
  options.policy = policies[random.Below(3)];
  options.queue_depth = 1 + static_cast<uint32_t>(random.Below(32));
  options.scheduler.speculative_depth = 1 + static_cast<uint32_t>(random.Below(8));
  options.scheduler.speculative_bytes = (1 + random.Below(16)) * 4096;
  options.scheduler.demand_beside_speculation = static_cast<uint32_t>(random.Below(4));
  SimulatedFaults& faults = options.faults;
  faults.min_latency_ns = static_cast<int64_t>(random.Below(10'000));
  faults.max_latency_ns = faults.min_latency_ns + static_cast<int64_t>(random.Below(100'000));
  if (random.Chance(0.5)) faults.bytes_per_second = 100'000'000 + random.Below(3'000'000'000);
  if (random.Chance(0.4)) faults.error_probability = random.Uniform() * 0.3;
  if (random.Chance(0.4)) faults.short_read_probability = random.Uniform() * 0.5;
  if (random.Chance(0.3)) faults.corruption_probability = random.Uniform() * 0.1;
  if (random.Chance(0.3)) options.read_deadline_ns = 1 + static_cast<int64_t>(random.Below(300'000));
  options.expert_ns = static_cast<int64_t>(random.Below(50'000));
  options.attention_ns = static_cast<int64_t>(random.Below(50'000));
  options.verify_ns = static_cast<int64_t>(random.Below(2'000));
  return options;
}

class EngineSimulation {
 public:
  EngineSimulation(uint64_t seed, Coverage* coverage)
      : random_(seed),
        options_(RandomOptions(random_, seed)),
        world_(options_),
        coverage_(*coverage),
        recall_(random_.Uniform()) {
    world_.executor().set_lookahead(random_.Chance(0.85));
    Route(options_.max_tokens, &next_);
  }

  void Run(int layers) {
    while (layers > 0) {
      ChangeBudget();
      const bool decode = random_.Chance(0.7);
      // Some sequences that decode together, or a chunk of a prompt.
      const uint32_t most = decode ? std::min(options_.max_tokens, 4u) : options_.max_tokens;
      const uint32_t tokens = 1 + static_cast<uint32_t>(random_.Below(most));
      coverage_["batches of decode"] += decode && tokens > 1;
      world_.BeginStep(tokens, decode ? AcquireMode::kCached : AcquireMode::kTransient);
      ++(decode ? coverage_["decode steps"] : coverage_["prefill steps"]);
      for (uint32_t layer = 0; layer < options_.layers && layers > 0; ++layer) {
        --layers;
        if (!RunLayer(layer, tokens)) break;
        if (random_.Chance(0.02)) {  // the client has gone
          ++coverage_["given up"];
          break;
        }
      }
      coverage_["steps without speculation"] += decode && world_.executor().LookaheadDepth() == 0;
    }
    Finish();
  }

 private:
  void ChangeBudget() {
    if (options_.max_slot_count > 0 && random_.Chance(0.1)) {
      const uint32_t least = MinimumSlots(options_.top_k);
      const Status asked = world_.manager().SetSlotTarget(
          least + static_cast<uint32_t>(random_.Below(options_.max_slot_count - least + 1)));
      CHECK(asked.ok(), asked.message());
      ++coverage_["changes of budget"];
    }
    world_.manager().AdvanceResize(1 + random_.Below(4 * world_.record_bytes()));
    world_.manager().CheckInvariants();
  }
  // Distinct experts a token, the smaller of two draws, so that there are hits.
  void Route(uint32_t tokens, std::vector<uint32_t>* experts) {
    experts->clear();
    for (uint32_t t = 0; t < tokens; ++t) {
      const size_t first = experts->size();
      while (experts->size() < first + options_.top_k) {
        const auto pick = static_cast<uint32_t>(
            std::min(random_.Below(options_.experts), random_.Below(options_.experts)));
        if (std::find(experts->begin() + static_cast<ptrdiff_t>(first), experts->end(), pick) ==
            experts->end()) {
          experts->push_back(pick);
        }
      }
    }
  }

  bool RunLayer(uint32_t layer, uint32_t tokens) {
    ++coverage_["layers run"];
    // What the lookahead promised, as far as it was right.
    Route(tokens, &routed_);
    if (random_.Chance(recall_)) {
      std::copy_n(next_.begin(), std::min(next_.size(), routed_.size()), routed_.begin());
    }
    Route(options_.max_tokens, &next_);
    weights_.clear();
    for (size_t i = 0; i < routed_.size(); ++i) {
      weights_.push_back(static_cast<float>(1 + random_.Below(8)) * 0.125f);
    }
    return RunRouted(layer);
  }

  bool RunRouted(uint32_t layer) {
    RoutingDecision routing;
    routing.token_count = static_cast<uint32_t>(routed_.size()) / options_.top_k;
    routing.top_k = options_.top_k;
    routing.experts = routed_.data();
    routing.weights = weights_.data();
    const RouterLookahead ahead{LayerId(layer + 1), next_.data()};
    if (world_.executor().LookaheadDepth() > 0 && layer + 1 < options_.layers) {
      routing.lookaheads = {&ahead, 1};
    }
    const Status status = world_.RunLayer(LayerId(layer), routing);
    world_.manager().CheckInvariants();
    CHECK(world_.manager().leases() == 0, "a layer has ended and its leases have not");
    if (status.ok()) {
      CHECK(world_.OutputIsRight(LayerId(layer), routing), "the layer's sum is wrong");
      return true;
    }
    coverage_["I/O errors"] += status.code() == StatusCode::kIoError;
    coverage_["corruptions"] += status.code() == StatusCode::kCorruption;
    coverage_["missed deadlines"] += status.code() == StatusCode::kDeadlineExceeded;
    CHECK(status.message().find("expert ") != std::string::npos,
          "the failure does not name its expert: " + status.message());
    CHECK(status.code() != StatusCode::kResourceExhausted || options_.read_deadline_ns > 0,
          "slots can only be stuck behind reads that were too late: " + status.message());
    return DropRowsOf(world_.executor().failed_expert()) && RunRouted(layer);
  }

  // Those who do not want the expert that failed go on without the others. False if there are none.
  bool DropRowsOf(std::optional<ExpertId> expert) {
    if (!expert || random_.Chance(0.3)) return false;
    size_t kept = 0;
    for (size_t i = 0; i < routed_.size(); i += options_.top_k) {
      const auto row = routed_.begin() + static_cast<ptrdiff_t>(i);
      if (std::find(row, row + options_.top_k, expert->value()) != row + options_.top_k) continue;
      for (size_t rank = 0; rank < options_.top_k; ++rank, ++kept) {
        routed_[kept] = routed_[i + rank];
        weights_[kept] = weights_[i + rank];
      }
    }
    CHECK(kept < routed_.size(), "nobody wants the expert that failed");
    routed_.resize(kept);
    weights_.resize(kept);
    coverage_["failures that others outlived"] += kept > 0;
    return kept > 0;
  }

  void Finish() {
    const ResidencyStats& stats = world_.manager().stats();
    coverage_["hits"] += stats.decode.hit;
    coverage_["prefetch hits"] += stats.decode.prefetch_hit + stats.prefill.prefetch_hit;
    coverage_["in-flight misses"] += stats.decode.in_flight_miss + stats.prefill.in_flight_miss;
    coverage_["prefetches wasted"] += stats.prefetch_wasted;
    coverage_["evictions"] += stats.evictions;
    const ExecutorTimes& times = world_.executor().times();
    coverage_["stalled ns"] += static_cast<uint64_t>(times.stall_ns);
    CHECK(times.kernel_ns + times.stall_ns + times.verify_ns + times.residency_ns <= times.total_ns,
          "the parts of the time are more than the whole");
    world_.manager().CancelPrefetches();
    while (!world_.scheduler().idle()) world_.manager().Poll(-1);
    world_.manager().CheckInvariants();
  }

  Random random_;
  const EngineWorldOptions options_;
  EngineWorld world_;
  Coverage& coverage_;
  const double recall_;
  std::vector<uint32_t> routed_, next_;
  std::vector<float> weights_;
};

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  using namespace moraine;
  Coverage all = {"layers run", "decode steps", "prefill steps", "given up", "I/O errors",
                  "corruptions", "missed deadlines", "hits", "prefetch hits", "in-flight misses",
                  "prefetches wasted", "evictions", "stalled ns", "changes of budget",
                  "steps without speculation", "batches of decode", "failures that others outlived"};
  return SimulationMain(
      argc, argv, "engine_sim_test", {.seeds = 200, .steps = 300},
      [&](uint64_t seed, int steps) { EngineSimulation(seed, &all).Run(steps); }, all);
}
