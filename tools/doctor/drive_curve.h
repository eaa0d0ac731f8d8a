// The drive's curve: GB/s and reads a second over request size and depth, measured with the
// engine's own reader. Short on purpose: its points are good to some ten percent, enough to see
// where the drive is full; `moraine bench io` measures one point well.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "doctor/finding.h"

namespace moraine {

struct CurvePoint {
  uint64_t request_bytes = 0;
  uint32_t depth = 0;
  double gb_per_s = 0, iops = 0;
  double p50_us = 0, p99_us = 0;
};

// Random aligned reads of existing files, all requests of one size and depth for `seconds` in all.
// kInvalidArgument if no file holds the largest request.
Result<std::vector<CurvePoint>> MeasureDriveCurve(const std::vector<std::string>& paths,
                                                  double seconds);

// The point with the most GB/s; requires points.
const CurvePoint& FastestPoint(const std::vector<CurvePoint>& curve);
// Says where the drive is full, and whether it is a fast one.
Finding CheckDriveCurve(const std::vector<CurvePoint>& curve);

// A file of random bytes to measure with where there is no store. It has no name, so nothing is
// left behind whatever ends the process.
class ScratchFile {
 public:
  // Writes min(1 GiB, a quarter of the free space), rounded down to MiB, and syncs it.
  static Result<ScratchFile> Create(const std::string& directory, uint64_t free_bytes);
  ~ScratchFile();
  ScratchFile(ScratchFile&& other) noexcept;
  ScratchFile& operator=(ScratchFile&&) = delete;

  // Opens the same file again, as long as this object lives.
  std::string path() const;

 private:
  explicit ScratchFile(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
};

}  // namespace moraine
