#include "engine/expert_split.h"

#include <algorithm>

namespace moraine {
namespace {

// A token has some fifty layers: what was timed two tokens ago counts a third.
constexpr double kFade = 0.99;
constexpr double kNewShare = 0.1;  // of a new sample of link or base, in their averages
// Above base + CPU by so much, a gap is the link's. Host clocks and launches jitter by some
// microseconds.
constexpr double kClearlySlower = 1.05, kJitterNs = 3000;
constexpr double kMostRise = 4;
// A tenth of it up, a two-hundredth down: one layer in twenty has an expert too many over the link.
constexpr double kUnseenFall = 0.995;

void Average(double* average, double sample) {
  *average += (*average == 0 ? 1 : kNewShare) * (sample - *average);
}

}  // namespace

void ExpertSplit::Line::Add(double n, double sample_ns) {
  weight = kFade * weight + 1;
  experts = kFade * experts + n;
  squares = kFade * squares + n * n;
  ns = kFade * ns + sample_ns;
  products = kFade * products + n * sample_ns;
  const double mean = experts / weight, variance = squares / weight - mean * mean;
  // Of one number of experts only, all is taken to be theirs.
  each = variance < 0.05 ? ns / experts : (products / weight - mean * ns / weight) / variance;
  each = std::clamp(each, 0.0, ns / experts);  // neither cost is negative
  fixed = ns / weight - each * mean;
}

void ExpertSplit::RecordCpu(uint32_t tokens, uint32_t experts, int64_t ns) {
  if (tokens == 0 || experts == 0 || ns <= 0) return;
  lines_[std::min(tokens, kMostTokens) - 1].Add(experts, static_cast<double>(ns));
}

// Of the nearest number of tokens that was timed.
const ExpertSplit::Line& ExpertSplit::LineOf(uint32_t tokens) const {
  const int own = static_cast<int>(std::clamp(tokens, 1u, kMostTokens)) - 1;
  for (int distance = 0; distance < static_cast<int>(kMostTokens); ++distance) {
    for (const int i : {own - distance, own + distance}) {
      if (i >= 0 && i < static_cast<int>(kMostTokens) && lines_[i].weight > 0) return lines_[i];
    }
  }
  return lines_[own];
}

double ExpertSplit::cpu_ns(uint32_t tokens, uint32_t experts) const {
  const Line& line = LineOf(tokens);
  return experts == 0 ? 0 : line.fixed + line.each * experts;
}

uint32_t ExpertSplit::Choose(uint32_t layer, uint32_t tokens, uint32_t movable, uint32_t fixed) {
  Layer& entry = layers_[layer];
  const uint32_t visit = entry.visits++;
  // The layers take turns, so that no step is slow as a whole.
  if (visit < kFirstVisits || visit % kExploreEvery == layer % kExploreEvery) return 0;
  if (link_ns_ <= 0 || LineOf(tokens).weight == 0) return 0;
  uint32_t best = 0;
  double best_ns = cpu_ns(tokens, fixed + movable);
  // One expert, that the link may show whether it is still so slow: the more seldom the more that
  // costs.
  const uint32_t every = link_ns_ < kMostRise * best_ns ? kExploreEvery : 16 * kExploreEvery;
  const bool try_link = visit % every == (layer + kExploreEvery / 2) % every;
  for (uint32_t k = 1; k <= movable; ++k) {
    const double ns = std::max(cpu_ns(tokens, fixed + movable - k), k * link_ns_);
    if (ns >= best_ns) continue;
    best = k;
    best_ns = ns;
  }
  return try_link && best == 0 && movable > 0 ? 1 : best;
}

void ExpertSplit::RecordLayer(uint32_t layer, uint32_t over_link, int64_t cpu_ns, int64_t gap_ns) {
  if (gap_ns <= 0) return;
  Layer& entry = layers_[layer];
  const auto gap = static_cast<double>(gap_ns), cpu = static_cast<double>(cpu_ns);
  if (over_link == 0) {
    Average(&entry.base_ns, std::max(gap - cpu, 1.0));
    return;
  }
  if (entry.base_ns == 0) return;
  const double work = gap - entry.base_ns;
  if (work > cpu * kClearlySlower + kJitterNs) {
    // Not a moment in which the host did something else.
    const double sample = work / over_link;
    Average(&link_ns_, link_ns_ > 0 ? std::min(sample, kMostRise * link_ns_) : sample);
  } else if (cpu > 0) {
    // It took no longer than the CPU, and nobody knows how much less: a little, until it shows.
    if (link_ns_ > cpu / over_link) Average(&link_ns_, cpu / over_link);
    link_ns_ *= kUnseenFall;
  }
}

}  // namespace moraine
