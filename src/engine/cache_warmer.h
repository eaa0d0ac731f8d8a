// Warming: reads experts into the cache before anybody asks for them, at the speed of the drive.
//
// The order in which experts are wanted is not the order in which they lie in the packs. They are read
// in bands of 1 GiB, the most wanted band first, each in file order: whoever stops early has the
// hottest, and the drive sees neighbours. Tens of megabytes are in flight at demand priority; what was
// read is checked while the rest goes on.
//
// Threads: on the residency manager's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/ids.h"
#include "engine/workload_profile.h"
#include "io/read_scheduler.h"
#include "residency/residency_manager.h"
#include "store/store.h"

namespace moraine {

enum class WarmOrder : uint8_t {
  kProfile,  // what was resident when the profile was saved, hottest first, then by its heat
  kStatic,   // as many experts of each layer, by number
};

// All experts, most wanted first.
std::vector<ExpertKey> ExpertsInOrder(WarmOrder order, const WorkloadProfile& profile);

// Reads the first of `wanted` until the cache takes no more. Records that cannot be read are left out,
// and counted by the residency manager. progress (may be null) gets bytes queued so far and in all.
void WarmCache(std::vector<ExpertKey> wanted, const Store& store, ResidencyManager& residency,
               ReadScheduler& scheduler,
               const std::function<void(uint64_t done_bytes, uint64_t total_bytes)>& progress);

}  // namespace moraine
