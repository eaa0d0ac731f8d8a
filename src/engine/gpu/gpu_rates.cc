#include "engine/gpu/gpu_rates.h"

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/random_tiles.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine {
namespace {

constexpr uint64_t kLinkBytes = 128 * kMiB, kMemoryBytes = 256 * kMiB;
constexpr uint32_t kTokens = 8192, kRows = 4096, kCols = 4096;
// The first rounds load kernels and raise clocks.
constexpr int kWarmRounds = 10, kRounds = 15;

// Median seconds of what `enqueue` puts on the stream.
Result<double> Seconds(gpu::Stream stream, const std::function<Status()>& enqueue) {
  ASSIGN_OR_RETURN(const gpu::Event before, gpu::Event::Create());
  ASSIGN_OR_RETURN(const gpu::Event after, gpu::Event::Create());
  std::vector<float> ms;
  for (int i = -kWarmRounds; i < kRounds; ++i) {
    RETURN_IF_ERROR(before.Record(stream));
    RETURN_IF_ERROR(enqueue());
    RETURN_IF_ERROR(after.Record(stream));
    RETURN_IF_ERROR(after.Synchronize());
    ASSIGN_OR_RETURN(const float elapsed, gpu::Event::Elapsed(before, after));
    if (i >= 0) ms.push_back(elapsed);
  }
  std::ranges::nth_element(ms, ms.begin() + kRounds / 2);
  return ms[kRounds / 2] * 1e-3;
}

Status MeasureCopies(gpu::Stream stream, MeasuredGpu* measured) {
  ASSIGN_OR_RETURN(const gpu::PinnedMemory host, gpu::PinnedMemory::Allocate(kLinkBytes));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory from,
                   gpu::DeviceMemory::Allocate(kMemoryBytes, "measuring"));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory to, gpu::DeviceMemory::Allocate(kMemoryBytes, "measuring"));
  RETURN_IF_ERROR(gpu::FillBytes(from.data(), 0x5A, kMemoryBytes, stream));
  const struct {
    std::byte *to, *from;
    uint64_t bytes, counted;
    double* rate;
  } copies[] = {
      {to.data(), host.data(), kLinkBytes, kLinkBytes, &measured->to_device_bytes_per_s},
      {host.data(), from.data(), kLinkBytes, kLinkBytes, &measured->to_host_bytes_per_s},
      {to.data(), from.data(), kMemoryBytes, 2 * kMemoryBytes, &measured->memory_bytes_per_s}};
  for (const auto& copy : copies) {
    ASSIGN_OR_RETURN(const double seconds, Seconds(stream, [&] {
                       return gpu::Copy(copy.to, copy.from, copy.bytes, stream);
                     }));
    *copy.rate = static_cast<double>(copy.counted) / seconds;
  }
  return OkStatus();
}

// Random bf16, which multipliers take more power for than for zeros.
Result<gpu::DeviceMemory> RandomBf16(uint64_t count, uint64_t seed, gpu::Stream stream) {
  std::vector<std::byte> values(count * 2);
  FillRandomTiles(Encoding::kBf16, 1.0f, seed, values);
  ASSIGN_OR_RETURN(gpu::DeviceMemory memory, gpu::DeviceMemory::Allocate(values.size(), "measuring"));
  RETURN_IF_ERROR(gpu::Copy(memory.data(), values.data(), values.size(), stream));
  return memory;
}

Status MeasureTensorCores(const gpu::OwnedStream& stream, MeasuredGpu* measured) {
  ASSIGN_OR_RETURN(const gpu::GroupedGemm gemm, gpu::GroupedGemm::Create());
  ASSIGN_OR_RETURN(const gpu::DeviceMemory weights,
                   RandomBf16(uint64_t{kRows} * kCols, 1, stream.get()));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory operand,
                   RandomBf16(uint64_t{kTokens} * gpu::OperandStride(kCols), 2, stream.get()));
  const uint32_t stride = gpu::RowStride(kRows);
  ASSIGN_OR_RETURN(const gpu::DeviceMemory y,
                   gpu::DeviceMemory::Allocate(uint64_t{kTokens} * stride * 2, "measuring"));
  RETURN_IF_ERROR(stream.Synchronize());
  const gpu::DenseProduct product = {
      .matrix = {.data = weights.data(), .encoding = Encoding::kBf16, .rows = kRows, .cols = kCols},
      .operand = reinterpret_cast<const uint16_t*>(operand.data()),
      .token_count = kTokens,
      .output = gpu::DenseProduct::Output::kBf16,
      .y = y.data(),
      .stride = stride};
  ASSIGN_OR_RETURN(const double seconds,
                   Seconds(stream.get(), [&] { return gemm.Dense(product, stream.get()); }));
  measured->operations_per_s = 2.0 * kTokens * kRows * kCols / seconds;
  return OkStatus();
}

}  // namespace

Result<GpuIdentity> IdentifyGpu() {
  ASSIGN_OR_RETURN(const gpu::GpuInfo info, gpu::QueryGpu());
  return GpuIdentity{info.name, info.total_bytes, info.free_bytes};
}

Result<MeasuredGpu> MeasureGpu() {
  MeasuredGpu measured;
  ASSIGN_OR_RETURN(measured.gpu, IdentifyGpu());
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  Status status = MeasureCopies(stream.get(), &measured);
  if (status.ok()) status = MeasureTensorCores(stream, &measured);
  static_cast<void>(stream.Synchronize());
  RETURN_IF_ERROR(status);
  return measured;
}

}  // namespace moraine
