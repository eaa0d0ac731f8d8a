// MissCurve: how the share of lookups that miss depends on how many experts fit in memory.
//
// From heat: the hottest experts are taken to be resident, and each lookup to be independent of the others.
// Real routing has runs, which a cache profits from, and a cache must find out what is hot. So `moraine stats` uses
// ratios of two sizes only, with what was measured as the anchor; `moraine plan`, before anything has
// run, has nothing better. Costs one sort.
#pragma once

#include <vector>

namespace moraine {

class MissCurve {
 public:
  // `heat`: for each expert the share of tokens that route to it.
  explicit MissCurve(std::vector<float> heat);
  // What the default policy reached on a recorded routing of Qwen3-30B-A3B (docs/policies.md), straight between
  // 5, 10, 20, 30 and 100 % of the experts.
  static MissCurve OfRecordedRouting();

  // Whether there was any heat.
  bool learnt() const { return points_.size() > 1; }
  // Of all lookups, with this share of the experts resident: 1 for none, 0 for all. 0 if nothing was learnt.
  double MissShare(double resident_share) const;

 private:
  struct Point {
    double resident, missed;
  };

  MissCurve() = default;

  std::vector<Point> points_;  // from (0, 1) to (1, 0); a single one if nothing was learnt
};

}  // namespace moraine
