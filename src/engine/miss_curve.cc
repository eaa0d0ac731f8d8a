#include "engine/miss_curve.h"

#include <algorithm>
#include <functional>

namespace moraine {

MissCurve::MissCurve(std::vector<float> heat) {
  std::sort(heat.begin(), heat.end(), std::greater<float>());
  std::vector<double> missed(heat.size() + 1);
  // From the coldest on: sums of small numbers first.
  for (size_t i = heat.size(); i-- > 0;) {
    missed[i] = missed[i + 1] + std::max(0.0, static_cast<double>(heat[i]));
  }
  const double all = missed[0];
  if (all <= 0) {
    points_ = {{1, 0}};
    return;
  }
  for (size_t i = 0; i < missed.size(); ++i) {
    points_.push_back({static_cast<double>(i) / static_cast<double>(heat.size()), missed[i] / all});
  }
}

MissCurve MissCurve::OfRecordedRouting() {
  MissCurve curve;
  curve.points_ = {{0, 1}, {0.05, 0.585}, {0.10, 0.393}, {0.20, 0.211}, {0.30, 0.108}, {1, 0}};
  return curve;
}

double MissCurve::MissShare(double resident_share) const {
  if (!learnt()) return 0;
  const double at = std::clamp(resident_share, 0.0, 1.0);
  const auto above = std::find_if(points_.begin() + 1, points_.end() - 1,
                                  [&](const Point& point) { return point.resident >= at; });
  const Point &high = *above, &low = *(above - 1);
  const double part = (at - low.resident) / (high.resident - low.resident);
  return low.missed + part * (high.missed - low.missed);
}

}  // namespace moraine
