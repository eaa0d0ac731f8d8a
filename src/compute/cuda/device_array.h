// DeviceArray: memory on the current GPU, allocated once, freed with its owner; copies wait. For
// set-up, tests and benchmarks, not for anything that must overlap. Move-only. Thread-compatible.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace moraine::gpu {

template <typename T>
class DeviceArray {
 public:
  // Not initialised. kResourceExhausted if the GPU has not `count` elements left.
  static Result<DeviceArray> Allocate(size_t count) {
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, count * sizeof(T));
    if (error != cudaSuccess) {
      return ResourceExhausted(std::to_string(count * sizeof(T)) +
                               " bytes of GPU memory: " + cudaGetErrorString(error));
    }
    return DeviceArray(static_cast<T*>(data), count);
  }
  static Result<DeviceArray> Copy(std::span<const T> values) {
    ASSIGN_OR_RETURN(DeviceArray array, Allocate(values.size()));
    RETURN_IF_ERROR(array.Write(0, values));
    return array;
  }

  Status Write(size_t first, std::span<const T> values) {
    CHECK(first + values.size() <= count_, "past the end of a DeviceArray");
    return Checked(
        cudaMemcpy(data() + first, values.data(), values.size_bytes(), cudaMemcpyHostToDevice));
  }
  Result<std::vector<T>> Read() const {
    std::vector<T> values(count_);
    RETURN_IF_ERROR(
        Checked(cudaMemcpy(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost)));
    return values;
  }
  Status Fill(uint8_t byte) { return Checked(cudaMemset(data(), byte, count_ * sizeof(T))); }

  T* data() const { return data_.get(); }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  DeviceArray(T* data, size_t count) : data_(data), count_(count) {}
  static Status Checked(cudaError_t error) {
    if (error == cudaSuccess) return OkStatus();
    return Internal(std::string("GPU memory: ") + cudaGetErrorString(error));
  }

  std::unique_ptr<T, Free> data_;
  size_t count_ = 0;
};

}  // namespace moraine::gpu
