// StoreRecordSource: a store's records, as residency asks for them.
//
// Checksums are computed piece by piece as the parts of a record arrive, mostly while the engine waits for
// the others anyway; Verify combines them.
//
// Threads: owned by the engine thread. The pieces are shared out to the pool, so nothing may call OnPart or
// Verify from within a parallel region.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "compute/thread_pool.h"
#include "residency/residency_manager.h"
#include "store/store.h"

namespace moraine {

class StoreRecordSource final : public RecordSource {
 public:
  // files: of the store's packs, in order, as the reader knows them. slots: that records are read
  // into. All must outlive the source.
  StoreRecordSource(const Store& store, std::vector<FileId> files, uint32_t slots, ThreadPool& pool);
  Location Locate(ExpertKey key) const override;
  // offset: a multiple of kChecksumPieceBytes (CHECK).
  void OnPart(uint32_t slot, std::span<const std::byte> record, uint64_t offset,
              uint64_t length) const override;
  Status Verify(ExpertKey key, uint32_t slot, std::span<const std::byte> bytes) const override;

 private:
  const Store& store_;
  const std::vector<FileId> files_;
  const uint32_t copies_;
  ThreadPool& pool_;
  uint32_t pieces_per_slot_ = 0;
  mutable std::vector<uint64_t> pieces_;  // by slot
};

}  // namespace moraine
