// DecayedCounts: how often each of many things was used lately.
//
// Threads: thread-compatible. No allocation after construction.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace moraine {

// Access counts that decay by `decay` a token. Nothing is multiplied when a step begins: what an
// access adds grows instead (1 / decay^t), and a value is read relative to that unit. O(1) a step.
//
// A step of n tokens in which w of them routed to an expert is taken as n decode steps with the w
// accesses spread evenly, as the order inside the step is unknown: what was there decays by decay^n,
// and the expert gains
//     sum over ages a < n of (w / n) * decay^a  =  (w / n) * (1 - decay^n) / (1 - decay).
// For n = w = 1 that is 1. Whatever n is, a count stays below 1 / (1 - decay), the count of an
// expert that every token takes, so a long prompt and a decode loop speak the same scale.
//
// `max_step_tokens` bounds n in both places, so that no double overflows.
class DecayedCounts {
 public:
  DecayedCounts(uint32_t size, double decay, double max_step_tokens)
      : raw_(size, 0.0), decay_(decay), max_step_tokens_(max_step_tokens) {}

  void BeginStep(uint32_t tokens) {
    tokens = std::max(tokens, 1u);
    const double kept = std::pow(decay_, std::min<double>(tokens, max_step_tokens_));
    unit_ /= kept;
    gain_ = (1 - kept) / (1 - decay_) / tokens;
    // Far inside the range of double, and thousands of steps apart.
    if (unit_ > 1e100) Rescale();
  }
  void Add(uint32_t index, float weight) { raw_[index] += unit_ * gain_ * weight; }
  void Set(uint32_t index, double value) { raw_[index] = value * unit_; }
  double Get(uint32_t index) const { return raw_[index] / unit_; }

 private:
  void Rescale() {
    for (double& value : raw_) value /= unit_;
    unit_ = 1;
  }

  std::vector<double> raw_;
  double decay_, max_step_tokens_;
  double unit_ = 1;  // what an access of weight 1 in a step of one token adds now
  double gain_ = 1;  // of the current step, for a weight of 1
};

}  // namespace moraine
