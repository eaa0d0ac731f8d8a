// GpuModel and the GPU's rates of a build without CUDA.
#include "engine/gpu/gpu_model.h"
#include "engine/gpu/gpu_rates.h"

namespace moraine {
namespace {

Status NoCuda() {
  return Unsupported("this build has no CUDA: configure with -DMORAINE_CUDA=ON (docs/gpu.md)");
}

}  // namespace

Result<std::unique_ptr<GpuModel>> GpuModel::Open(const Store&, const ModelConfig&,
                                                 std::span<const ExpertLayout>,
                                                 const GpuModelOptions&) {
  return NoCuda();
}

Result<GpuIdentity> IdentifyGpu() { return NoCuda(); }
Result<MeasuredGpu> MeasureGpu() { return NoCuda(); }
Status FindGpu() { return NoCuda(); }
Result<uint32_t> CountGpus() { return NoCuda(); }
Result<std::shared_ptr<void>> LockForGpu(std::span<std::byte>) { return NoCuda(); }

}  // namespace moraine
