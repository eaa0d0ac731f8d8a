// GpuDense: the dense weights of a store in VRAM, as the forward pass takes them.
//
// Matrices that read the same rows (q, k, v; gate, up) lie one behind the other and are one product where
// their encodings allow it (device_matrix.h).
//
// Threads: thread-compatible.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/status.h"
#include "compute/cuda/device_matrix.h"
#include "memory/cuda/gpu_runtime.h"
#include "store/store.h"

namespace moraine {

// Outputs of one or several matrices side by side in a row.
struct GpuProjection {
  std::vector<gpu::DeviceMatrix> parts;
  uint32_t rows = 0, cols = 0;
};

class GpuDense {
 public:
  // tensors: of the manifest, that are read and checked. groups: roles of them that shall lie one behind the other.
  static Result<GpuDense> Load(const Store& store,
                               const std::vector<const DenseTensor*>& tensors,
                               const std::vector<std::vector<std::string>>& groups);

  // CHECKs that the roles exist.
  GpuProjection Projection(const std::vector<std::string>& roles) const;
  gpu::DeviceMatrix Matrix(const std::string& role) const;
  const float* Vector(const std::string& role) const;
  const DenseTensor& Tensor(const std::string& role) const { return *Find(role).tensor; }

 private:
  struct Entry {
    const DenseTensor* tensor = nullptr;
    std::byte* data = nullptr;
  };
  const Entry& Find(const std::string& role) const;

  gpu::DeviceMemory memory_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace moraine
