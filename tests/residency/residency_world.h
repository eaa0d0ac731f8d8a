// Everything around a ResidencyManager that a test needs: a pack in memory with generated records, a
// simulated device on a manual clock, slots, and a source that knows every record's right bytes.
#pragma once

#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "io/read_scheduler.h"
#include "io/simulated_reader.h"
#include "memory/host_arena.h"
#include "residency/residency_manager.h"

namespace moraine {

inline constexpr uint64_t kRecordBytes = 8192;
inline constexpr const char* kPackName = "experts-000.pack";

struct WorldOptions {
  std::vector<uint32_t> experts_per_layer = {8, 8, 8, 8};
  uint32_t top_k = 2;
  uint32_t slot_count = 8;
  uint32_t ring_slots = 0;
  std::string policy = "heat";
  int64_t read_deadline_ns = 0;
  uint64_t seed = 1;
  uint32_t queue_depth = 64;
  SimulatedFaults faults = {.min_latency_ns = 1000, .max_latency_ns = 1000, .script = {}};
  ReadSchedulerOptions scheduler = {.chunk_bytes = 4096};
};

class World final : public RecordSource {
 public:
  explicit World(const WorldOptions& options) : options_(options) {
    first_.push_back(0);
    for (uint32_t experts : options.experts_per_layer) first_.push_back(first_.back() + experts);
    pack_.resize((first_.back() + 1) * kRecordBytes);  // a header's worth in front
    Random random(options.seed * 7919 + 1);
    for (size_t i = 0; i < pack_.size(); i += sizeof(uint64_t)) {
      const uint64_t word = random.Next();
      std::memcpy(pack_.data() + i, &word, sizeof(word));
    }
    SimulatedReaderOptions reader_options;
    reader_options.seed = options.seed;
    reader_options.capacity = options.queue_depth;
    reader_options.faults = options.faults;
    reader_options.manual_clock = &clock_;
    reader_options.memory_files[kPackName] = pack_;
    std::unique_ptr<BlockReader> reader = CreateSimulatedReader(std::move(reader_options));
    file_ = reader->OpenFile(kPackName).value();
    scheduler_ = std::make_unique<ReadScheduler>(std::move(reader), options.scheduler, clock_);
    arena_ = HostArena::Allocate(options.slot_count * kRecordBytes, {.huge_pages = false}).value();
    manager_ = Create(ManagerOptions()).value();
  }

  ResidencyOptions ManagerOptions() const {
    ResidencyOptions options;
    options.experts_per_layer = options_.experts_per_layer;
    options.top_k = options_.top_k;
    options.slot_bytes = kRecordBytes;
    options.slot_count = options_.slot_count;
    options.ring_slots = options_.ring_slots;
    options.policy = options_.policy;
    options.read_deadline_ns = options_.read_deadline_ns;
    return options;
  }
  Result<std::unique_ptr<ResidencyManager>> Create(const ResidencyOptions& options) {
    const std::span<std::byte> slabs[] = {arena_.span()};
    return ResidencyManager::Create(options, slabs, *this, *scheduler_, clock_);
  }

  Location Locate(ExpertKey key) const override {
    return {file_, (IndexOf(key) + 1) * kRecordBytes, kRecordBytes};
  }
  Status Verify(ExpertKey key, std::span<const std::byte> bytes) const override {
    if (IsRecord(key, bytes.data())) return OkStatus();
    return Corruption("experts-000.pack at offset " + std::to_string(Locate(key).offset) +
                      ": layer " + std::to_string(key.layer.value()) + " expert " +
                      std::to_string(key.expert.value()) + ": wrong checksum");
  }
  bool IsRecord(ExpertKey key, const std::byte* bytes) const {
    return std::memcmp(bytes, pack_.data() + Locate(key).offset, kRecordBytes) == 0;
  }
  uint64_t IndexOf(ExpertKey key) const {
    return first_[key.layer.value()] + key.expert.value();
  }

  ResidencyManager& manager() { return *manager_; }
  void DestroyManager() { manager_.reset(); }
  ReadScheduler& scheduler() { return *scheduler_; }
  ManualClock& clock() { return clock_; }

  // Leases of `ids`, as many as were given.
  std::vector<Lease> Acquire(uint32_t layer, const std::vector<uint32_t>& ids,
                             AcquireMode mode = AcquireMode::kCached, float weight = 1) {
    std::vector<ExpertId> experts;
    for (uint32_t id : ids) experts.push_back(ExpertId(id));
    std::vector<float> weights(ids.size(), weight);
    std::vector<Lease> leases(ids.size());
    leases.resize(manager().Acquire(LayerId(layer), experts, weights, mode, leases));
    return leases;
  }
  size_t Prefetch(uint32_t layer, const std::vector<uint32_t>& ids,
                  PrefetchReason reason = PrefetchReason::kHeat) {
    std::vector<ExpertId> experts;
    for (uint32_t id : ids) experts.push_back(ExpertId(id));
    return manager().Prefetch(LayerId(layer), experts, reason);
  }
  // Until nothing is being read any more.
  void Drain() {
    while (!scheduler_->idle()) manager().Poll(-1);
  }
  // One decode step of one layer: leases, reads, releases.
  void Use(uint32_t layer, const std::vector<uint32_t>& ids) {
    const std::vector<Lease> leases = Acquire(layer, ids);
    Drain();
  }
  ExpertState StateOf(uint32_t layer, uint32_t expert) {
    return manager().state({LayerId(layer), ExpertId(expert)});
  }

 private:
  const WorldOptions options_;
  std::vector<uint64_t> first_;  // index of each layer's first expert
  std::vector<std::byte> pack_;
  ManualClock clock_;
  FileId file_;
  HostArena arena_;
  std::unique_ptr<ReadScheduler> scheduler_;
  std::unique_ptr<ResidencyManager> manager_;
};

}  // namespace moraine
