// MissCurve: how the share of lookups that miss depends on how many experts fit in memory, from the heat
// of a profile.
//
// The hottest experts are taken to be resident, and each lookup to be independent of the others. Real
// routing has runs, which a cache profits from, and a cache must find out what is hot: so only ratios of
// two sizes are used, with what was measured as the anchor. Costs one sort.
#pragma once

#include <cstdint>
#include <vector>

namespace moraine {

class MissCurve {
 public:
  // `heat`: for each expert the share of tokens that route to it.
  explicit MissCurve(std::vector<float> heat);

  // Of all lookups, with so many slots: 1 for none, 0 for all. 0 if nothing was learnt.
  double MissShare(double slots) const;

 private:
  std::vector<double> missed_;  // by number of slots
};

}  // namespace moraine
