#include "memory/cuda/gpu_devices.h"

#include <cuda_runtime_api.h>

#include <string>

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

}  // namespace moraine::gpu
