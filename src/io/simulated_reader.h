// SimulatedReader: a BlockReader whose device is a seeded random process on an injected clock.
//
// Reads real files (or named in-memory contents) but decides when, in which order and how well:
// the same seed gives the same run. With the RealClock and default faults it only reorders, which
// is what `--io simulated` offers on the command line.
#pragma once

#include <functional>
#include <map>

#include "base/clock.h"
#include "io/block_reader.h"

namespace moraine {

struct SimulatedFaults {
  double error_probability = 0;                    // -EIO, per read
  double short_read_probability = 0;               // fewer bytes, aligned down
  double corruption_probability = 0;               // one bit flipped
  int64_t min_latency_ns = 0, max_latency_ns = 0;  // uniform
  // The device moves one read after another at this rate, behind their latencies; 0: no limit.
  uint64_t bytes_per_second = 0;
  // Called for each read before the dice; returns a result to force (bytes or -errno), or 1 << 30
  // to let the dice decide. For scripted faults: "EIO for ever at this offset".
  std::function<int32_t(const BlockRead&)> script;
};

struct SimulatedReaderOptions {
  uint64_t seed = 1;
  uint32_t capacity = 128;
  SimulatedFaults faults;
  // With a ManualClock, a waiting Reap advances it to the next completion.
  ManualClock* manual_clock = nullptr;
  // path -> contents; paths not in here are read from the filesystem.
  std::map<std::string, std::vector<std::byte>> memory_files;
};

std::unique_ptr<BlockReader> CreateSimulatedReader(SimulatedReaderOptions options);

}  // namespace moraine
