// What the launching functions share: errors as Status, and what they ask of the current GPU.
// Internal to compute/cuda.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/status.h"

namespace moraine::gpu {

inline Status Checked(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  return error == cudaErrorMemoryAllocation ? ResourceExhausted(message) : Internal(message);
}

// Of the current device; 0 if it cannot be asked.
inline uint32_t DeviceAttribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) return 0;
  return static_cast<uint32_t>(value);
}
inline uint32_t Multiprocessors() { return DeviceAttribute(cudaDevAttrMultiProcessorCount); }
inline uint32_t MaxSharedBytes() {
  return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, uint32_t bytes) {
  if (bytes <= 16 * 1024) return cudaSuccess;  // what is static counts, too
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// Launches a kernel that calls WaitForPrevious (mma.cuh) before it reads what others wrote: on
// Hopper and later its blocks start while the kernel before it in the stream still ends, and ask
// for their weights meanwhile.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchChained(void (*kernel)(Parameters...), dim3 grid, uint32_t threads,
                          uint32_t shared_bytes, CUstream_st* stream, Arguments... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = DeviceAttribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

constexpr uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

}  // namespace moraine::gpu
