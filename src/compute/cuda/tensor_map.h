// cuTensorMapEncodeTiled, found through the runtime, so that nothing links the driver's library,
// which a machine without a GPU lacks. Internal to compute/cuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace moraine::gpu {

using EncodeTensorMap = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                     const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline cudaError_t FindEncodeTensorMap(EncodeTensorMap* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  *encode = reinterpret_cast<EncodeTensorMap>(function);
  return cudaSuccess;
}

}  // namespace moraine::gpu
