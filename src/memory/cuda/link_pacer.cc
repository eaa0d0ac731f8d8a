#include "memory/cuda/link_pacer.h"

#include <cuda_runtime_api.h>

#include <cerrno>
#include <ctime>
#include <string>

#include "base/clock.h"

namespace moraine::gpu {
namespace {

// A sleep ends up to 100 us late (the kernel's timer slack is 50 us): the rest is spun.
constexpr int64_t kSpinNs = 200'000;

void WaitUntil(int64_t ns) {
  const int64_t sleep_until = ns - kSpinNs;
  if (sleep_until > RealClock().NowNs()) {
    const timespec until = {.tv_sec = sleep_until / 1'000'000'000,
                            .tv_nsec = sleep_until % 1'000'000'000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr) == EINTR) {
    }
  }
  while (RealClock().NowNs() < ns) {
  }
}

Status Enqueue(Stream stream, cudaHostFn_t function, void* pacer) {
  const cudaError_t error = cudaLaunchHostFunc(stream, function, pacer);
  if (error == cudaSuccess) return OkStatus();
  return Internal(std::string("pacing the link: ") + cudaGetErrorString(error));
}

}  // namespace

Status LinkPacer::Copy(void* to, const void* from, uint64_t bytes) {
  RETURN_IF_ERROR(Enqueue(stream_, NoteReady, this));
  RETURN_IF_ERROR(gpu::Copy(to, from, bytes, stream_));
  {
    const std::lock_guard lock(mutex_);
    bytes_.push_back(bytes);
  }
  return Enqueue(stream_, WaitForEnd, this);
}

void LinkPacer::NoteReady(void* pacer) {
  static_cast<LinkPacer*>(pacer)->ready_ns_ = RealClock().NowNs();
}

void LinkPacer::WaitForEnd(void* context) {
  LinkPacer& pacer = *static_cast<LinkPacer*>(context);
  uint64_t bytes = 0;
  {
    const std::lock_guard lock(pacer.mutex_);
    bytes = pacer.bytes_.front();
    pacer.bytes_.pop_front();
  }
  WaitUntil(pacer.link_->EndOf(pacer.ready_ns_, bytes));
}

}  // namespace moraine::gpu
