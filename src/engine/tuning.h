// Tuning: which settings are fastest, found by measuring them one dimension at a time.
//
// Coordinate descent and not the cross product: a candidate costs an opened model and some rounds of prompt and
// answer, 3 to 30 s, and the dimensions hardly depend on each other (threads bound the arithmetic, the chunk the
// bytes that a prompt reads, lookahead the drive's idle time). Where they do, a second pass over all of them
// finds out; what has been measured is not measured again.
//
// A candidate replaces the best so far only if its median is higher by more than the spread of either's rounds
// (highest less lowest), and still is when both have been measured once more: what lies within the spread
// is noise, and the default stays. Ordered candidates (threads, chunk) are walked from the start outwards until
// one is clearly slower.
//
// Threads: pure but for the calls of `measure`.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine {

// What a dimension moves: a prompt's speed, an answer's, or a request's of both.
enum class TuningObjective : uint8_t { kPrefill, kDecode, kRequest };

struct TuningDimension {
  std::string name;                     // the option's
  std::vector<std::string> candidates{};  // their values
  size_t start = 0;                     // the default
  TuningObjective objective = TuningObjective::kRequest;
  bool ordered = true;  // neighbours are alike
};

// Index of a candidate in each dimension.
using TuningPoint = std::vector<size_t>;
// Tokens a second in each of some rounds. An error (memory that does not suffice) counts against the candidate.
using TuningMeasure =
    std::function<Result<std::vector<double>>(const TuningPoint&, TuningObjective)>;

struct TuningRow {
  size_t dimension = 0, candidate = 0;
  double tok_per_s = 0;  // median; 0: not measured
  double spread = 0;     // of tok_per_s
  std::string error{};   // why it could not be
  bool chosen = false, start = false;
};

struct TuningResult {
  TuningPoint best;
  std::vector<TuningRow> rows;  // of all dimensions, each beside the best of the others then
  uint32_t measurements = 0;
  bool stopped = false;  // by `enough`, before all had been tried
};

// enough: asked before each measurement; true ends the search with what it has. Errors: that of the start, without
// which there is nothing to compare with.
Result<TuningResult> Tune(const std::vector<TuningDimension>& dimensions,
                          const TuningMeasure& measure, const std::function<bool()>& enough);

}  // namespace moraine
