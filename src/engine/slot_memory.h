// SlotMemory: what an expert's slot costs a memory budget beside its own bytes.
#pragma once

#include <cstdint>

namespace moraine {

// What a slot of so many bytes costs a budget: 1/256 more for what rounding its segment to huge pages leaves
// unused (slot_segments.h) or, without huge pages, for the kernel's list of registered pages; 1/512 for
// page tables, which a cgroup counts. Measured at 2, 4 and 7 GB: 5.7 to 6.5 MB a GB; left out, a budget of
// 16 GB did not fit into a cgroup of 16 GB.
constexpr uint64_t SlotMemory(uint64_t slot_bytes) { return slot_bytes + slot_bytes * 3 / 512; }

}  // namespace moraine
