#include "server/request_metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace moraine {
namespace {

double Seconds(std::chrono::nanoseconds time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

void SecondsHistogram::Add(double seconds) {
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  ++counts_[static_cast<size_t>(bound - kBounds.begin())];
  sum_ += seconds;
}

std::string SecondsHistogram::ToPrometheus(const std::string& name, const std::string& help) const {
  std::string out = fmt::format("# HELP {0} {1}\n# TYPE {0} histogram\n", name, help);
  uint64_t below = 0;
  for (size_t i = 0; i < kBounds.size(); ++i) {
    below += counts_[i];
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], below);
  }
  below += counts_.back();
  return out + fmt::format("{0}_bucket{{le=\"+Inf\"}} {2}\n{0}_sum {1}\n{0}_count {2}\n", name, sum_, below);
}

void RequestMetrics::NoteFirstToken(std::chrono::nanoseconds since_request) {
  std::lock_guard lock(mutex_);
  first_token_.Add(Seconds(since_request));
}

void RequestMetrics::NoteNextToken(std::chrono::nanoseconds since_token) {
  std::lock_guard lock(mutex_);
  next_token_.Add(Seconds(since_token));
}

void RequestMetrics::NoteEnd(std::chrono::nanoseconds since_request) {
  std::lock_guard lock(mutex_);
  end_.Add(Seconds(since_request));
}

std::string RequestMetrics::ToPrometheus() const {
  std::lock_guard lock(mutex_);
  return first_token_.ToPrometheus("moraine_time_to_first_token_seconds",
                                   "From the parsed request to its first token, the queue included.") +
         next_token_.ToPrometheus("moraine_time_between_tokens_seconds",
                                  "From one token of a generation to the next.") +
         end_.ToPrometheus("moraine_generation_seconds",
                           "From the parsed request to the end of a generation, unless its client left before.");
}

}  // namespace moraine
