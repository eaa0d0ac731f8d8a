// StreamedExperts: where a GPU gets the experts of layers that do not stay in VRAM, if not from memory of its
// own: the engine, which has them in slots or on the drive (leased_experts.h).
//
// Two interfaces, so that neither side knows the other: who has the records knows nothing of streams and
// events, who copies them nothing of slots and leases; and so that leases are tested without a GPU.
//
// Threads: owned by the thread that owns the model.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace moraine {

// Copies to a device, in the order in which they are asked for; nothing waits for them.
class DeviceCopier {
 public:
  virtual ~DeviceCopier() = default;
  // `from` must stay as it is until a mark made later has been reached.
  virtual Status Copy(std::byte* to, const std::byte* from, uint64_t bytes) = 0;
  // Of all copies so far. Marks rise. May wait for an old one.
  virtual Result<uint64_t> Mark() = 0;
  // A device that has failed copies nothing any more: all marks are reached.
  virtual bool Reached(uint64_t mark) = 0;
  virtual void Wait(uint64_t mark) = 0;
};

inline constexpr uint32_t kNoLayer = UINT32_MAX;

struct LayerCopy {
  uint32_t layer = 0;
  uint32_t next = kNoLayer;  // will be asked for after this one: may be read from the drive meanwhile
  uint64_t record_bytes = 0;
  std::byte* to = nullptr;   // expert e's record goes to `to + e * record_bytes`
  // An entry an expert, or null: all are copied. The source sets addresses[e] to where the device can read
  // the record already, which stays there until Finish, and copies the others, whose entries it sets to
  // null.
  const std::byte** addresses = nullptr;
};

class StreamedExperts {
 public:
  virtual ~StreamedExperts() = default;
  // Asks `copier` for copies of all records of a layer but those that are on the device already (LayerCopy's
  // addresses); waits for the drive, and, where memory is short,
  // for copies. Errors name the expert.
  virtual Status CopyLayer(const LayerCopy& layer, DeviceCopier& copier) = 0;
  // Waits for all copies and lets go of what they read. To be called when a chunk has ended, however.
  virtual void Finish(DeviceCopier& copier) = 0;
};

}  // namespace moraine
