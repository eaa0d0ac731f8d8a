// --stripe, --mirror and --weights of import and make-store.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "store/drive_set.h"

namespace moraine {

struct DriveArguments {
  std::vector<std::string> stripes;
  std::string mirror;
  std::vector<uint32_t> weights;
};
void AddDriveArguments(CLI::App* command, DriveArguments* arguments);
// Without --weights, several drives are measured (store/drive_weights.h), and unless `quiet` stderr gets a
// line for each. kInvalidArgument naming the option.
Result<DriveSet> FinishDriveOptions(const DriveArguments& arguments, const std::string& store,
                                    bool quiet);

}  // namespace moraine
