// The checks of `moraine doctor` that concern the store's file system and drive. Each is a function
// of the machine as /proc and /sys show it and of the target; none measures anything.
#pragma once

#include <vector>

#include "doctor/finding.h"
#include "doctor/system_tree.h"
#include "doctor/target.h"

namespace moraine {

Finding CheckFilesystem(const Target& target);
Finding CheckDirectIo(const Target& target);
Finding CheckFreeSpace(const Target& target);
Finding CheckDrive(const SystemTree& tree, const Target& target);
Finding CheckIoScheduler(const SystemTree& tree, const Target& target);
Finding CheckReadahead(const SystemTree& tree, const Target& target);
// Whether the slot gives the drive the PCIe lanes and the speed that it can use.
Finding CheckPcieLink(const SystemTree& tree, const Target& target);

std::vector<Finding> CheckTarget(const SystemTree& tree, const Target& target);

// The NUMA node of a disk's controller; -1 where the machine does not say.
int DriveNumaNode(const SystemTree& tree, const std::string& disk);

}  // namespace moraine
