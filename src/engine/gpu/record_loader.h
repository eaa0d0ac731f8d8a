// RecordLoader: experts' records from the store's packs to the GPU or to page-locked DRAM, each read once
// and checked.
//
// Through the read scheduler (O_DIRECT where the file system has it), so that a model larger than the
// page cache does not flush it, into page-locked staging for what goes to the GPU, straight to its place
// for what stays in DRAM. Reads, checksums on all threads and copies overlap.
//
// Threads: owned by one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "compute/thread_pool.h"
#include "io/read_scheduler.h"
#include "memory/cuda/gpu_runtime.h"
#include "store/store.h"

namespace moraine {

struct RecordTarget {
  ExpertKey key;
  std::byte* memory = nullptr;  // of the record's bytes; in DRAM 4096-aligned and page-locked
  bool on_gpu = false;
};

class RecordLoader {
 public:
  // The store must outlive the loader.
  static Result<std::unique_ptr<RecordLoader>> Create(const Store& store,
                                                      const BlockReaderOptions& io, int threads);
  // loaded: called with the bytes done so far. Errors name the expert.
  Status Load(std::span<const RecordTarget> targets,
              const std::function<void(uint64_t bytes)>& loaded);

 private:
  struct Pending {
    ReadId id = 0;
    const RecordTarget* target = nullptr;
    uint32_t slot = 0;  // of staging, for a target on the GPU
  };

  RecordLoader(const Store& store, int threads);
  void Issue(const RecordTarget& target);
  Status TakeIn(std::span<const Pending> arrived);

  const Store& store_;
  std::vector<FileId> files_;
  ThreadPool pool_;
  gpu::OwnedStream stream_;
  uint64_t slot_bytes_ = 0;
  gpu::PinnedMemory staging_;
  std::vector<uint32_t> free_slots_;
  std::vector<Pending> pending_;
  std::vector<Status> checked_;
  std::unique_ptr<ReadScheduler> scheduler_;  // destroyed first: reads may land in staging
};

}  // namespace moraine
