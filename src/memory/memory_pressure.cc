#include "memory/memory_pressure.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <utility>

namespace moraine {
namespace {

constexpr int64_t kSecondNs = 1'000'000'000;
constexpr int64_t kSustainedNs = 3 * kSecondNs;
constexpr int64_t kGrowEveryNs = 10 * kSecondNs;
constexpr int64_t kRelapseNs = 300 * kSecondNs;
constexpr int64_t kLongestCalmNs = 3600 * kSecondNs;
constexpr double kHigh = 0.10, kCalm = 0.01;

}  // namespace

Result<std::string> FindPressureFile(const std::string& root) {
  std::ifstream cgroup(root + "/proc/self/cgroup");
  for (std::string line; std::getline(cgroup, line);) {
    if (!line.starts_with("0::")) continue;
    for (const char* mount : {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}) {
      const std::string path = root + mount + line.substr(3) + "/memory.pressure";
      if (std::ifstream(path)) return path;
    }
  }
  const std::string machine = root + "/proc/pressure/memory";
  if (std::ifstream(machine)) return machine;
  return Unsupported(machine + ": not there; pressure needs Linux 4.20 with CONFIG_PSI (and psi=1)");
}

Result<uint64_t> ParsePressure(std::string_view text) {
  const size_t some = text.starts_with("some ") ? 0 : text.find("\nsome ");
  if (some == std::string_view::npos) return Corruption("memory pressure: no line 'some'");
  std::string_view line = text.substr(some);
  line = line.substr(0, line.find('\n', 1));
  const size_t total = line.find(" total=");
  if (total == std::string_view::npos) return Corruption("memory pressure: no field 'some total'");
  const std::string_view digits = line.substr(total + 7);
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end == digits.data()) {
    return Corruption("memory pressure: field 'some total': expected a number, found '" +
                      std::string(digits) + "'");
  }
  return value;
}

std::optional<uint64_t> PressureController::OnReading(int64_t now_ns, uint64_t stalled_us,
                                                      const Limits& limits) {
  const int64_t before_ns = std::exchange(last_ns_, now_ns);
  const uint64_t before_us = std::exchange(last_stalled_us_, stalled_us);
  if (before_ns == kNever || now_ns <= before_ns || stalled_us < before_us) return std::nullopt;
  const double share = 1e3 * static_cast<double>(stalled_us - before_us) /
                       static_cast<double>(now_ns - before_ns);
  if (share < kHigh) high_since_ns_ = kNever;
  if (share >= kCalm) calm_since_ns_ = kNever;
  if (share >= kHigh) {
    if (high_since_ns_ == kNever) high_since_ns_ = before_ns;
    return Shrink(now_ns, limits);
  }
  if (share < kCalm) {
    if (calm_since_ns_ == kNever) calm_since_ns_ = before_ns;
    return Grow(now_ns, limits);
  }
  return std::nullopt;
}

std::optional<uint64_t> PressureController::Shrink(int64_t now_ns, const Limits& limits) {
  if (now_ns - high_since_ns_ < kSustainedNs) return std::nullopt;
  high_since_ns_ = now_ns;  // what was given back gets as long to show
  if (grown_ns_ != kNever && now_ns - grown_ns_ < kRelapseNs) {
    calm_wanted_ns_ = std::min(2 * calm_wanted_ns_, kLongestCalmNs);
    grown_ns_ = kNever;
  }
  const uint64_t step = limits.maximum / 8;
  const uint64_t lower =
      limits.current > limits.minimum + step ? limits.current - step : limits.minimum;
  if (lower >= limits.current) return std::nullopt;
  return lower;
}

std::optional<uint64_t> PressureController::Grow(int64_t now_ns, const Limits& limits) {
  if (limits.current >= limits.maximum || now_ns - calm_since_ns_ < calm_wanted_ns_) {
    return std::nullopt;
  }
  calm_since_ns_ = now_ns - calm_wanted_ns_ + kGrowEveryNs;
  grown_ns_ = now_ns;
  return std::min(limits.current + limits.maximum / 32, limits.maximum);
}

}  // namespace moraine
