#include "engine/gpu/gpu_speed.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "base/bytes.h"
#include "compute/cuda/grouped_gemm.h"
#include "memory/cuda/gpu_devices.h"
#include "memory/cuda/gpu_runtime.h"

namespace moraine {
namespace {

constexpr int kRounds = 9;

// Median of kRounds, after one that is not counted: the first loads code.
Result<double> MedianSeconds(const std::function<Status(gpu::Stream)>& enqueue) {
  ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
  ASSIGN_OR_RETURN(const gpu::Event before, gpu::Event::Create());
  ASSIGN_OR_RETURN(const gpu::Event after, gpu::Event::Create());
  std::vector<float> ms;
  for (int round = -1; round < kRounds; ++round) {
    RETURN_IF_ERROR(before.Record(stream.get()));
    RETURN_IF_ERROR(enqueue(stream.get()));
    RETURN_IF_ERROR(after.Record(stream.get()));
    RETURN_IF_ERROR(after.Synchronize());
    ASSIGN_OR_RETURN(const float elapsed, gpu::Event::Elapsed(before, after));
    if (round >= 0) ms.push_back(elapsed);
  }
  std::ranges::nth_element(ms, ms.begin() + kRounds / 2);
  return ms[kRounds / 2] * 1e-3;
}

}  // namespace

Result<double> MeasureProducts() {
  constexpr uint32_t kSize = 4096;
  constexpr uint64_t kBytes = uint64_t{kSize} * kSize * sizeof(uint16_t);
  ASSIGN_OR_RETURN(const gpu::GroupedGemm gemm, gpu::GroupedGemm::Create());
  ASSIGN_OR_RETURN(const gpu::DeviceMemory memory,
                   gpu::DeviceMemory::Allocate(3 * kBytes, "measuring"));
  {
    // Bytes of 0x3C are bf16 numbers of 0.0115: sums stay small. Alike on all GPUs that are compared.
    ASSIGN_OR_RETURN(const gpu::OwnedStream stream, gpu::OwnedStream::Create());
    RETURN_IF_ERROR(gpu::FillBytes(memory.data(), 0x3C, 3 * kBytes, stream.get()));
    RETURN_IF_ERROR(stream.Synchronize());
  }
  const gpu::DenseProduct product = {
      .matrix = {memory.data(), Encoding::kBf16, kSize, kSize},
      .operand = reinterpret_cast<const uint16_t*>(memory.data() + kBytes),
      .token_count = kSize,
      .y = memory.data() + 2 * kBytes,
      .stride = kSize};
  ASSIGN_OR_RETURN(const double seconds, MedianSeconds([&](gpu::Stream stream) {
                     return gemm.Dense(product, stream);
                   }));
  return 2.0 * kSize * kSize * kSize / seconds;
}

Result<double> MeasureLinkRate() {
  constexpr uint64_t kBytes = 128 * kMiB;
  ASSIGN_OR_RETURN(const gpu::PinnedMemory from, gpu::PinnedMemory::Allocate(kBytes));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory to, gpu::DeviceMemory::Allocate(kBytes, "measuring"));
  ASSIGN_OR_RETURN(const double seconds, MedianSeconds([&](gpu::Stream stream) {
                     return gpu::Copy(to.data(), from.data(), kBytes, stream);
                   }));
  return static_cast<double>(kBytes) / seconds;
}

Result<PeerSpeed> MeasurePeerCopies(uint32_t from, uint32_t to) {
  constexpr uint64_t kBytes = 64 * kMiB, kSmallBytes = 8 * kKiB;
  RETURN_IF_ERROR(gpu::UseGpu(to));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory there, gpu::DeviceMemory::Allocate(kBytes, "measuring"));
  RETURN_IF_ERROR(gpu::UseGpu(from));
  ASSIGN_OR_RETURN(const gpu::DeviceMemory here, gpu::DeviceMemory::Allocate(kBytes, "measuring"));
  const auto seconds_of = [&](uint64_t bytes) {
    const gpu::PeerCopy copy = {there.data(), to, here.data(), from, bytes};
    return MedianSeconds([&](gpu::Stream stream) { return gpu::CopyToPeer(copy, stream); });
  };
  ASSIGN_OR_RETURN(const double large, seconds_of(kBytes));
  ASSIGN_OR_RETURN(const double small, seconds_of(kSmallBytes));
  return PeerSpeed{static_cast<double>(kBytes) * 1e-9 / large, small * 1e6};
}

}  // namespace moraine
