// ExpertSplit: of a layer's experts that are in DRAM, how many a GPU reads over the link while the
// CPU computes the others.
//
// Both work at the same time and are waited for, so a layer takes as long as the slower one. With n
// experts, k of them over the link, the choice is the k of least
//
//   max( cpu(n - k), k link )        cpu(m) = fixed + m each, from least squares over what was
//   timed,
//                                    older layers fading; a line for each number of tokens
//
// What the CPU takes is timed as it is. What the link takes shows only where it is the slower one,
// in the time from one layer's placing to the next one's:
//
//   gap = base of the layer + max(cpu, k link)
//
// The base (attention, router, what is in VRAM) is known from layers with k = 0, of which there is
// one in kExploreEvery visits; a gap above base + cpu is the link's; without one the link is no
// slower than the CPU, and is taken to be a little faster until it shows. So the balance is sought
// where the two are equal. Where the link seems too slow for any, one visit in kExploreEvery or
// more tries one.
//
// Threads: thread-compatible. Pure: times come from the caller.
#pragma once

#include <cstdint>
#include <vector>

namespace moraine {

class ExpertSplit {
 public:
  static constexpr uint32_t kMostTokens = 8;   // more are taken for as many
  static constexpr uint32_t kFirstVisits = 2;  // of a layer, without the link
  static constexpr uint32_t kExploreEvery = 64;

  explicit ExpertSplit(uint32_t layers) : layers_(layers) {}

  // Of one expert over the link, before it was measured.
  void set_link_expected_ns(double ns) { link_ns_ = ns; }
  // How many of `movable` experts go over the link, when `fixed` more are the CPU's. Counts as a
  // visit.
  uint32_t Choose(uint32_t layer, uint32_t tokens, uint32_t movable, uint32_t fixed);
  // The CPU's experts of a layer, without what it waited for the drive.
  void RecordCpu(uint32_t tokens, uint32_t experts, int64_t ns);
  // From a layer's placing to the next one's; cpu_ns: all of the CPU's part, waiting too.
  void RecordLayer(uint32_t layer, uint32_t over_link, int64_t cpu_ns, int64_t gap_ns);

  // 0: not known yet.
  double cpu_ns(uint32_t tokens, uint32_t experts) const;
  double link_ns() const { return link_ns_; }

 private:
  // ns = fixed + experts each.
  struct Line {
    double weight = 0, experts = 0, squares = 0, ns = 0, products = 0;  // fading sums
    double fixed = 0, each = 0;
    void Add(double experts, double ns);
  };
  struct Layer {
    uint32_t visits = 0;
    double base_ns = 0;  // 0: not known
  };

  const Line& LineOf(uint32_t tokens) const;

  Line lines_[kMostTokens];
  std::vector<Layer> layers_;
  double link_ns_ = 0;
};

}  // namespace moraine
