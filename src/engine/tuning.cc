#include "engine/tuning.h"

#include <algorithm>
#include <map>
#include <utility>

namespace moraine {
namespace {

constexpr int kPasses = 2;

struct Measured {
  std::vector<double> rates;
  std::string error;
  double median() const {
    if (rates.empty()) return 0;
    std::vector<double> sorted = rates;
    std::ranges::sort(sorted);
    const size_t middle = sorted.size() / 2;
    return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }
  double spread() const {
    if (rates.empty()) return 0;
    const auto [least, most] = std::ranges::minmax(rates);
    return most - least;
  }
};

class Search {
 public:
  Search(const std::vector<TuningDimension>& dimensions, const TuningMeasure& measure,
         const std::function<bool()>& enough)
      : dimensions_(dimensions), measure_(measure), enough_(enough) {}

  Result<TuningResult> Run() {
    for (const TuningDimension& dimension : dimensions_) {
      CHECK(dimension.start < dimension.candidates.size(), "a start that is no candidate");
      result_.best.push_back(dimension.start);
    }
    for (int pass = 0; pass < kPasses && !result_.stopped; ++pass) {
      const TuningPoint before = result_.best;
      for (size_t d = 0; d < dimensions_.size() && !result_.stopped; ++d) {
        RETURN_IF_ERROR(Descend(d));
      }
      // The second pass has something to find only if what others were measured beside has changed.
      if (result_.best == before) break;
    }
    WriteRows();
    return std::move(result_);
  }

 private:
  using Key = std::pair<TuningPoint, TuningObjective>;

  // Measures unless that has been done; null: enough.
  const Measured* At(const TuningPoint& point, size_t dimension) {
    const Key key{point, dimensions_[dimension].objective};
    if (const auto found = measured_.find(key); found != measured_.end()) return &found->second;
    return Again(key);
  }
  const Measured* Again(const Key& key) {
    if (result_.stopped || enough_()) {
      result_.stopped = true;
      return nullptr;
    }
    ++result_.measurements;
    Measured& entry = measured_[key];
    auto rates = measure_(key.first, key.second);
    if (rates.ok()) {
      entry.rates.insert(entry.rates.end(), rates->begin(), rates->end());
    } else {
      entry.error = rates.status().message();
      first_error_ = first_error_.ok() ? rates.status() : first_error_;
    }
    return &entry;
  }

  static bool Better(const Measured& a, const Measured& b) {
    return a.median() - b.median() > std::max(a.spread(), b.spread());
  }

  // Whether it still is with both measured once more, so that a machine that had something else to do is
  // not taken for a setting.
  bool Confirmed(const TuningPoint& candidate, const TuningPoint& best, size_t dimension) {
    const TuningObjective objective = dimensions_[dimension].objective;
    const Measured* const b = Again({best, objective});
    const Measured* const a = Again({candidate, objective});
    return a != nullptr && b != nullptr && a->error.empty() && Better(*a, *b);
  }

  Status Descend(size_t dimension) {
    const Measured* const start = At(result_.best, dimension);
    if (start == nullptr) return OkStatus();
    if (!start->error.empty()) return first_error_;
    const size_t first = result_.best[dimension];
    for (const int step : {1, -1}) {
      const auto next = static_cast<size_t>(step);  // -1 leaves the range at the other end
      for (size_t c = first + next; c < dimensions_[dimension].candidates.size(); c += next) {
        TuningPoint point = result_.best;
        point[dimension] = c;
        const Measured* const found = At(point, dimension);
        if (found == nullptr) return OkStatus();
        const Measured& best = *At(result_.best, dimension);
        const bool better = found->error.empty() && Better(*found, best);
        if (better && Confirmed(point, result_.best, dimension)) {
          result_.best = point;
        } else if (dimensions_[dimension].ordered &&
                   (!found->error.empty() || Better(best, *found))) {
          break;
        }
      }
    }
    beside_[dimension] = result_.best;
    return OkStatus();
  }

  void WriteRows() {
    for (size_t d = 0; d < dimensions_.size(); ++d) {
      const auto beside = beside_.find(d);
      for (size_t c = 0; c < dimensions_[d].candidates.size(); ++c) {
        TuningRow row{.dimension = d, .candidate = c};
        TuningPoint point = beside == beside_.end() ? result_.best : beside->second;
        point[d] = c;
        if (const auto found = measured_.find({point, dimensions_[d].objective});
            found != measured_.end()) {
          row.tok_per_s = found->second.median();
          row.spread = found->second.spread();
          row.error = found->second.error;
        }
        row.chosen = result_.best[d] == c;
        row.start = dimensions_[d].start == c;
        result_.rows.push_back(std::move(row));
      }
    }
  }

  const std::vector<TuningDimension>& dimensions_;
  const TuningMeasure& measure_;
  const std::function<bool()>& enough_;
  std::map<Key, Measured> measured_;
  std::map<size_t, TuningPoint> beside_;  // by dimension: the point when it was last descended
  Status first_error_;
  TuningResult result_;
};

}  // namespace

Result<TuningResult> Tune(const std::vector<TuningDimension>& dimensions,
                          const TuningMeasure& measure, const std::function<bool()>& enough) {
  return Search(dimensions, measure, enough).Run();
}

}  // namespace moraine
