// DecodeChoice: whether a step of answers is computed on GPU and CPU together or on the CPU alone.
//
// Neither is guessed: of each number of tokens the first steps are computed both ways, then the way
// of the lower median goes on. The other one is tried again after a while, and after twice that as
// long as it still loses: a cache fills, contexts grow, a drive gets busy.
//
//   together   kColdSteps that do not count (kernels are loaded), kSamples that do
//   CPU        the same
//   then       the faster one; kSamples of the other after kFirstCheck steps, twice as many, ...
//              kLastCheck; and at first so many that what a check costs is 2 % of them
//
// Threads: thread-compatible. Pure: times come from the caller.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace moraine {

class DecodeChoice {
 public:
  static constexpr uint32_t kColdSteps = 3, kSamples = 5;
  static constexpr uint32_t kFirstCheck = 64, kLastCheck = 4096;
  static constexpr uint32_t kMostTokens = 8;  // of more, as of as many

  // always: nothing is timed on the CPU.
  explicit DecodeChoice(bool always) : always_(always) {}

  bool OnGpu(uint32_t tokens) const {
    if (always_) return true;
    const Class& c = Of(tokens);
    for (const bool gpu : {true, false}) {
      if (c.sides[gpu].steps < kColdSteps + kSamples) return gpu;
    }
    return c.checking > 0 ? !c.gpu_wins : c.gpu_wins;
  }

  void Record(bool on_gpu, uint32_t tokens, int64_t ns) {
    if (always_ || ns <= 0) return;
    Class& c = Of(tokens);
    Side& side = c.sides[on_gpu];
    if (side.steps++ >= kColdSteps) {
      side.last_ns[side.next] = ns;
      side.next = (side.next + 1) % kSamples;
    }
    if (c.sides[!on_gpu].steps < kColdSteps + kSamples || side.steps < kColdSteps + kSamples)
      return;
    const bool was_checking = c.checking > 0;
    if (was_checking && --c.checking > 0) return;
    const int64_t gpu = Median(c.sides[true]), cpu = Median(c.sides[false]);
    const bool gpu_wins = gpu <= cpu;
    if (was_checking || !c.decided) {
      const bool again = was_checking && gpu_wins == c.gpu_wins;
      const int64_t slower = std::max(gpu, cpu), faster = std::min(gpu, cpu);
      const int64_t costs_little = 50 * kSamples * (slower - faster) / faster;
      c.check_after = static_cast<uint32_t>(std::clamp<int64_t>(
          again ? 2 * c.check_after : costs_little, kFirstCheck, kLastCheck));
      c.since_check = 0;
      // The loser is not timed between checks: only they, and the first comparison, change sides.
      c.gpu_wins = gpu_wins;
    }
    c.decided = true;
    if (++c.since_check >= c.check_after) c.checking = kSamples;
  }

  // The last median, ns; 0: not known.
  int64_t median_ns(bool on_gpu, uint32_t tokens) const {
    const Side& side = Of(tokens).sides[on_gpu];
    return side.steps < kColdSteps + kSamples ? 0 : Median(side);
  }

 private:
  struct Side {
    uint64_t steps = 0;
    uint32_t next = 0;
    std::array<int64_t, kSamples> last_ns{};
  };
  struct Class {
    std::array<Side, 2> sides;  // CPU, together
    bool decided = false, gpu_wins = true;
    uint32_t since_check = 0, check_after = kFirstCheck;
    uint32_t checking = 0;  // steps that the loser still gets
  };

  static int64_t Median(const Side& side) {
    std::array<int64_t, kSamples> ns = side.last_ns;
    std::ranges::nth_element(ns, ns.begin() + kSamples / 2);
    return ns[kSamples / 2];
  }
  const Class& Of(uint32_t tokens) const {
    return classes_[std::clamp(tokens, 1u, kMostTokens) - 1];
  }
  Class& Of(uint32_t tokens) { return classes_[std::clamp(tokens, 1u, kMostTokens) - 1]; }

  const bool always_;
  std::array<Class, kMostTokens> classes_;
};

}  // namespace moraine
