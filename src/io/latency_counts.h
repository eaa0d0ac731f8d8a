// LatencyCounts: how long reads took, as counts in buckets of half an octave from 32 us to 0.7 s.
//
// Buckets instead of samples: adding is a few compares on the thread that drives the device, counts of two
// moments can be subtracted, and a quantile is right to 41 %, which tells a busy drive from an idle one.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace moraine {

// Thread-compatible.
struct LatencyCounts {
  static constexpr size_t kBuckets = 30;
  std::array<uint64_t, kBuckets> counts{};
  uint64_t sum_ns = 0;

  // The last bucket has no bound.
  static int64_t BoundNs(size_t bucket) {
    const int64_t octave = int64_t{32'000} << (bucket / 2);
    return bucket % 2 == 0 ? octave : octave * 1414 / 1000;
  }
  void Add(int64_t ns) {
    size_t bucket = 0;
    while (bucket + 1 < kBuckets && ns > BoundNs(bucket)) ++bucket;
    ++counts[bucket];
    sum_ns += static_cast<uint64_t>(ns < 0 ? 0 : ns);
  }
  uint64_t total() const {
    uint64_t sum = 0;
    for (const uint64_t count : counts) sum += count;
    return sum;
  }
  // The bound below which this part of the reads lies; nothing if there was none, or if it is in the
  // last bucket.
  std::optional<int64_t> QuantileNs(double part) const {
    const uint64_t all = total();
    if (all == 0) return std::nullopt;
    uint64_t below = 0;
    for (size_t bucket = 0; bucket + 1 < kBuckets; ++bucket) {
      below += counts[bucket];
      if (static_cast<double>(below) >= part * static_cast<double>(all)) return BoundNs(bucket);
    }
    return std::nullopt;
  }
};

}  // namespace moraine
