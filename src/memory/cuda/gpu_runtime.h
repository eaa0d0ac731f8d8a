// What the engine needs of the CUDA runtime besides kernels: streams, events, graphs, device and
// page-locked memory, copies that do not wait.
//
// CUDA's own types stay out of this header, so that only src/memory and src/compute include the toolkit.
// Each owner is move-only and frees with its destruction; destroying waits for nothing, so whoever owns
// memory that a stream works on synchronises first.
//
// Errors: kUnsupported where there is no GPU, kResourceExhausted where memory is not left (bytes asked
// for and free), kInternal with CUDA's words for the rest. A kernel that failed earlier may be reported by
// any call.
// Threads: thread-compatible; one stream is fed by one thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>

#include "base/status.h"

struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace moraine::gpu {

using Stream = CUstream_st*;

struct GpuInfo {
  std::string name;
  uint32_t multiprocessors = 0;
  uint32_t major = 0, minor = 0;  // compute capability
  uint64_t free_bytes = 0, total_bytes = 0;
};
// Of the current device, now.
Result<GpuInfo> QueryGpu();

// Holds what CUDA gave out, and how to give it back.
template <typename T, void (*kFree)(T)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, T{})) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      if (handle_ != T{}) kFree(handle_);
      handle_ = std::exchange(other.handle_, T{});
    }
    return *this;
  }
  ~Handle() {
    if (handle_ != T{}) kFree(handle_);
  }
  T get() const { return handle_; }

 private:
  T handle_{};
};

namespace internal {
void DestroyStream(CUstream_st* stream);
void DestroyEvent(CUevent_st* event);
void DestroyGraph(CUgraphExec_st* graph);
void FreeDevice(std::byte* memory);
void FreeHost(std::byte* memory);
void Unregister(std::byte* memory);
}  // namespace internal

// Work of one stream runs in order, of two at the same time.
class OwnedStream {
 public:
  static Result<OwnedStream> Create();
  Stream get() const { return stream_.get(); }
  Status Synchronize() const;

 private:
  Handle<CUstream_st*, internal::DestroyStream> stream_;
};

// A point in a stream's work. A wait for an event that was never recorded returns at once.
class Event {
 public:
  static Result<Event> Create();
  // Replaces what was recorded before.
  Status Record(Stream stream) const;
  // Work enqueued on `stream` from now on starts when this point has been reached.
  Status Before(Stream stream) const;
  // Blocks the caller until this point has been reached.
  Status Synchronize() const;
  // Whether it has been; of an event that was never recorded, true.
  Result<bool> Reached() const;
  // Milliseconds between two points, which have been reached.
  static Result<float> Elapsed(const Event& from, const Event& to);

 private:
  Handle<CUevent_st*, internal::DestroyEvent> event_;
};

// A recorded sequence of kernels and copies, launched as one.
class Graph {
 public:
  Graph() = default;
  // Records what `enqueue` puts on the stream, which is not run.
  static Result<Graph> Capture(Stream stream, const std::function<Status()>& enqueue);
  bool empty() const { return graph_.get() == nullptr; }
  Status Launch(Stream stream) const;

 private:
  Handle<CUgraphExec_st*, internal::DestroyGraph> graph_;
};

// Bytes on the GPU, 256-byte aligned, not initialised.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  // purpose: for the message.
  static Result<DeviceMemory> Allocate(uint64_t bytes, const std::string& purpose);
  std::byte* data() const { return memory_.get(); }
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  Handle<std::byte*, internal::FreeDevice> memory_;
  uint64_t size_bytes_ = 0;
};

// Page-locked host memory: copies from and to it run beside compute, and kernels can read it in place
// over the link.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  static Result<PinnedMemory> Allocate(uint64_t bytes);
  std::byte* data() const { return memory_.get(); }
  uint64_t size_bytes() const { return size_bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  Handle<std::byte*, internal::FreeHost> memory_;
  uint64_t size_bytes_ = 0;
};

// Page-locks memory that somebody else owns and keeps longer than this.
class PageLock {
 public:
  PageLock() = default;
  static Result<PageLock> Lock(std::span<std::byte> memory);
  // The address under which kernels read it.
  const std::byte* device_address() const { return device_; }

 private:
  Handle<std::byte*, internal::Unregister> memory_;
  const std::byte* device_ = nullptr;
};

// The address under which kernels read and write page-locked host memory; null if it is not page-locked.
std::byte* MappedAddress(std::byte* memory);

// Either side may be page-locked host memory or the GPU's; other host memory makes the call wait.
Status Copy(void* to, const void* from, uint64_t bytes, Stream stream);
// `rows` runs of row_bytes each, the strides in bytes.
struct RowCopy {
  std::byte* to = nullptr;
  const std::byte* from = nullptr;
  uint64_t to_stride = 0, from_stride = 0, row_bytes = 0, rows = 0;
};
Status CopyRows(const RowCopy& copy, Stream stream);
Status FillBytes(void* memory, uint8_t byte, uint64_t bytes, Stream stream);

}  // namespace moraine::gpu
