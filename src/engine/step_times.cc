#include "engine/step_times.h"

#include <fmt/format.h>

#include <algorithm>

namespace moraine {

const char* StepPartName(StepPart part) {
  switch (part) {
    case StepPart::kDecode: return "decode";
    case StepPart::kMixed: return "mixed";
    case StepPart::kPrompt: return "prompt";
    case StepPart::kDrive: return "drive";
    case StepPart::kResize: return "resize";
    case StepPart::kAdmit: return "admit";
    case StepPart::kDeliver: return "deliver";
    case StepPart::kSave: return "save";
    case StepPart::kRestore: return "restore";
    case StepPart::kPublish: return "publish";
    case StepPart::kProfile: return "profile";
  }
  return "?";
}

void DurationCounts::Add(int64_t ns) {
  size_t bucket = 0;
  while (bucket + 1 < kBuckets && ns > BoundNs(bucket)) ++bucket;
  ++counts[bucket];
  sum_ns += ns;
  longest_ns = std::max(longest_ns, ns);
}

uint64_t DurationCounts::total() const {
  uint64_t sum = 0;
  for (const uint64_t count : counts) sum += count;
  return sum;
}

int64_t DurationCounts::QuantileNs(double share) const {
  const double wanted = share * static_cast<double>(total());
  uint64_t below = 0;
  for (size_t bucket = 0; bucket + 1 < kBuckets; ++bucket) {
    below += counts[bucket];
    if (below > 0 && static_cast<double>(below) >= wanted) {
      return std::min(BoundNs(bucket), longest_ns);
    }
  }
  return longest_ns;
}

StepPart StepStats::longest_cause() const {
  return static_cast<StepPart>(std::ranges::max_element(longest_ns) - longest_ns.begin());
}

std::string StepStats::ToText() const {
  if (turns.total() == 0) return "";
  const auto ms = [](int64_t ns) { return static_cast<double>(ns) * 1e-6; };
  std::string out = fmt::format(
      "steps    half within {:.0f} ms, 99 % within {:.0f} ms; the longest so far {:.0f} ms ({})",
      ms(turns.QuantileNs(0.5)), ms(turns.QuantileNs(0.99)), ms(turns.longest_ns),
      StepPartName(longest_cause()));
  if (waits.total() > 0) {
    out += fmt::format("; a token waited for {:.0f} ms at most", ms(waits.longest_ns));
  }
  if (longest_preempted_ns > 0) {
    out += fmt::format(", of a preempted request {:.0f} ms", ms(longest_preempted_ns));
  }
  return out + "\n";
}

void StepTimer::Begin() {
  charged_until_ns_ = clock_.NowNs();
  turn_ = {};
}

void StepTimer::Charge(StepPart part) {
  const int64_t now_ns = clock_.NowNs();
  turn_[static_cast<size_t>(part)] += now_ns - charged_until_ns_;
  charged_until_ns_ = now_ns;
}

void StepTimer::Move(StepPart from, StepPart to, int64_t ns) {
  int64_t& source = turn_[static_cast<size_t>(from)];
  const int64_t moved = std::clamp<int64_t>(ns, 0, source);
  source -= moved;
  turn_[static_cast<size_t>(to)] += moved;
}

void StepTimer::End() {
  int64_t whole_ns = 0;
  for (const int64_t ns : turn_) whole_ns += ns;
  const auto cause = static_cast<size_t>(std::ranges::max_element(turn_) - turn_.begin());
  for (size_t part = 0; part < kStepParts; ++part) stats_.part_ns[part] += turn_[part];
  stats_.turns.Add(whole_ns);
  ++stats_.caused[cause];
  stats_.longest_ns[cause] = std::max(stats_.longest_ns[cause], whole_ns);
  turn_ = {};
}

int64_t StepTimer::Token(int64_t before_ns, bool preempted) {
  const int64_t now_ns = clock_.NowNs();
  if (before_ns == 0) return now_ns;
  stats_.waits.Add(now_ns - before_ns);
  if (preempted) {
    stats_.longest_preempted_ns = std::max(stats_.longest_preempted_ns, now_ns - before_ns);
  }
  return now_ns;
}

}  // namespace moraine
