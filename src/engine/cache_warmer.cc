#include "engine/cache_warmer.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "base/bytes.h"

namespace moraine {
namespace {

constexpr uint64_t kBandBytes = kGiB;
// Several times what a drive needs in flight (docs/io.md: 8 MiB), so that it stays fed while a record
// is checked.
constexpr uint64_t kBytesInFlight = 32 * kMiB;

class Warmer {
 public:
  Warmer(ResidencyManager& residency, ReadScheduler& scheduler)
      : residency_(residency),
        scheduler_(scheduler),
        most_pending_(static_cast<uint32_t>(
            std::max<uint64_t>(kBytesInFlight / residency.stats().slot_bytes, 8))) {}

  // False when the cache takes no more.
  bool Read(ExpertKey key) {
    if (residency_.state(key) != ExpertState::kAbsent) return true;
    while (Pending() >= most_pending_) residency_.Poll(-1);
    // A refusal while some are pending only means that a layer's worth of slots must stay free of DMA;
    // with none pending, the cache is full.
    while (residency_.Prefetch(key.layer, std::span(&key.expert, 1), PrefetchReason::kHeat) == 0) {
      if (Pending() == 0) return false;
      residency_.Poll(-1);
    }
    return true;
  }
  void Finish() {
    while (Pending() > 0) residency_.Poll(-1);
  }

 private:
  uint32_t Pending() const {
    return scheduler_.demand_in_flight() + scheduler_.speculative_pending();
  }

  ResidencyManager& residency_;
  ReadScheduler& scheduler_;
  const uint32_t most_pending_;
};

}  // namespace

std::vector<ExpertKey> ExpertsInOrder(WarmOrder order, const WorkloadProfile& profile) {
  std::vector<ExpertKey> keys;
  const std::vector<uint32_t>& counts = profile.model.experts_per_layer;
  for (uint32_t layer = 0; layer < counts.size(); ++layer) {
    for (uint32_t e = 0; e < counts[layer]; ++e) keys.push_back({LayerId(layer), ExpertId(e)});
  }
  if (order == WarmOrder::kStatic) {
    std::stable_sort(keys.begin(), keys.end(),
                     [](ExpertKey a, ExpertKey b) { return a.expert < b.expert; });
    return keys;
  }
  std::vector<uint32_t> rank(keys.size(), static_cast<uint32_t>(keys.size()));
  for (uint32_t i = 0; i < profile.warm_set.size(); ++i) rank[profile.warm_set[i]] = i;
  std::vector<uint32_t> order_of(keys.size());
  std::iota(order_of.begin(), order_of.end(), 0);
  std::stable_sort(order_of.begin(), order_of.end(), [&](uint32_t a, uint32_t b) {
    return rank[a] != rank[b] ? rank[a] < rank[b] : profile.heat[a] > profile.heat[b];
  });
  std::vector<ExpertKey> ordered;
  for (const uint32_t i : order_of) ordered.push_back(keys[i]);
  return ordered;
}

void WarmCache(std::vector<ExpertKey> wanted, const Store& store, ResidencyManager& residency,
               ReadScheduler& scheduler,
               const std::function<void(uint64_t, uint64_t)>& progress) {
  const ResidencyStats& stats = residency.stats();
  wanted.resize(std::min<size_t>(wanted.size(), stats.slot_count - stats.ring_slots));
  const size_t band = std::max<size_t>(kBandBytes / stats.slot_bytes, 1);
  const uint64_t total_bytes = wanted.size() * stats.slot_bytes;
  Warmer warmer(residency, scheduler);
  for (size_t begin = 0; begin < wanted.size(); begin += band) {
    const size_t end = std::min(begin + band, wanted.size());
    std::sort(wanted.begin() + static_cast<ptrdiff_t>(begin),
              wanted.begin() + static_cast<ptrdiff_t>(end), [&](ExpertKey a, ExpertKey b) {
                const RecordLocation &place_a = store.Locate(a), &place_b = store.Locate(b);
                return std::pair(place_a.offset, place_a.pack) <
                       std::pair(place_b.offset, place_b.pack);
              });
    for (size_t i = begin; i < end; ++i) {
      if (!warmer.Read(wanted[i])) begin = i = wanted.size();
      if (progress) progress(i * stats.slot_bytes, total_bytes);
    }
  }
  warmer.Finish();
  if (progress) progress(total_bytes, total_bytes);
}

}  // namespace moraine
