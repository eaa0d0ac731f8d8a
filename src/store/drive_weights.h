// Weights of drives from their measured bandwidth, for imports that are given none.
//
// Each device is read alone in a thread of its own, all at the same time, as the engine will read them:
// random 1 MiB requests, O_DIRECT, 16 outstanding, for a second, out of a scratch file of 256 MiB that is
// written before and removed after. Directories on one device share what it gives, and a store whose
// directories are all on one is not measured at all. A file just written may lie in a drive's cache, so what
// is measured is an upper limit; the ratio between drives is what is wanted.
//
// Weights are the layout of a striped store: an import that goes on takes those of the earlier run.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "store/drive_set.h"

namespace moraine {

// What is found out about a directory, which need not exist yet: then the nearest one above it that does.
// Tests say it instead. Called from several threads.
struct DriveProbes {
  // Name of the device it is on, the same for all partitions of a disk.
  std::function<Result<std::string>(const std::string& directory)> device;
  std::function<Result<double>(const std::string& directory)> bytes_per_second;
};
const DriveProbes& RealDriveProbes();

struct WeighedDrive {
  std::string directory, device;
  double bytes_per_second = 0;  // this directory's share of the device's; 0: not measured
  uint32_t weight = 1;
};

// Sets the weights of `drives`, all still 1, for an import into `store`. Returns how they were found, in the
// order of DriveSet::ExpertDrives; nothing for a single drive or the weights of an earlier run. An error names
// the directory.
Result<std::vector<WeighedDrive>> WeighDrives(const std::string& store, DriveSet* drives,
                                              const DriveProbes& probes = RealDriveProbes());

// The smallest whole numbers whose ratios are those of the speeds (above 0) within 7 %, which is what two
// measurements of one drive differ by; small numbers keep neighbouring records on different drives.
std::vector<uint32_t> WholeWeights(std::span<const double> speeds);

}  // namespace moraine
