#include "residency/slot_segments.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/check.h"
#include "base/log.h"

namespace moraine {
namespace {

constexpr uint64_t kHugePageBytes = 2 * kMiB;
constexpr uint64_t kLargestSegmentBytes = 256 * kMiB;
constexpr uint64_t kParts = 64;

}  // namespace

uint32_t SlotsPerSegment(uint64_t slot_bytes, uint32_t max_slots) {
  const uint64_t wanted =
      std::clamp(slot_bytes * max_slots / kParts, kHugePageBytes, kLargestSegmentBytes);
  uint64_t pages = (std::max(wanted, slot_bytes) + kHugePageBytes - 1) / kHugePageBytes;
  // Within a few pages more there is a number that slots fill well; of a few, the best.
  uint64_t best = pages, best_waste = kHugePageBytes * pages;
  for (const uint64_t last = 2 * pages + 8; pages <= last; ++pages) {
    const uint64_t bytes = pages * kHugePageBytes;
    const uint64_t waste = bytes % slot_bytes;
    // As shares of their segments.
    if (waste * best < best_waste * pages) {
      best = pages;
      best_waste = waste;
    }
    if (best_waste * 256 <= best * kHugePageBytes) break;
  }
  return static_cast<uint32_t>(best * kHugePageBytes / slot_bytes);
}

SlotSegments::SlotSegments(SlotSegmentsOptions options) : options_(std::move(options)) {
  CHECK(options_.slot_bytes > 0 && options_.slot_bytes % 4096 == 0, "slot_bytes");
  CHECK(!options_.numa_nodes.empty(), "no NUMA node to put slots on");
  slots_per_segment_ = options_.slots_per_segment > 0
                           ? options_.slots_per_segment
                           : SlotsPerSegment(options_.slot_bytes, options_.max_slots);
  segments_.resize(options_.max_slots / slots_per_segment_ + 3);
}

Result<uint32_t> SlotSegments::Map(uint32_t slots) {
  CHECK(slots > 0 && slots <= slots_per_segment_, "a segment of no or too many slots");
  const auto unmapped = std::find_if(segments_.begin(), segments_.end(),
                                     [](const Segment& segment) { return segment.slots == 0; });
  if (unmapped == segments_.end()) {
    return ResourceExhausted(fmt::format("all {} slot segments are mapped", segments_.size()));
  }
  const uint32_t index = static_cast<uint32_t>(unmapped - segments_.begin());
  const HostArenaOptions arena_options = {
      .numa_node = options_.numa_nodes[index % options_.numa_nodes.size()],
      .huge_pages = options_.huge_pages};
  const uint64_t bytes = slots * options_.slot_bytes;
  ASSIGN_OR_RETURN(HostArena arena, options_.allocate
                                        ? options_.allocate(bytes, arena_options)
                                        : HostArena::Allocate(bytes, arena_options));
  if (options_.reader != nullptr) {
    const std::span<std::byte> memory = arena.span();
    RETURN_IF_ERROR(options_.reader->RegisterBuffers(std::span(&memory, 1)));
  }
  std::shared_ptr<void> lock;
  if (options_.page_lock) {
    auto locked = options_.page_lock(arena.span());
    if (locked.ok()) {
      lock = std::move(*locked);
    } else if (!std::exchange(lock_failed_, true)) {
      LOG_WARN("expert slots are not page-locked, copies from them are slow: {}",
               locked.status().message());
    }
  }
  mapped_slots_ += slots;
  mapped_bytes_ += arena.size_bytes();
  *unmapped = {std::move(arena), slots, std::move(lock)};
  return index;
}

void SlotSegments::Unmap(uint32_t index) {
  Segment& segment = segments_[index];
  CHECK(segment.slots > 0, "the segment is not mapped");
  if (options_.reader != nullptr) options_.reader->UnregisterBuffer(segment.arena.span());
  segment.lock.reset();  // before its memory goes
  mapped_slots_ -= segment.slots;
  mapped_bytes_ -= segment.arena.size_bytes();
  segment = Segment();
}

}  // namespace moraine
