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
#include "io/mirrored_reader.h"
#include "io/read_scheduler.h"
#include "io/simulated_reader.h"
#include "residency/residency_manager.h"
#include "residency/slot_segments.h"

namespace moraine {

inline constexpr uint64_t kRecordBytes = 8192;
inline constexpr const char* kPackName = "experts-000.pack";
inline constexpr const char* kMirrorName = "mirror/experts-000.pack";

struct WorldOptions {
  std::vector<uint32_t> experts_per_layer = {8, 8, 8, 8};
  uint32_t top_k = 2;
  uint32_t slot_count = 8;
  uint32_t max_slot_count = 0;     // 0: slot_count
  uint32_t slots_per_segment = 0;  // 0: one segment for all
  uint32_t ring_slots = 0;
  std::string policy = "heat";
  int64_t read_deadline_ns = 0;
  uint64_t seed = 1;
  uint32_t queue_depth = 64;
  SimulatedFaults faults = {.min_latency_ns = 1000, .max_latency_ns = 1000, .script = {}};
  ReadSchedulerOptions scheduler = {.chunk_bytes = 4096};
  bool mirrored = false;  // the simulated reader's file 1 is the copy of file 0
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
    if (options.mirrored) reader_options.memory_files[kMirrorName] = pack_;
    std::unique_ptr<BlockReader> reader = CreateSimulatedReader(std::move(reader_options));
    if (options.mirrored) {
      auto mirrored = std::make_unique<MirroredReader>(
          std::move(reader), std::vector<MirroredReader::Drive>{{"a", 1}, {"b", 1}});
      file_ = mirrored->OpenCopies({{kPackName, 0}, {kMirrorName, 1}}).value();
      mirrored_ = mirrored.get();
      reader = std::move(mirrored);
    } else {
      file_ = reader->OpenFile(kPackName).value();
    }
    scheduler_ = std::make_unique<ReadScheduler>(std::move(reader), options.scheduler, clock_);
    segments_ = MakeSegments();
    manager_ = Create(ManagerOptions()).value();
  }

  ResidencyOptions ManagerOptions() const {
    ResidencyOptions options;
    options.experts_per_layer = options_.experts_per_layer;
    options.top_k = options_.top_k;
    options.max_slot_count = options_.max_slot_count;
    options.slot_count = options_.slot_count;
    options.ring_slots = options_.ring_slots;
    options.policy = options_.policy;
    options.read_deadline_ns = options_.read_deadline_ns;
    return options;
  }
  std::unique_ptr<SlotSegments> MakeSegments(uint64_t slot_bytes = kRecordBytes) {
    const uint32_t most = std::max(options_.slot_count, options_.max_slot_count);
    SlotSegmentsOptions options;
    options.slot_bytes = slot_bytes;
    options.max_slots = most;
    options.slots_per_segment = options_.slots_per_segment > 0 ? options_.slots_per_segment : most;
    options.reader = &scheduler_->reader();
    options.allocate = [this](uint64_t bytes, const HostArenaOptions&) -> Result<HostArena> {
      if (memory_is_short_) return ResourceExhausted("no memory, says the test");
      return HostArena::Allocate(bytes, {.huge_pages = false});
    };
    return std::make_unique<SlotSegments>(std::move(options));
  }
  // A second manager, of segments of its own.
  Result<std::unique_ptr<ResidencyManager>> Create(const ResidencyOptions& options,
                                                   SlotSegments& segments) {
    return ResidencyManager::Create(options, segments, *this, *scheduler_, clock_);
  }
  Result<std::unique_ptr<ResidencyManager>> Create(const ResidencyOptions& options) {
    return Create(options, *segments_);
  }
  SlotSegments& segments() { return *segments_; }
  void set_memory_is_short(bool is_short) { memory_is_short_ = is_short; }

  Location Locate(ExpertKey key) const override {
    return {file_, (IndexOf(key) + 1) * kRecordBytes, kRecordBytes,
            options_.mirrored ? 2u : 1u};
  }
  Status Verify(ExpertKey key, uint32_t, std::span<const std::byte> bytes) const override {
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
  const MirroredReader& mirrored() const { return *mirrored_; }
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
                  PrefetchReason reason = PrefetchReason::kLookahead) {
    std::vector<ExpertId> experts;
    for (uint32_t id : ids) experts.push_back(ExpertId(id));
    return manager().Prefetch(LayerId(layer), experts, reason);
  }
  size_t Stream(uint32_t layer, const std::vector<uint32_t>& ids) {
    std::vector<ExpertId> experts;
    for (uint32_t id : ids) experts.push_back(ExpertId(id));
    return manager().Stream(LayerId(layer), experts);
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
  std::unique_ptr<ReadScheduler> scheduler_;
  const MirroredReader* mirrored_ = nullptr;
  bool memory_is_short_ = false;
  std::unique_ptr<SlotSegments> segments_;
  std::unique_ptr<ResidencyManager> manager_;
};

}  // namespace moraine
