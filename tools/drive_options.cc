#include "drive_options.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "store/drive_weights.h"

namespace moraine {

void AddDriveArguments(CLI::App* command, DriveArguments* a) {
  command
      ->add_option("--stripe", a->stripes,
                   "spread the experts over these directories, one a drive: /nvme1/x,/nvme2/x")
      ->delimiter(',');
  command->add_option("--mirror", a->mirror,
                      "write the experts here, on another drive, too; reads go to the idle drive, and "
                      "to the other copy if one is bad");
  command
      ->add_option("--weights", a->weights,
                   "bandwidth of each drive of --stripe (without it: the store's), then of --mirror: "
                   "2,1 (default: measured, or alike if they are on one drive)")
      ->delimiter(',');
}

namespace {

void PrintWeights(const std::vector<WeighedDrive>& drives) {
  for (const WeighedDrive& drive : drives) {
    const std::string speed = drive.bytes_per_second > 0
                                  ? fmt::format("{:.2f} GB/s", drive.bytes_per_second * 1e-9)
                                  : std::string("the only drive, not measured");
    fmt::print(stderr, "{} on {}: {}, weight {}\n", drive.directory, drive.device, speed,
               drive.weight);
  }
}

}  // namespace

Result<DriveSet> FinishDriveOptions(const DriveArguments& a, const std::string& store,
                                    bool quiet) {
  if (a.stripes.size() == 1) {
    return InvalidArgument("--stripe names one directory (" + a.stripes[0] +
                           "), expected at least two");
  }
  DriveSet drives;
  // Absolute, so that the store can be opened from anywhere.
  const auto absolute = [](const std::string& directory) {
    return std::filesystem::absolute(directory).lexically_normal().string();
  };
  for (const std::string& stripe : a.stripes) drives.stripes.push_back({absolute(stripe), 1});
  if (!a.mirror.empty()) drives.mirror = {absolute(a.mirror), 1};
  if (!a.weights.empty()) {
    // The store's own drive needs a line when it has a weight.
    if (drives.stripes.empty() && drives.mirror) drives.stripes.push_back({"packs", 1});
    const size_t expected = drives.stripes.size() + (drives.mirror ? 1 : 0);
    if (a.weights.size() != expected) {
      return InvalidArgument("--weights has " + std::to_string(a.weights.size()) +
                             " numbers, expected one for each of the " + std::to_string(expected) +
                             " drives of --stripe and --mirror");
    }
    for (size_t i = 0; i < drives.stripes.size(); ++i) drives.stripes[i].weight = a.weights[i];
    if (drives.mirror) drives.mirror->weight = a.weights.back();
  }
  RETURN_IF_ERROR(drives.Check());
  if (a.weights.empty()) {
    ASSIGN_OR_RETURN(const std::vector<WeighedDrive> weighed, WeighDrives(store, &drives));
    if (!quiet) PrintWeights(weighed);
  }
  return drives;
}

}  // namespace moraine
