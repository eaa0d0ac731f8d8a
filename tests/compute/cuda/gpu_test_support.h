// What the tests of GPU kernels share: random matrices on both sides, comparison element by
// element.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/cuda/device_matrix.h"
#include "compute/cuda/grouped_gemm.h"
#include "compute/encode.h"

#define SKIP_WITHOUT_GPU()                                  \
  do {                                                      \
    const auto gpu = ::moraine::gpu::GroupedGemm::Create(); \
    if (!gpu.ok()) GTEST_SKIP() << gpu.status().ToString(); \
  } while (false)

namespace moraine::gpu {

template <typename T>
T Need(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}
inline void NeedOk(const Status& status) { CHECK(status.ok(), status.ToString()); }
inline void Finish() {
  const cudaError_t error = cudaDeviceSynchronize();
  CHECK(error == cudaSuccess, cudaGetErrorString(error));
}

inline float RoundBf16(float value) { return Bf16ToFloat(FloatToBf16(value)); }

// Filled with NaN: what is not written shows.
template <typename T>
DeviceArray<T> Poisoned(size_t count) {
  auto array = Need(DeviceArray<T>::Allocate(count));
  NeedOk(array.Fill(0xFF));
  return array;
}
template <typename T>
DeviceArray<T> OnDevice(const std::vector<T>& values) {
  return Need(DeviceArray<T>::Copy(values));
}
template <typename T>
std::vector<T> Host(const DeviceArray<T>& array) {
  return Need(array.Read());
}

inline std::vector<float> NormalValues(Random& random, size_t count, float deviation = 1) {
  std::vector<float> values(count);
  for (float& value : values) value = random.Normal() * deviation;
  return values;
}

// A matrix of the store with random weights, and their exact values.
struct TestMatrix {
  TestMatrix(Random& random, Encoding encoding, uint32_t rows, uint32_t cols)
      : bytes(MatrixBytes(encoding, rows, cols)) {
    const auto random_values =
        NormalValues(random, size_t{rows} * cols, 1 / std::sqrt(static_cast<float>(cols)));
    Encode(encoding, rows, cols, random_values);
  }
  TestMatrix(Encoding encoding, uint32_t rows, uint32_t cols, const std::vector<float>& from)
      : bytes(MatrixBytes(encoding, rows, cols)) {
    Encode(encoding, rows, cols, from);
  }
  const float* row(uint32_t r) const { return values.data() + size_t{r} * view.cols; }

  std::vector<std::byte> bytes;
  MatrixView view;
  std::vector<float> values;
  DeviceArray<std::byte> array = Poisoned<std::byte>(1);
  DeviceMatrix device;

 private:
  void Encode(Encoding encoding, uint32_t rows, uint32_t cols, const std::vector<float>& from) {
    view = MatrixView::Plain(bytes.data(), encoding, rows, cols);
    NeedOk(EncodeRows(view, 0, rows, from.data()));
    values.resize(size_t{rows} * cols);
    for (uint32_t r = 0; r < rows; ++r) DecodeRow(view, r, values.data() + size_t{r} * cols);
    array = OnDevice(bytes);
    device = {array.data(), encoding, rows, cols};
  }
};

struct Sum {
  double value = 0, magnitude = 0;
  // Sums of float32 in groups of 16, each with a few bits lost.
  double tolerance(uint32_t count) const { return magnitude * (count / 16 + 8) * 0x1p-22; }
};
template <typename X>
Sum Dot(const float* w, const X* x, uint32_t count) {
  Sum sum;
  for (uint32_t i = 0; i < count; ++i) {
    const double product = double{w[i]} * x[i];
    sum.value += product;
    sum.magnitude += std::fabs(product);
  }
  return sum;
}
inline double Silu(double x) { return x / (1 + std::exp(-x)); }

// x * weight / sqrt(mean(x^2) + epsilon) in double.
inline std::vector<double> Normed(const float* x, const std::vector<float>& weight, double epsilon,
                                  uint32_t count) {
  double squares = 0;
  for (uint32_t i = 0; i < count; ++i) squares += double{x[i]} * x[i];
  const double factor = 1 / std::sqrt(squares / count + epsilon);
  std::vector<double> out(count);
  for (uint32_t i = 0; i < count; ++i) {
    out[i] = weight.empty() ? double{x[i]} : x[i] * factor * weight[i];
  }
  return out;
}

// Counts mismatches and describes the first few.
class Comparison {
 public:
  explicit Comparison(std::string what) : what_(std::move(what)) {}
  ~Comparison() {
    EXPECT_EQ(bad_, 0u) << what_ << ": " << bad_ << " of " << count_ << "\n" << text_;
    EXPECT_GT(count_, 0u) << what_ << ": nothing compared";
  }
  void Check(size_t row, size_t column, double found, double expected, double tolerance) {
    ++count_;
    if (std::fabs(found - expected) <= tolerance) return;
    if (bad_++ < 8) {
      text_ += "  row " + std::to_string(row) + " column " + std::to_string(column) + ": found " +
               std::to_string(found) + ", expected " + std::to_string(expected) + " +- " +
               std::to_string(tolerance) + "\n";
    }
  }

 private:
  std::string what_, text_;
  size_t bad_ = 0, count_ = 0;
};

inline constexpr double kHalfUlp = 0x1p-8;  // of bf16, relative
// What two bf16 leave of a float32, relative, and what a norm in float32 loses.
inline constexpr double kSplit = 0x1p-16;

}  // namespace moraine::gpu
