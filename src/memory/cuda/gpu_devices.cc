#include "memory/cuda/gpu_devices.h"

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

namespace moraine::gpu {

Result<uint32_t> CountGpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return static_cast<uint32_t>(count);
  return Unsupported("no CUDA device: " + std::string(error == cudaSuccess
                                                          ? "none found"
                                                          : cudaGetErrorString(error)));
}

Status UseGpu(uint32_t device) {
  const cudaError_t error = cudaSetDevice(static_cast<int>(device));
  if (error == cudaSuccess) return OkStatus();
  const std::string gpu = "GPU " + std::to_string(device) + ": ";
  if (error == cudaErrorInvalidDevice) {
    cudaGetLastError();
    ASSIGN_OR_RETURN(const uint32_t count, CountGpus());
    return InvalidArgument(gpu + "there is no such GPU; expected 0 to " +
                           std::to_string(count - 1));
  }
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return Unsupported(std::string("no CUDA device: ") + cudaGetErrorString(error));
  }
  return Internal(gpu + cudaGetErrorString(error));
}

namespace {

// The current one to the other. True where it has been allowed before.
Result<bool> AllowAccessTo(uint32_t other) {
  const cudaError_t error = cudaDeviceEnablePeerAccess(static_cast<int>(other), 0);
  if (error == cudaSuccess) return true;
  cudaGetLastError();
  if (error == cudaErrorPeerAccessAlreadyEnabled) return true;
  if (error == cudaErrorPeerAccessUnsupported || error == cudaErrorTooManyPeers) return false;
  return Internal("access to GPU " + std::to_string(other) + ": " + cudaGetErrorString(error));
}

}  // namespace

Result<bool> AllowPeerAccess(uint32_t a, uint32_t b) {
  if (a == b) return true;
  bool allowed = true;
  for (const auto& [from, to] : {std::pair(a, b), std::pair(b, a)}) {
    int can = 0;
    const cudaError_t error =
        cudaDeviceCanAccessPeer(&can, static_cast<int>(from), static_cast<int>(to));
    if (error != cudaSuccess) {
      return Internal("access of GPU " + std::to_string(from) + " to " + std::to_string(to) + ": " +
                      cudaGetErrorString(error));
    }
    if (can == 0) return false;
    RETURN_IF_ERROR(UseGpu(from));
    ASSIGN_OR_RETURN(const bool access, AllowAccessTo(to));
    allowed = allowed && access;
  }
  return allowed;
}

Status CopyToPeer(const PeerCopy& copy, Stream stream) {
  if (copy.from_device == copy.to_device) return Copy(copy.to, copy.from, copy.bytes, stream);
  const cudaError_t error =
      cudaMemcpyPeerAsync(copy.to, static_cast<int>(copy.to_device), copy.from,
                          static_cast<int>(copy.from_device), copy.bytes, stream);
  if (error == cudaSuccess) return OkStatus();
  return Internal("copy from GPU " + std::to_string(copy.from_device) + " to " +
                  std::to_string(copy.to_device) + ": " + cudaGetErrorString(error));
}

}  // namespace moraine::gpu
