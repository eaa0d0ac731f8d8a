#include "miss_curve.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace moraine {

MissCurve::MissCurve(std::vector<float> heat) {
  std::sort(heat.begin(), heat.end(), std::greater<float>());
  missed_.resize(heat.size() + 1);
  // From the coldest on: sums of small numbers first.
  for (size_t i = heat.size(); i-- > 0;) {
    missed_[i] = missed_[i + 1] + std::max(0.0, static_cast<double>(heat[i]));
  }
  const double all = missed_[0];
  for (double& share : missed_) share = all > 0 ? share / all : 0;
}

double MissCurve::MissShare(double slots) const {
  const double last = static_cast<double>(missed_.size() - 1);
  const double at = std::clamp(slots, 0.0, last);
  const auto below = static_cast<size_t>(std::floor(at));
  const size_t above = std::min(below + 1, missed_.size() - 1);
  return missed_[below] + (at - std::floor(at)) * (missed_[above] - missed_[below]);
}

}  // namespace moraine
