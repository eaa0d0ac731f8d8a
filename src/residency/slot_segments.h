// SlotSegments: the memory of the slots, in pieces that can be given back.
//
// A budget that shrinks must really return memory, and one slab registered with io_uring cannot do
// that in part: madvise would free nothing under the kernel's pins, and leave it writing to pages that
// the address no longer means. So the slots of a node are not one slab but segments, each mapped,
// populated and registered by itself, and given back whole: unregistered, then unmapped.
//
// A segment holds as many slots as fill its huge pages with at most 1/256 to spare. Segments are dealt
// out over the NUMA nodes in turn. A segment may be mapped with fewer slots than it can have: the last
// one of a budget that is no multiple.
//
// Cost: mapping a segment zeroes it (about 60 ms for 256 MiB), unmapping takes about as long as the
// kernel needs to free its pages.
//
// Threads: owned by the thread that owns the reader, once that has submitted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "io/block_reader.h"
#include "memory/host_arena.h"

namespace moraine {

struct SlotSegmentsOptions {
  uint64_t slot_bytes = 0;        // multiple of 4096
  uint32_t max_slots = 0;         // that will ever be mapped at once
  std::vector<int> numa_nodes = {-1};
  bool huge_pages = true;
  uint32_t slots_per_segment = 0;  // 0: derived
  BlockReader* reader = nullptr;   // to register with; null: none. Outlives the last Map and Unmap.
  // Page-locks a segment for a device that copies from it, as long as what it returns lives; null: nobody
  // does. Where it fails the segment is used as it is.
  std::function<Result<std::shared_ptr<void>>(std::span<std::byte>)> page_lock;
  // Replaces HostArena::Allocate, so that tests can run out of memory.
  std::function<Result<HostArena>(uint64_t bytes, const HostArenaOptions&)> allocate;
};

class SlotSegments {
 public:
  explicit SlotSegments(SlotSegmentsOptions options);

  // Slots of a whole segment; slot numbers segment * slots_per_segment() onwards are the segment's.
  uint32_t slots_per_segment() const { return slots_per_segment_; }
  // Segments that can exist at once: room for max_slots, for the part of one, and for one that
  // replaces another.
  uint32_t segment_count() const { return static_cast<uint32_t>(segments_.size()); }
  uint64_t slot_bytes() const { return options_.slot_bytes; }

  // Maps and registers an unmapped segment with `slots` slots (1 to slots_per_segment()); returns its
  // number. kResourceExhausted when the memory is not there, or no segment is free.
  Result<uint32_t> Map(uint32_t slots);
  // Gives the memory back to the system. Nothing may read into it any more.
  void Unmap(uint32_t segment);

  uint32_t slots(uint32_t segment) const { return segments_[segment].slots; }  // 0: not mapped
  std::byte* slot(uint32_t segment, uint32_t index) const {
    return segments_[segment].arena.data() + index * options_.slot_bytes;
  }
  // Whether all that was ever mapped is page-locked.
  bool page_locked() const { return options_.page_lock != nullptr && !lock_failed_; }
  uint32_t mapped_slots() const { return mapped_slots_; }
  uint64_t mapped_bytes() const { return mapped_bytes_; }

 private:
  struct Segment {
    HostArena arena;
    uint32_t slots = 0;
    std::shared_ptr<void> lock;  // of the arena
  };

  const SlotSegmentsOptions options_;
  uint32_t slots_per_segment_ = 0;
  std::vector<Segment> segments_;
  uint32_t mapped_slots_ = 0;
  uint64_t mapped_bytes_ = 0;
  bool lock_failed_ = false;  // and was logged
};

// How many slots a segment has: the memory of max_slots in at least 64 parts, so that a budget can
// change in small steps and a replacement is small, of at least one huge page and at most 256 MiB.
uint32_t SlotsPerSegment(uint64_t slot_bytes, uint32_t max_slots);

}  // namespace moraine
