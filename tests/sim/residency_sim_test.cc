// Simulation of the whole life of experts: random shapes, budgets, policies, faults and steps over a
// simulated device on a manual clock. After every step the manager's invariants are checked, and
// every ready lease must hold exactly its expert's bytes for as long as it is held.
//
//   residency_sim_test --seed 17      replays one seed (simulation_main.h)
#include <algorithm>
#include <cstring>
#include <deque>
#include <string>

#include "residency_world.h"
#include "simulation_main.h"

namespace moraine {
namespace {

WorldOptions RandomOptions(Random& random, uint64_t seed) {
  WorldOptions options;
  options.seed = seed;
  options.experts_per_layer.clear();
  const uint64_t layers = 1 + random.Below(6);
  options.top_k = 1 + static_cast<uint32_t>(random.Below(4));
  for (uint64_t layer = 0; layer < layers; ++layer) {
    const bool dense = layer > 0 && random.Chance(0.15);
    options.experts_per_layer.push_back(
        dense ? 0 : options.top_k + static_cast<uint32_t>(random.Below(12)));
  }
  options.slot_count =
      MinimumSlots(options.top_k) + static_cast<uint32_t>(random.Chance(0.3) ? 0 : random.Below(24));
  if (random.Chance(0.3)) {
    options.ring_slots =
        2 + static_cast<uint32_t>(random.Below(options.slot_count - options.top_k - 1));
  }
  if (random.Chance(0.6)) {
    options.max_slot_count = options.slot_count + static_cast<uint32_t>(random.Below(24));
    options.slots_per_segment = 1 + static_cast<uint32_t>(random.Below(9));
  }
  const char* const policies[] = {"heat", "sieve", "lru"};
  options.policy = policies[random.Below(3)];
  options.queue_depth = 1 + static_cast<uint32_t>(random.Below(32));
  options.scheduler.chunk_bytes = random.Chance(0.5) ? 4096 : 8192;
  options.scheduler.speculative_depth = 1 + static_cast<uint32_t>(random.Below(8));
  options.faults.min_latency_ns = static_cast<int64_t>(random.Below(10'000));
  options.faults.max_latency_ns =
      options.faults.min_latency_ns + static_cast<int64_t>(random.Below(200'000));
  if (random.Chance(0.5)) options.faults.error_probability = random.Uniform() * 0.4;
  if (random.Chance(0.5)) options.faults.short_read_probability = random.Uniform() * 0.5;
  if (random.Chance(0.5)) options.faults.corruption_probability = random.Uniform() * 0.2;
  if (random.Chance(0.4)) {
    options.read_deadline_ns = 1 + static_cast<int64_t>(random.Below(300'000));
  }
  return options;
}

class Simulation {
 public:
  Simulation(uint64_t seed, Coverage* coverage)
      : random_(seed),
        options_(RandomOptions(random_, seed)),
        world_(options_),
        coverage_(*coverage) {
    for (uint32_t layer = 0; layer < options_.experts_per_layer.size(); ++layer) {
      if (options_.experts_per_layer[layer] > 0) sparse_layers_.push_back(layer);
    }
  }

  void Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      Resize();
      const uint64_t dice = random_.Below(100);
      if (dice < 45) {
        Decode();
      } else if (dice < 60) {
        Prefill();
      } else if (dice < 70) {
        HoldOn();
      } else if (dice < 80) {
        LetGo();
      } else if (dice < 88) {
        Speculate();
      } else if (dice < 91) {
        world_.manager().CancelPrefetches();
      } else {
        world_.manager().Poll(static_cast<int64_t>(random_.Below(3)) * 20'000);
      }
      CheckAll();
    }
    Finish();
  }

 private:
  // Between steps, as the engine does it, whatever is leased or read at the time.
  void Resize() {
    if (options_.max_slot_count > 0 && random_.Chance(0.05)) {
      const uint32_t least = MinimumSlots(options_.top_k);
      const auto target =
          least + static_cast<uint32_t>(random_.Below(options_.max_slot_count - least + 1));
      CHECK(world_.manager().SetSlotTarget(target).ok(), "a target within bounds is refused");
      ++coverage_["changes of budget"];
    }
    world_.set_memory_is_short(random_.Chance(0.05));
    const uint32_t asked = world_.manager().stats().slot_target;
    world_.manager().AdvanceResize(1 + random_.Below(4 * kRecordBytes));
    coverage_["growth without memory"] += world_.manager().stats().slot_target != asked;
    world_.manager().CheckInvariants();
  }
  std::vector<uint32_t> PickExperts(uint32_t layer, size_t count) {
    const uint32_t experts = options_.experts_per_layer[layer];
    std::vector<uint32_t> picks;
    while (picks.size() < std::min<size_t>(count, experts)) {
      // Skewed, so that there are hits: the smaller of two draws.
      const auto pick = static_cast<uint32_t>(
          std::min(random_.Below(experts), random_.Below(experts)));
      if (std::find(picks.begin(), picks.end(), pick) == picks.end()) picks.push_back(pick);
    }
    return picks;
  }
  uint32_t PickLayer() { return sparse_layers_[random_.Below(sparse_layers_.size())]; }

  // The leases' bytes are right for as long as they are held: Acquire, Prefetch and eviction in
  // between notwithstanding.
  void CheckLease(const Lease& lease) {
    if (lease.state() == Lease::State::kReady) {
      ++coverage_["ready leases"];
      CHECK(world_.IsRecord(lease.key(), lease.data()), "a lease holds another record's bytes");
    } else if (lease.state() == Lease::State::kFailed) {
      const Status& failure = lease.failure();
      CHECK(!failure.ok(), "a failed lease without a reason");
      coverage_["I/O errors"] += failure.code() == StatusCode::kIoError;
      coverage_["corruptions"] += failure.code() == StatusCode::kCorruption;
      coverage_["missed deadlines"] += failure.code() == StatusCode::kDeadlineExceeded;
      CHECK(failure.message().find("expert " + std::to_string(lease.key().expert.value())) !=
                std::string::npos,
            "the failure does not name its expert: " + failure.message());
    }
  }
  void CheckAll() {
    world_.manager().CheckInvariants();
    for (const Lease& lease : held_) CheckLease(lease);
  }
  void WaitFor(const Lease& lease) {
    while (lease.state() == Lease::State::kPending) {
      CHECK(world_.manager().Poll(-1) > 0, "a pending lease, and nothing left to wait for");
      world_.manager().CheckInvariants();
    }
    CheckLease(lease);
  }

  // One token through the layers, as the engine does it: with fewer leases than asked for, those are
  // computed and released, and the rest is asked for again.
  void Decode() {
    world_.manager().BeginStep(1);
    const bool prefetch = random_.Chance(0.5);
    for (size_t i = 0; i < sparse_layers_.size(); ++i) {
      const uint32_t layer = sparse_layers_[i];
      std::vector<uint32_t> wanted = PickExperts(layer, options_.top_k);
      Take(layer, &wanted, AcquireMode::kCached, prefetch);
    }
  }
  void Prefill() {
    const auto tokens = 1 + static_cast<uint32_t>(random_.Below(64));
    world_.manager().BeginStep(tokens);
    for (uint32_t layer : sparse_layers_) {
      std::vector<uint32_t> wanted = PickExperts(layer, 1 + random_.Below(16));
      Take(layer, &wanted, AcquireMode::kTransient, false);
    }
  }
  void Take(uint32_t layer, std::vector<uint32_t>* wanted, AcquireMode mode, bool prefetch) {
    bool first = true;
    while (!wanted->empty()) {
      std::vector<Lease> leases = world_.Acquire(layer, *wanted, mode);
      if (first && mode == AcquireMode::kCached && held_.empty() && world_.scheduler().idle()) {
        CHECK(leases.size() == wanted->size(), "not all of top-k, and nothing stands in the way");
      }
      first = false;
      coverage_["fewer leases than asked"] += leases.size() < wanted->size();
      coverage_["transient lookups"] += mode == AcquireMode::kTransient;
      world_.manager().CheckInvariants();
      wanted->erase(wanted->begin(), wanted->begin() + static_cast<int64_t>(leases.size()));
      if (leases.empty()) MakeRoom();
      if (prefetch) Speculate();
      if (random_.Chance(0.05)) continue;  // the client has gone: leases are released unread
      for (Lease& lease : leases) {
        WaitFor(lease);
        lease.Release();
        world_.manager().CheckInvariants();
      }
    }
  }
  void MakeRoom() {
    if (!held_.empty()) {
      held_.pop_front();
    } else {
      CHECK(world_.manager().Poll(-1) > 0, "no slot, no lease held and no read to wait for");
    }
  }
  // Leases that stay across steps: another request's.
  void HoldOn() {
    const uint32_t layer = PickLayer();
    const AcquireMode mode = random_.Chance(0.5) ? AcquireMode::kCached : AcquireMode::kTransient;
    for (Lease& lease : world_.Acquire(layer, PickExperts(layer, 1 + random_.Below(3)), mode)) {
      held_.push_back(std::move(lease));
    }
  }
  void LetGo() {
    while (!held_.empty() && random_.Chance(0.7)) {
      std::swap(held_[random_.Below(held_.size())], held_.back());
      held_.pop_back();
    }
  }
  void Speculate() {
    const uint32_t layer = PickLayer();
    if (random_.Chance(0.3)) {
      world_.Stream(layer, PickExperts(layer, 1 + random_.Below(8)));
      ++coverage_["streams"];
      world_.manager().CheckInvariants();
      return;
    }
    world_.Prefetch(layer, PickExperts(layer, 1 + random_.Below(4)),
                    random_.Chance(0.5) ? PrefetchReason::kLookahead : PrefetchReason::kHeat);
    world_.manager().CheckInvariants();
  }

  void Finish() {
    const ResidencyStats& stats = world_.manager().stats();
    coverage_["quarantined"] += stats.quarantined;
    coverage_["evictions"] += stats.evictions;
    coverage_["prefetches used"] += stats.prefetch_used;
    coverage_["prefetches wasted"] += stats.prefetch_wasted;
    coverage_["in-flight misses"] += stats.decode.in_flight_miss + stats.prefill.in_flight_miss;
    coverage_["short reads"] += world_.scheduler().stats().short_reads;
    if (random_.Chance(0.5)) {  // otherwise the manager goes with reads in flight
      world_.Drain();
      world_.manager().CheckInvariants();
    }
    held_.clear();
    world_.manager().CheckInvariants();
    coverage_["experts moved"] += stats.moved;
    if (random_.Chance(0.5)) {  // nothing is held: the target is reached, memory and all
      world_.set_memory_is_short(false);
      world_.Drain();
      while (world_.manager().AdvanceResize(kRecordBytes)) world_.Drain();
      CHECK(stats.slot_count == stats.slot_target &&
                world_.segments().mapped_slots() == stats.slot_target,
            "a resize has not ended");
      world_.manager().CheckInvariants();
    }
    world_.DestroyManager();
    CHECK(world_.scheduler().idle(), "the manager has gone and left reads behind");
  }

  Random random_;
  const WorldOptions options_;
  World world_;
  Coverage& coverage_;
  std::vector<uint32_t> sparse_layers_;
  std::deque<Lease> held_;  // destroyed before the world
};

}  // namespace
}  // namespace moraine

int main(int argc, char** argv) {
  using namespace moraine;
  Coverage all = {"ready leases", "I/O errors", "corruptions", "missed deadlines", "quarantined",
                  "fewer leases than asked", "evictions", "prefetches used", "prefetches wasted",
                  "in-flight misses", "short reads", "transient lookups", "changes of budget",
                  "experts moved", "growth without memory", "streams"};
  return SimulationMain(
      argc, argv, "residency_sim_test", {.seeds = 200, .steps = 120},
      [&](uint64_t seed, int steps) { Simulation(seed, &all).Run(steps); }, all);
}
