// StoreRecordSource: a store's records, as residency asks for them.
//
// Threads: owned by the engine thread. Checksums of records of several pieces are shared out to the pool,
// so nothing may call Verify from within a parallel region.
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
  // files: of the store's packs, in order, as the reader knows them. All must outlive the source.
  StoreRecordSource(const Store& store, std::vector<FileId> files, ThreadPool& pool);
  Location Locate(ExpertKey key) const override;
  Status Verify(ExpertKey key, std::span<const std::byte> bytes) const override;

 private:
  const Store& store_;
  const std::vector<FileId> files_;
  const uint32_t copies_;
  ThreadPool& pool_;
  mutable std::vector<uint64_t> pieces_;  // scratch of Verify
};

}  // namespace moraine
