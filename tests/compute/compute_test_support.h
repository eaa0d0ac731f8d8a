// What the tests of compute share: topologies made by hand, seeded matrices, and an independent
// reading of the tile layout by byte arithmetic.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/random.h"
#include "compute/aligned_array.h"
#include "compute/cpu/isa.h"
#include "compute/encode.h"
#include "compute/encoding.h"
#include "memory/topology.h"

namespace moraine {

inline constexpr double kEpsilon = 0x1p-24;  // half an ulp of float32, relative

inline Topology TopologyOf(int cpu_count) {
  Topology topology;
  NumaNode node;
  for (int i = 0; i < cpu_count; ++i) node.cpus.push_back(i);
  topology.nodes.push_back(node);
  return topology;
}

inline constexpr Encoding kAllEncodings[] = {Encoding::kF32, Encoding::kBf16, Encoding::kQ8,
                                             Encoding::kQ4, Encoding::kQ4Bf16, Encoding::kMxfp4,
                                             Encoding::kIq4Nl};
inline constexpr Encoding kQuantisedEncodings[] = {Encoding::kQ8, Encoding::kQ4, Encoding::kQ4Bf16,
                                                   Encoding::kMxfp4, Encoding::kIq4Nl};

inline std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (IsaSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

inline std::vector<float> RandomFloats(Random& random, size_t count, float scale) {
  std::vector<float> values(count);
  for (float& value : values) value = random.Normal() * scale;
  return values;
}

// An encoded matrix that owns its bytes.
struct TestMatrix {
  TestMatrix(Encoding encoding, uint32_t rows, uint32_t cols, const std::vector<float>& values)
      : bytes(MatrixBytes(encoding, rows, cols)),
        view(MatrixView::Plain(bytes.data(), encoding, rows, cols)) {
    // A byte the encoder leaves unwritten shows as a wrong value.
    std::memset(bytes.data(), 0xA5, MatrixBytes(encoding, rows, cols));
    const Status status = EncodeRows(view, 0, rows, values.data());
    CHECK(status.ok(), status.ToString());
  }
  std::vector<float> Decoded() const {
    std::vector<float> values(size_t{view.rows} * view.cols);
    for (uint32_t r = 0; r < view.rows; ++r) DecodeRow(view, r, values.data() + r * view.cols);
    return values;
  }
  AlignedArray<std::byte> bytes;
  MatrixView view;
};

}  // namespace moraine
