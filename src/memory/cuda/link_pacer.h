// LinkPacer: copies on a stream that take as long as over a slower link, for emulating another machine.
//
// Around each copy two host functions: the first notes when the stream gets there, the second returns when
// the link of that rate would be done (link_schedule.h), and the stream goes on then. Host functions and not
// a kernel that waits for the GPU's clock, because a kernel takes a place on a multiprocessor: GEMMs whose grids
// are one wave over all of them would run twice. What it costs: CUDA's callback thread sleeps, and spins for the last
// fifth of a millisecond, on a core that the CPU's kernels then have not.
//
// Copies end neither earlier than the emulated link would end them nor earlier than the real one does: a rate
// above the real link's has no effect. Only copies can be paced; kernels that read host memory
// in place go at the real link's speed. Nothing that is sent to the host is paced: PCIe carries both ways at once.
//
// Threads: one stream's, which one thread feeds; the schedule may be shared. Synchronise the stream before
// destruction.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>

#include "base/status.h"
#include "memory/cuda/gpu_runtime.h"
#include "memory/link_schedule.h"

namespace moraine::gpu {

class LinkPacer {
 public:
  LinkPacer(std::shared_ptr<LinkSchedule> link, Stream stream)
      : link_(std::move(link)), stream_(stream) {}
  LinkPacer(const LinkPacer&) = delete;
  LinkPacer& operator=(const LinkPacer&) = delete;

  // As gpu::Copy.
  Status Copy(void* to, const void* from, uint64_t bytes);

 private:
  static void NoteReady(void* pacer);
  static void WaitForEnd(void* pacer);

  const std::shared_ptr<LinkSchedule> link_;
  const Stream stream_;
  int64_t ready_ns_ = 0;  // of the copy under way; only the stream's host functions, in its order
  std::mutex mutex_;
  std::deque<uint64_t> bytes_;  // guarded by mutex_: of copies that have not ended
};

}  // namespace moraine::gpu
