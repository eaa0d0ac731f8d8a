// What the GPU of this machine is, and how fast: its link, its memory, its tensor cores. Measured without a
// model, so that `moraine plan` can tell what a model would give before it is there.
//
// Each rate is that of the thing itself, by CUDA events, medians: page-locked copies of 128 MiB, a copy of
// 256 MiB within VRAM counted as read and written, and the engine's own product of 8192 tokens with a
// 4096 x 4096 matrix of random bf16. What a model reaches of them is in docs/gpu.md. Takes a second, most of it
// CUDA's start; needs 670 MB of VRAM.
//
// Threads: any; measured on a stream of its own.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace moraine {

struct GpuIdentity {
  std::string name;
  uint64_t total_bytes = 0, free_bytes = 0;  // of VRAM; free ones: now
};
// kUnsupported, saying why: a build without CUDA, no GPU.
Result<GpuIdentity> IdentifyGpu();

struct MeasuredGpu {
  GpuIdentity gpu;
  double to_device_bytes_per_s = 0, to_host_bytes_per_s = 0;
  double memory_bytes_per_s = 0;  // read and written
  double operations_per_s = 0;    // a multiply-add is two
};
// As IdentifyGpu; kResourceExhausted where VRAM is not left.
Result<MeasuredGpu> MeasureGpu();

}  // namespace moraine
