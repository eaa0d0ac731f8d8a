// The grouped expert GEMM against sums in double, on random records and ragged token counts.
//
// Two kinds of reference. The sharp one has the weights as the kernel rounds them (grouped_gemm.h)
// and each stage's own input, so that only the order of float32 sums and the last rounding differ:
// it finds one wrong index among thousands. The other has exact weights and runs through all
// stages: it says what the rounding costs.
#include "compute/cuda/grouped_gemm.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "base/random.h"
#include "compute/cuda/device_array.h"
#include "compute/encode.h"

namespace moraine::gpu {
namespace {

float RoundBf16(float value) { return Bf16ToFloat(FloatToBf16(value)); }

template <typename T>
T Need(Result<T> result) {
  CHECK(result.ok(), result.status().ToString());
  return std::move(*result);
}

// Weight (row, column) as the kernel multiplies it, read by byte arithmetic from encoding.h's
// diagram.
float KernelWeight(const MatrixView& view, uint32_t row, uint32_t column) {
  const std::byte* tile = view.tile(row / 16, column / 64);
  const uint32_t r = row % 16, c = column % 64, half = c / 32;
  uint16_t bits;
  if (view.encoding == Encoding::kBf16) {
    std::memcpy(&bits, tile + (c / 2 * 16 + r) * 4 + c % 2 * 2, 2);
    return Bf16ToFloat(bits);
  }
  std::memcpy(&bits, tile + half * 32 + r * 2, 2);
  int code;
  if (view.encoding == Encoding::kQ8) {
    code = static_cast<int8_t>(tile[64 + (c / 4 * 16 + r) * 4 + c % 4]);
  } else {
    const uint32_t in_half = c % 32, i = in_half % 16;
    const auto byte = static_cast<uint8_t>(tile[64 + half * 256 + (i / 4 * 16 + r) * 4 + i % 4]);
    code = (in_half < 16 ? byte & 15 : byte >> 4) - 8;
  }
  // The scale is two bf16; the sum below is exact in float32 (18 bits).
  const float scale = F16ToFloat(bits), high = RoundBf16(scale), low = scale - high;
  const auto c_float = static_cast<float>(code);
  return RoundBf16(c_float * high + RoundBf16(c_float * low));
}

std::vector<float> Weights(const MatrixView& view, bool as_kernel) {
  std::vector<float> weights(size_t{view.rows} * view.cols);
  for (uint32_t r = 0; r < view.rows; ++r) {
    float* row = weights.data() + size_t{r} * view.cols;
    if (!as_kernel) DecodeRow(view, r, row);
    for (uint32_t c = 0; as_kernel && c < view.cols; ++c) row[c] = KernelWeight(view, r, c);
  }
  return weights;
}

struct Sum {
  double value = 0, magnitude = 0;
  // Tensor cores add groups of 16 products to a float32 with a few bits lost each time.
  double tolerance(uint32_t count) const { return magnitude * (count / 16 + 8) * 0x1p-22; }
};
Sum Dot(const float* w, const float* x, uint32_t count) {
  Sum sum;
  for (uint32_t i = 0; i < count; ++i) {
    const double product = double{w[i]} * x[i];
    sum.value += product;
    sum.magnitude += std::fabs(product);
  }
  return sum;
}
double Silu(double x) { return x / (1 + std::exp(-x)); }

struct Shape {
  uint32_t hidden, intermediate;
  std::vector<uint32_t> counts;  // rows of each expert; the sum is even: two ranks a token
};

// A layer with random weights and routing, on the host and on the device.
struct Layer {
  Layer(const Shape& shape, Encoding gate_up, Encoding down, uint64_t seed) : random(seed) {
    layout = {gate_up, down, shape.hidden, shape.intermediate};
    const auto expert_count = static_cast<uint32_t>(shape.counts.size());
    for (uint32_t e = 0; e < expert_count; ++e) AddRecord();
    std::vector<const std::byte*> addresses;
    for (const auto& record : device_records) addresses.push_back(record.data());
    records = Need(DeviceArray<const std::byte*>::Copy(addresses));
    offsets = {0};
    for (const uint32_t count : shape.counts) offsets.push_back(offsets.back() + count);
    row_count = offsets.back();
    CHECK(row_count % kTopK == 0, "rows are tokens x ranks");
    Route();
    device_offsets = Need(DeviceArray<uint32_t>::Copy(offsets));
    experts = {layout, records.data(), expert_count, device_offsets.data(), row_count};
  }

  void AddRecord() {
    std::vector<std::byte> record(layout.record_bytes());
    const ExpertView view = ViewExpert(layout, record.data());
    for (const MatrixView& matrix : {view.gate, view.up, view.down}) {
      std::vector<float> values(size_t{matrix.rows} * matrix.cols);
      const float deviation = 1 / std::sqrt(static_cast<float>(matrix.cols));
      for (float& value : values) value = random.Normal() * deviation;
      const Status status = EncodeRows(matrix, 0, matrix.rows, values.data());
      CHECK(status.ok(), status.ToString());
    }
    device_records.push_back(Need(DeviceArray<std::byte>::Copy(record)));
    host_records.push_back(std::move(record));
  }

  // Which (token, rank) each sorted row belongs to: a random permutation.
  void Route() {
    const uint32_t token_count = row_count / kTopK;
    std::vector<uint32_t> order(row_count);
    std::iota(order.begin(), order.end(), 0u);
    for (uint32_t i = row_count; i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
    token_rows.resize(row_count);
    positions.resize(row_count);
    for (uint32_t row = 0; row < row_count; ++row) {
      token_rows[row] = order[row] / kTopK;
      positions[order[row]] = row;
      rank_weights.push_back(static_cast<float>(random.Uniform()));
    }
    for (uint32_t i = 0; i < token_count * layout.hidden; ++i) {
      x.push_back(FloatToBf16(random.Normal()));
    }
  }

  static constexpr uint32_t kTopK = 2;
  Random random;
  ExpertLayout layout;
  std::vector<std::vector<std::byte>> host_records;
  std::vector<DeviceArray<std::byte>> device_records;
  DeviceArray<const std::byte*> records = Need(DeviceArray<const std::byte*>::Allocate(1));
  DeviceArray<uint32_t> device_offsets = Need(DeviceArray<uint32_t>::Allocate(1));
  RoutedExperts experts;
  uint32_t row_count = 0;
  std::vector<uint32_t> offsets, token_rows, positions;
  std::vector<float> rank_weights;
  std::vector<uint16_t> x;
};

// Everything the GPU computed, and the arrays it lies in.
struct Outputs {
  std::vector<uint16_t> operand, activated, rows;
  std::vector<float> sums;
  bool operator==(const Outputs&) const = default;
};

Outputs RunLayer(const GroupedGemm& gemm, const Layer& layer) {
  const uint32_t hidden = layer.layout.hidden, rows = layer.row_count;
  const uint32_t token_count = rows / Layer::kTopK;
  auto x = Need(DeviceArray<uint16_t>::Copy(layer.x));
  auto token_rows = Need(DeviceArray<uint32_t>::Copy(layer.token_rows));
  auto positions = Need(DeviceArray<uint32_t>::Copy(layer.positions));
  auto weights = Need(DeviceArray<float>::Copy(layer.rank_weights));
  auto operand = Need(DeviceArray<uint16_t>::Allocate(size_t{rows} * OperandStride(hidden)));
  auto activated = Need(
      DeviceArray<uint16_t>::Allocate(size_t{rows} * OperandStride(layer.layout.intermediate)));
  auto out_rows = Need(DeviceArray<uint16_t>::Allocate(size_t{rows} * RowStride(hidden)));
  auto sums = Need(DeviceArray<float>::Allocate(size_t{token_count} * hidden));
  for (auto* array : {&operand, &activated, &out_rows}) {
    CHECK(array->Fill(0xFF).ok(), "poisoning");  // NaN: what is not written shows
  }
  CHECK(sums.Fill(0xFF).ok(), "poisoning");
  const auto check = [](const Status& status) { CHECK(status.ok(), status.ToString()); };
  check(gemm.GatherOperand({x.data(), hidden, token_rows.data(), rows, hidden, operand.data()},
                           nullptr));
  check(gemm.GateUp(layer.experts, operand.data(), activated.data(), nullptr));
  check(gemm.Down(layer.experts, activated.data(), out_rows.data(), nullptr));
  check(gemm.Combine({out_rows.data(), RowStride(hidden), positions.data(), weights.data(),
                      token_count, Layer::kTopK, hidden, sums.data()},
                     nullptr));
  const cudaError_t error = cudaDeviceSynchronize();
  CHECK(error == cudaSuccess, cudaGetErrorString(error));
  return {Need(operand.Read()), Need(activated.Read()), Need(out_rows.Read()), Need(sums.Read())};
}

// Counts mismatches and describes the first few.
class Comparison {
 public:
  explicit Comparison(std::string what) : what_(std::move(what)) {}
  ~Comparison() {
    EXPECT_EQ(bad_, 0u) << what_ << ": " << bad_ << " of " << count_ << "\n" << text_;
  }
  void Check(uint32_t expert, uint32_t row, uint32_t column, double found, double expected,
             double tolerance) {
    ++count_;
    if (std::fabs(found - expected) <= tolerance) return;
    if (bad_++ < 8) {
      text_ += "  expert " + std::to_string(expert) + " row " + std::to_string(row) + " column " +
               std::to_string(column) + ": found " + std::to_string(found) + ", expected " +
               std::to_string(expected) + " +- " + std::to_string(tolerance) + "\n";
    }
  }

 private:
  std::string what_, text_;
  size_t bad_ = 0, count_ = 0;
};

constexpr double kHalfUlp = 0x1p-8;  // of bf16, relative

void CheckGather(const Layer& layer, const Outputs& out) {
  Comparison compare("gather");
  const uint32_t hidden = layer.layout.hidden, stride = OperandStride(hidden);
  for (uint32_t row = 0; row < layer.row_count; ++row) {
    for (uint32_t c = 0; c < stride; ++c) {
      const uint32_t token = layer.token_rows[row];
      const float expected = c < hidden ? Bf16ToFloat(layer.x[size_t{token} * hidden + c]) : 0;
      const uint16_t found = out.operand[size_t{row} * stride + OperandPosition(c)];
      compare.Check(0, row, c, Bf16ToFloat(found), expected, 0);
    }
  }
}

std::vector<float> OperandRow(const std::vector<uint16_t>& operand, uint32_t row, uint32_t cols) {
  std::vector<float> values(cols);
  for (uint32_t c = 0; c < cols; ++c) {
    values[c] = Bf16ToFloat(operand[size_t{row} * OperandStride(cols) + OperandPosition(c)]);
  }
  return values;
}

void CheckGateUp(const Layer& layer, const Outputs& out) {
  Comparison compare("gate and up");
  const uint32_t hidden = layer.layout.hidden, intermediate = layer.layout.intermediate;
  const uint32_t stride = OperandStride(intermediate);
  for (uint32_t e = 0; e + 1 < layer.offsets.size(); ++e) {
    const ExpertView view = ViewExpert(layer.layout, layer.host_records[e].data());
    const std::vector<float> gate = Weights(view.gate, true), up = Weights(view.up, true);
    for (uint32_t row = layer.offsets[e]; row < layer.offsets[e + 1]; ++row) {
      const std::vector<float> x = OperandRow(out.operand, row, hidden);
      for (uint32_t i = 0; i < stride; ++i) {
        const float found = Bf16ToFloat(out.activated[size_t{row} * stride + OperandPosition(i)]);
        if (i >= intermediate) {
          compare.Check(e, row, i, found, 0, 0);
          continue;
        }
        const Sum g = Dot(gate.data() + size_t{i} * hidden, x.data(), hidden);
        const Sum u = Dot(up.data() + size_t{i} * hidden, x.data(), hidden);
        const double silu = Silu(g.value), expected = silu * u.value;  // |silu'| < 1.1
        compare.Check(e, row, i, found, expected,
                      1.1 * g.tolerance(hidden) * std::fabs(u.value) +
                          u.tolerance(hidden) * std::fabs(silu) + kHalfUlp * std::fabs(expected));
      }
    }
  }
}

void CheckDown(const Layer& layer, const Outputs& out) {
  Comparison compare("down");
  const uint32_t hidden = layer.layout.hidden, intermediate = layer.layout.intermediate;
  const uint32_t stride = RowStride(hidden);
  for (uint32_t e = 0; e + 1 < layer.offsets.size(); ++e) {
    const ExpertView view = ViewExpert(layer.layout, layer.host_records[e].data());
    const std::vector<float> down = Weights(view.down, true);
    for (uint32_t row = layer.offsets[e]; row < layer.offsets[e + 1]; ++row) {
      const std::vector<float> h = OperandRow(out.activated, row, intermediate);
      for (uint32_t i = 0; i < stride; ++i) {
        const float found = Bf16ToFloat(out.rows[size_t{row} * stride + i]);
        const Sum sum = i < hidden
                            ? Dot(down.data() + size_t{i} * intermediate, h.data(), intermediate)
                            : Sum{};
        compare.Check(e, row, i, found, sum.value,
                      sum.tolerance(intermediate) + kHalfUlp * std::fabs(sum.value));
      }
    }
  }
}

// To the bit: float32, rank by rank.
void CheckCombine(const Layer& layer, const Outputs& out) {
  Comparison compare("combine");
  const uint32_t hidden = layer.layout.hidden, stride = RowStride(hidden);
  for (uint32_t token = 0; token < layer.row_count / Layer::kTopK; ++token) {
    for (uint32_t i = 0; i < hidden; ++i) {
      float expected = 0;
      for (uint32_t rank = 0; rank < Layer::kTopK; ++rank) {
        const uint32_t at = token * Layer::kTopK + rank;
        const float product = layer.rank_weights[at] *
                              Bf16ToFloat(out.rows[size_t{layer.positions[at]} * stride + i]);
        expected += product;
      }
      compare.Check(0, token, i, out.sums[size_t{token} * hidden + i], expected, 0);
    }
  }
}

// ||found - exact|| / ||exact|| with exact weights, from x to Down's rows.
double RelativeError(const Layer& layer, const Outputs& out) {
  const uint32_t hidden = layer.layout.hidden, intermediate = layer.layout.intermediate;
  double difference = 0, norm = 0;
  for (uint32_t e = 0; e + 1 < layer.offsets.size(); ++e) {
    const ExpertView view = ViewExpert(layer.layout, layer.host_records[e].data());
    const std::vector<float> gate = Weights(view.gate, false), up = Weights(view.up, false);
    const std::vector<float> down = Weights(view.down, false);
    for (uint32_t row = layer.offsets[e]; row < layer.offsets[e + 1]; ++row) {
      const std::vector<float> x = OperandRow(out.operand, row, hidden);
      std::vector<double> h(intermediate);
      for (uint32_t i = 0; i < intermediate; ++i) {
        h[i] = Silu(Dot(gate.data() + size_t{i} * hidden, x.data(), hidden).value) *
               Dot(up.data() + size_t{i} * hidden, x.data(), hidden).value;
      }
      for (uint32_t i = 0; i < hidden; ++i) {
        double exact = 0;
        for (uint32_t j = 0; j < intermediate; ++j)
          exact += down[size_t{i} * intermediate + j] * h[j];
        const double found = Bf16ToFloat(out.rows[size_t{row} * RowStride(hidden) + i]);
        difference += (found - exact) * (found - exact);
        norm += exact * exact;
      }
    }
  }
  return std::sqrt(difference / norm);
}

using Case = std::tuple<GemmPath, Encoding, Encoding>;

class GroupedGemmTest : public testing::TestWithParam<Case> {
 protected:
  void CheckShape(const Shape& shape, uint64_t seed) {
    Result<GroupedGemm> gemm = GroupedGemm::Create(std::get<0>(GetParam()));
    if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
    const Layer layer(shape, std::get<1>(GetParam()), std::get<2>(GetParam()), seed);
    SCOPED_TRACE("hidden " + std::to_string(shape.hidden) + ", intermediate " +
                 std::to_string(shape.intermediate) + ", seed " + std::to_string(seed));
    const Outputs out = RunLayer(*gemm, layer);
    CheckGather(layer, out);
    CheckGateUp(layer, out);
    CheckDown(layer, out);
    CheckCombine(layer, out);
    EXPECT_TRUE(out == RunLayer(*gemm, layer)) << "two runs differ";
    // A rounding to bf16 is off by 2^-7 / sqrt(12) x sqrt(mean of 1 / mantissa^2) = 1.6e-3 in the
    // root mean square. Five of them: gate's and up's weights (gate's count 1.1 fold through silu),
    // the activated values, down's weights, the rows: 3.6e-3.
    const double error = RelativeError(layer, out);
    EXPECT_LT(error, layer.row_count > 100 ? 4e-3 : 6e-3);  // few rows: a wide mean
  }
};

const std::vector<uint32_t> kRagged = {0, 1, 3, 17, 0, 64, 65, 131, 16, 257, 0};

TEST_P(GroupedGemmTest, WholeTiles) { CheckShape({128, 256, {16, 128, 0, 32}}, 1); }
TEST_P(GroupedGemmTest, SmallerThanOneTile) { CheckShape({24, 8, {1, 0, 2, 33}}, 2); }
TEST_P(GroupedGemmTest, OddTails) { CheckShape({200, 136, kRagged}, 3); }
TEST_P(GroupedGemmTest, TailsOfRowBlocks) { CheckShape({283, 301, kRagged}, 4); }
TEST_P(GroupedGemmTest, LongSums) { CheckShape({2048, 768, {5, 0, 41}}, 5); }
TEST_P(GroupedGemmTest, NoRows) { CheckShape({64, 64, {0, 0, 2}}, 6); }
TEST_P(GroupedGemmTest, RandomShapes) {
  Random random(7);
  for (uint64_t round = 0; round < 6; ++round) {
    Shape shape{static_cast<uint32_t>(1 + random.Below(400)),
                static_cast<uint32_t>(1 + random.Below(300)),
                {}};
    const uint64_t experts = 1 + random.Below(40);
    for (uint64_t e = 0; e < experts; ++e)
      shape.counts.push_back(random.Below(random.Chance(0.2) ? 150 : 20));
    shape.counts.push_back(2 - std::accumulate(shape.counts.begin(), shape.counts.end(), 0u) % 2);
    CheckShape(shape, 100 + round);
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  return std::string(std::get<0>(info.param) == GemmPath::kWgmma ? "wgmma_" : "mmasync_") +
         EncodingName(std::get<1>(info.param)) + "_" + EncodingName(std::get<2>(info.param));
}
INSTANTIATE_TEST_SUITE_P(All, GroupedGemmTest,
                         testing::Values(Case{GemmPath::kMmaSync, Encoding::kQ4, Encoding::kQ4},
                                         Case{GemmPath::kMmaSync, Encoding::kQ8, Encoding::kBf16},
                                         Case{GemmPath::kMmaSync, Encoding::kBf16, Encoding::kQ8},
                                         Case{GemmPath::kWgmma, Encoding::kQ4, Encoding::kQ4},
                                         Case{GemmPath::kWgmma, Encoding::kQ8, Encoding::kBf16},
                                         Case{GemmPath::kWgmma, Encoding::kBf16, Encoding::kQ8}),
                         CaseName);

// Runs without a GPU.
TEST(GroupedGemmContract, OperandOrderIsAPermutationOfEachSixteenColumns) {
  std::vector<uint32_t> seen;
  for (uint32_t c = 0; c < 64; ++c) {
    EXPECT_EQ(OperandPosition(c) / 16, c / 16);
    seen.push_back(OperandPosition(c));
  }
  std::sort(seen.begin(), seen.end());
  for (uint32_t c = 0; c < 64; ++c) EXPECT_EQ(seen[c], c);
}

TEST(GroupedGemmContract, RefusesWhatItCannotRead) {
  Result<GroupedGemm> gemm = GroupedGemm::Create();
  if (!gemm.ok()) GTEST_SKIP() << gemm.status().ToString();
  RoutedExperts experts;
  experts.layout = {Encoding::kF32, Encoding::kQ4, 64, 64};
  EXPECT_EQ(gemm->GateUp(experts, nullptr, nullptr, nullptr).code(), StatusCode::kUnsupported);
  experts.layout.gate_up = Encoding::kQ4;
  experts.expert_count = kMaxGroupedExperts + 1;
  EXPECT_EQ(gemm->Down(experts, nullptr, nullptr, nullptr).code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moraine::gpu
