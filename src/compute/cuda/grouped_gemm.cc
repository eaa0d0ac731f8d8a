#include "compute/cuda/grouped_gemm.h"

#include <cuda_runtime_api.h>

#include <string>

#include "compute/cuda/gemm_launch.h"
#include "compute/cuda/launch.h"

namespace moraine::gpu {
namespace {

Status CheckEncoding(Encoding encoding) {
  if (encoding == Encoding::kQ4 || encoding == Encoding::kQ8 || encoding == Encoding::kBf16) {
    return OkStatus();
  }
  return Unsupported(std::string("grouped GEMM of ") + EncodingName(encoding) +
                     " weights: expected q4, q8 or bf16");
}

Status CheckExperts(const RoutedExperts& experts) {
  RETURN_IF_ERROR(CheckEncoding(experts.layout.gate_up));
  RETURN_IF_ERROR(CheckEncoding(experts.layout.down));
  if (experts.expert_count > kMaxGroupedExperts) {
    return InvalidArgument("grouped GEMM of " + std::to_string(experts.expert_count) +
                           " experts: at most " + std::to_string(kMaxGroupedExperts));
  }
  return OkStatus();
}

}  // namespace

Result<GroupedGemm> GroupedGemm::Create(GemmPath path) {
  int device = 0, count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return Unsupported("no CUDA device: " + std::string(error == cudaSuccess
                                                            ? "none found"
                                                            : cudaGetErrorString(error)));
  }
  RETURN_IF_ERROR(Checked(cudaGetDevice(&device), "current CUDA device"));
  int major = 0, minor = 0, multiprocessors = 0;
  RETURN_IF_ERROR(Checked(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                          "compute capability"));
  RETURN_IF_ERROR(Checked(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                          "compute capability"));
  RETURN_IF_ERROR(
      Checked(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
              "multiprocessor count"));
  const std::string found =
      "compute capability " + std::to_string(major) + "." + std::to_string(minor);
  if (major < 8) return Unsupported(found + ": the grouped GEMM needs 8.0 (Ampere) or later");
  const bool hopper = major == 9;
  if (path == GemmPath::kWgmma && !hopper) return Unsupported(found + ": wgmma needs 9.x (Hopper)");
  if (path == GemmPath::kBest) path = hopper ? GemmPath::kWgmma : GemmPath::kMmaSync;
  return GroupedGemm(path, static_cast<uint32_t>(multiprocessors));
}

Status GroupedGemm::GatherOperand(const RowGather& gather, Stream stream) const {
  if (gather.row_count == 0) return OkStatus();
  return Checked(LaunchGather(gather, stream), "gathering expert rows");
}

Status GroupedGemm::GateUp(const RoutedExperts& experts, const uint16_t* operand, uint16_t* output,
                           Stream stream) const {
  RETURN_IF_ERROR(CheckExperts(experts));
  if (experts.row_count == 0) return OkStatus();
  const ExpertLayout& layout = experts.layout;
  const GemmArguments arguments = {experts.records,
                                   0,
                                   experts.expert_count,
                                   PanelCount(layout.intermediate),
                                   TileCount(layout.hidden),
                                   experts.offsets,
                                   experts.row_count,
                                   operand,
                                   output,
                                   OperandStride(layout.intermediate)};
  const auto launch = path_ == GemmPath::kWgmma ? LaunchWgmmaGemm : LaunchMmaSyncGemm;
  return Checked(launch({layout.gate_up, true}, arguments, multiprocessors_, stream),
                 "gate and up of routed experts");
}

Status GroupedGemm::Down(const RoutedExperts& experts, const uint16_t* operand, uint16_t* rows,
                         Stream stream) const {
  RETURN_IF_ERROR(CheckExperts(experts));
  if (experts.row_count == 0) return OkStatus();
  const ExpertLayout& layout = experts.layout;
  const GemmArguments arguments = {experts.records,
                                   layout.down_offset(),
                                   experts.expert_count,
                                   PanelCount(layout.hidden),
                                   TileCount(layout.intermediate),
                                   experts.offsets,
                                   experts.row_count,
                                   operand,
                                   rows,
                                   RowStride(layout.hidden)};
  const auto launch = path_ == GemmPath::kWgmma ? LaunchWgmmaGemm : LaunchMmaSyncGemm;
  return Checked(launch({layout.down, false}, arguments, multiprocessors_, stream),
                 "down of routed experts");
}

Status GroupedGemm::Dense(const DenseProduct& product, Stream stream) const {
  RETURN_IF_ERROR(CheckEncoding(product.matrix.encoding));
  if (product.stride % kTileRows != 0 || product.stride < RowStride(product.matrix.rows)) {
    return InvalidArgument("dense product of " + std::to_string(product.matrix.rows) +
                           " rows: stride " + std::to_string(product.stride) +
                           ", expected a multiple of 16 of at least that");
  }
  if (product.token_count == 0) return OkStatus();
  GemmArguments arguments = {nullptr,
                             0,
                             1,
                             PanelCount(product.matrix.rows),
                             TileCount(product.matrix.cols),
                             nullptr,
                             product.token_count,
                             product.operand,
                             product.y,
                             product.stride,
                             product.output,
                             product.matrix.data};
  const auto launch = path_ == GemmPath::kWgmma ? LaunchWgmmaGemm : LaunchMmaSyncGemm;
  return Checked(launch({product.matrix.encoding, false}, arguments, multiprocessors_, stream),
                 "dense product");
}

Status GroupedGemm::Combine(const RowCombination& combination, Stream stream) const {
  if (combination.token_count == 0) return OkStatus();
  return Checked(LaunchCombine(combination, stream), "summing expert rows");
}

}  // namespace moraine::gpu
