#include "memory/cuda/gpu_runtime.h"

#include <cuda_runtime_api.h>

#include "base/bytes.h"

namespace moraine::gpu {
namespace internal {

void DestroyStream(CUstream_st* stream) { cudaStreamDestroy(stream); }
void DestroyEvent(CUevent_st* event) { cudaEventDestroy(event); }
void DestroyGraph(CUgraphExec_st* graph) { cudaGraphExecDestroy(graph); }
void FreeDevice(std::byte* memory) { cudaFree(memory); }
void FreeHost(std::byte* memory) { cudaFreeHost(memory); }
void Unregister(std::byte* memory) { cudaHostUnregister(memory); }

}  // namespace internal

namespace {

Status Checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  return error == cudaErrorMemoryAllocation ? ResourceExhausted(message) : Internal(message);
}

}  // namespace

Result<GpuInfo> QueryGpu() {
  int count = 0, device = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return Unsupported("no CUDA device: " + std::string(error == cudaSuccess
                                                            ? "none found"
                                                            : cudaGetErrorString(error)));
  }
  RETURN_IF_ERROR(Checked(cudaGetDevice(&device), "current CUDA device"));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(Checked(cudaGetDeviceProperties(&properties, device), "properties of the GPU"));
  GpuInfo info;
  info.name = properties.name;
  info.multiprocessors = static_cast<uint32_t>(properties.multiProcessorCount);
  info.major = static_cast<uint32_t>(properties.major);
  info.minor = static_cast<uint32_t>(properties.minor);
  size_t free = 0, total = 0;
  RETURN_IF_ERROR(Checked(cudaMemGetInfo(&free, &total), "free GPU memory"));
  info.free_bytes = free;
  info.total_bytes = total;
  return info;
}

Result<OwnedStream> OwnedStream::Create() {
  CUstream_st* stream = nullptr;
  RETURN_IF_ERROR(
      Checked(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "CUDA stream"));
  OwnedStream owned;
  owned.stream_ = Handle<CUstream_st*, internal::DestroyStream>(stream);
  return owned;
}

Status OwnedStream::Synchronize() const {
  return Checked(cudaStreamSynchronize(stream_.get()), "work on the GPU");
}

Result<Event> Event::Create() {
  CUevent_st* event = nullptr;
  RETURN_IF_ERROR(Checked(cudaEventCreate(&event), "CUDA event"));
  Event owned;
  owned.event_ = Handle<CUevent_st*, internal::DestroyEvent>(event);
  return owned;
}

Status Event::Record(Stream stream) const {
  return Checked(cudaEventRecord(event_.get(), stream), "recording a CUDA event");
}
Status Event::Before(Stream stream) const {
  return Checked(cudaStreamWaitEvent(stream, event_.get(), 0), "waiting for a CUDA event");
}
Status Event::Synchronize() const {
  return Checked(cudaEventSynchronize(event_.get()), "work on the GPU");
}
Result<bool> Event::Reached() const {
  const cudaError_t error = cudaEventQuery(event_.get());
  if (error == cudaErrorNotReady) return false;
  RETURN_IF_ERROR(Checked(error, "work on the GPU"));
  return true;
}
Result<float> Event::Elapsed(const Event& from, const Event& to) {
  float ms = 0;
  RETURN_IF_ERROR(
      Checked(cudaEventElapsedTime(&ms, from.event_.get(), to.event_.get()), "CUDA events"));
  return ms;
}

Result<Graph> Graph::Capture(Stream stream, const std::function<Status()>& enqueue) {
  RETURN_IF_ERROR(
      Checked(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "CUDA graph"));
  const Status enqueued = enqueue();
  cudaGraph_t recorded = nullptr;
  const Status ended = Checked(cudaStreamEndCapture(stream, &recorded), "CUDA graph");
  Status status = enqueued.ok() ? ended : enqueued;
  Graph graph;
  if (status.ok()) {
    cudaGraphExec_t executable = nullptr;
    status = Checked(cudaGraphInstantiate(&executable, recorded, 0), "CUDA graph");
    if (status.ok()) graph.graph_ = Handle<CUgraphExec_st*, internal::DestroyGraph>(executable);
  }
  if (recorded != nullptr) cudaGraphDestroy(recorded);
  RETURN_IF_ERROR(status);
  return graph;
}

Status Graph::Launch(Stream stream) const {
  return Checked(cudaGraphLaunch(graph_.get(), stream), "launching a CUDA graph");
}

Result<DeviceMemory> DeviceMemory::Allocate(uint64_t bytes, const std::string& purpose) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes > 0 ? bytes : 1);
  if (error != cudaSuccess) {
    cudaGetLastError();  // an allocation that failed leaves the device usable
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return ResourceExhausted(purpose + ": " + FormatByteSize(bytes) + " of GPU memory needed, " +
                             FormatByteSize(free) + " of " + FormatByteSize(total) +
                             " free: " + cudaGetErrorString(error));
  }
  DeviceMemory memory;
  memory.memory_ = Handle<std::byte*, internal::FreeDevice>(static_cast<std::byte*>(data));
  memory.size_bytes_ = bytes;
  return memory;
}

Result<PinnedMemory> PinnedMemory::Allocate(uint64_t bytes) {
  void* data = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&data, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
      error != cudaSuccess) {
    cudaGetLastError();
    return ResourceExhausted(FormatByteSize(bytes) +
                             " of page-locked memory: " + cudaGetErrorString(error));
  }
  PinnedMemory memory;
  memory.memory_ = Handle<std::byte*, internal::FreeHost>(static_cast<std::byte*>(data));
  memory.size_bytes_ = bytes;
  return memory;
}

Result<PageLock> PageLock::Lock(std::span<std::byte> memory) {
  if (const cudaError_t error =
          cudaHostRegister(memory.data(), memory.size(),
                           cudaHostRegisterMapped | cudaHostRegisterPortable);  // for all GPUs
      error != cudaSuccess) {
    cudaGetLastError();
    return ResourceExhausted("page-locking " + FormatByteSize(memory.size()) + ": " +
                             cudaGetErrorString(error));
  }
  PageLock lock;
  lock.memory_ = Handle<std::byte*, internal::Unregister>(memory.data());
  void* device = nullptr;
  RETURN_IF_ERROR(Checked(cudaHostGetDevicePointer(&device, memory.data(), 0),
                          "page-locked memory's address on the GPU"));
  lock.device_ = static_cast<const std::byte*>(device);
  return lock;
}

std::byte* MappedAddress(std::byte* memory) {
  cudaPointerAttributes attributes;
  if (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  if (attributes.type != cudaMemoryTypeHost) return nullptr;
  return static_cast<std::byte*>(attributes.devicePointer);
}

Status Copy(void* to, const void* from, uint64_t bytes, Stream stream) {
  return Checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copy to or from the GPU");
}

Status CopyRows(const RowCopy& copy, Stream stream) {
  return Checked(cudaMemcpy2DAsync(copy.to, copy.to_stride, copy.from, copy.from_stride,
                                   copy.row_bytes, copy.rows, cudaMemcpyDefault, stream),
                 "copy of rows to or from the GPU");
}

Status FillBytes(void* memory, uint8_t byte, uint64_t bytes, Stream stream) {
  return Checked(cudaMemsetAsync(memory, byte, bytes, stream), "filling GPU memory");
}

}  // namespace moraine::gpu
