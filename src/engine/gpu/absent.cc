// GpuModel of a build without CUDA.
#include "engine/gpu/gpu_model.h"

namespace moraine {

Result<std::unique_ptr<GpuModel>> GpuModel::Open(const Store&, const ModelConfig&,
                                                 std::span<const ExpertLayout>,
                                                 const GpuModelOptions&) {
  return Unsupported("this build has no CUDA: configure with -DMORAINE_CUDA=ON (docs/gpu.md)");
}

}  // namespace moraine
