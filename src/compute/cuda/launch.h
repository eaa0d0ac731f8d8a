// What the launching functions share: errors as Status, and what they ask of the current GPU.
// Internal to compute/cuda.
#pragma once

#include <cuda_runtime_api.h>

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
inline uint32_t MaxSharedBytes() { return DeviceAttribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, uint32_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

constexpr uint32_t CeilDivide(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

}  // namespace moraine::gpu
