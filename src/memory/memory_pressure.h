// Memory pressure (PSI) and what a process with a cache does about it.
//
// The kernel says for how long tasks of a cgroup stood still because memory was short
// (memory.pressure, /proc/pressure/memory: "some ... total=<us>"). The counter is read once a second:
// its averages (avg10) lag by half a minute, and a trigger would tell of the rise but not of the calm
// that allows growing again.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace moraine {

// The file of this process's own cgroup (v2), else the machine's. kUnsupported where the kernel has
// none. root: prefix of /proc and /sys, for tests.
Result<std::string> FindPressureFile(const std::string& root = "");

// "total" of the line "some", microseconds. kCorruption naming the field.
Result<uint64_t> ParsePressure(std::string_view text);

// Decides a budget from the counter: an eighth of the maximum less after three seconds in which tasks
// stood still for a tenth of the time or more; a thirty-second more after a minute of less than a
// hundredth, then every ten seconds. Between the two thresholds nothing changes. When pressure comes
// back within five minutes of growing, the calm that is asked for doubles, up to an hour: a machine
// that is full stays left alone.
//
// Why these: one second of reclaim stalls is what any large start-up causes, three are a state; the
// steps empty the cache in half a minute and fill it in five. Thread-compatible.
class PressureController {
 public:
  struct Limits {
    uint64_t minimum = 0, current = 0, maximum = 0;  // bytes
  };
  // A reading at `now_ns`, about a second after the last one. Returns the new budget, if it changes.
  std::optional<uint64_t> OnReading(int64_t now_ns, uint64_t stalled_us, const Limits& limits);

 private:
  static constexpr int64_t kNever = -1;
  std::optional<uint64_t> Shrink(int64_t now_ns, const Limits& limits);
  std::optional<uint64_t> Grow(int64_t now_ns, const Limits& limits);

  int64_t last_ns_ = kNever;
  uint64_t last_stalled_us_ = 0;
  int64_t high_since_ns_ = kNever, calm_since_ns_ = kNever, grown_ns_ = kNever;
  int64_t calm_wanted_ns_ = 60'000'000'000;
};

}  // namespace moraine
