// Linear attention and gates against the formulas in double.
#include "compute/cuda/gated_delta.h"

#include "compute/cuda/gates.h"
#include "gpu_test_support.h"

namespace moraine::gpu {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Weights {
  std::vector<float> conv, decay_log, decay_bias, norm;
};

// All rows of one sequence, from nothing.
struct Inputs {
  std::vector<float> qkv, a, b, z;
};

struct Expected {
  std::vector<double> out, state;  // before norm and gate; StateFloats()
};

class GatedDeltaTest : public testing::Test {
 protected:
  void Make(const DeltaShape& shape, uint32_t rows, bool bf16, uint64_t seed) {
    Random random(seed);
    shape_ = shape;
    bf16_ = bf16;
    weights_.conv = NormalValues(random, size_t{shape.channels()} * shape.taps, 0.5f);
    weights_.decay_log = NormalValues(random, shape.value_heads, 0.5f);
    weights_.decay_bias = NormalValues(random, shape.value_heads);
    weights_.norm = NormalValues(random, shape.value_dim);
    in_.qkv = NormalValues(random, size_t{rows} * shape.channels());
    in_.z = NormalValues(random, size_t{rows} * shape.values());
    if (bf16) {
      for (float& x : in_.qkv) x = RoundBf16(x);
      for (float& x : in_.z) x = RoundBf16(x);
    }
    in_.a = NormalValues(random, size_t{rows} * shape.value_heads);
    in_.b = NormalValues(random, size_t{rows} * shape.value_heads);
  }

  // q, k and v of a row after convolution, silu and lengths.
  std::vector<double> Mixed(uint32_t row) const {
    const uint32_t channels = shape_.channels(), taps = shape_.taps;
    std::vector<double> x(channels);
    for (uint32_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (uint32_t i = 0; i < taps; ++i) {
        const int64_t from = int64_t{row} - (taps - 1) + i;
        if (from >= 0) sum += double{weights_.conv[c * taps + i]} * in_.qkv[from * channels + c];
      }
      x[c] = sum * Sigmoid(sum);
    }
    for (uint32_t head = 0; head < 2 * shape_.key_heads; ++head) {
      double squares = 0;
      for (uint32_t d = 0; d < shape_.key_dim; ++d) {
        squares += x[head * shape_.key_dim + d] * x[head * shape_.key_dim + d];
      }
      double scale = 1 / std::sqrt(squares + 1e-6);
      if (head < shape_.key_heads) scale /= std::sqrt(double{shape_.key_dim * 1.0});
      for (uint32_t d = 0; d < shape_.key_dim; ++d) x[head * shape_.key_dim + d] *= scale;
    }
    return x;
  }

  Expected Reference(uint32_t rows) const {
    const uint32_t kd = shape_.key_dim, vd = shape_.value_dim, heads = shape_.value_heads;
    Expected expected;
    expected.out.resize(size_t{rows} * shape_.values());
    std::vector<double> memory(size_t{heads} * kd * vd);
    for (uint32_t t = 0; t < rows; ++t) {
      const std::vector<double> x = Mixed(t);
      for (uint32_t h = 0; h < heads; ++h) {
        const uint32_t key_head = h / (heads / shape_.key_heads);
        const double* q = x.data() + key_head * kd;
        const double* k = q + shape_.keys();
        const double* v = x.data() + 2 * shape_.keys() + h * vd;
        const double pre = double{in_.a[t * heads + h]} + weights_.decay_bias[h];
        const double decay = std::exp(-std::exp(double{weights_.decay_log[h]}) *
                                      (pre > 20 ? pre : std::log1p(std::exp(pre))));
        const double beta = Sigmoid(in_.b[t * heads + h]);
        for (uint32_t c = 0; c < vd; ++c) {
          double* const s = memory.data() + size_t{h} * kd * vd + c;
          double known = 0, out = 0;
          for (uint32_t d = 0; d < kd; ++d) known += (s[d * vd] *= decay) * k[d];
          const double delta = beta * (v[c] - known);
          for (uint32_t d = 0; d < kd; ++d) out += (s[d * vd] += k[d] * delta) * q[d];
          expected.out[size_t{t} * shape_.values() + h * vd + c] = out;
        }
      }
    }
    const uint32_t window = shape_.taps - 1;
    for (uint32_t i = 0; i < window; ++i) {
      const int64_t row = int64_t{rows} - window + i;
      for (uint32_t c = 0; c < shape_.channels(); ++c) {
        expected.state.push_back(row >= 0 ? in_.qkv[row * shape_.channels() + c] : 0);
      }
    }
    expected.state.insert(expected.state.end(), memory.begin(), memory.end());
    return expected;
  }

  // Rows first .. of the inputs, as one or several segments.
  std::vector<float> Run(DeviceArray<float>& slots, const std::vector<DeltaSegment>& segments,
                         uint32_t first, uint32_t count) {
    const uint32_t stride = shape_.channels() + 5;
    std::vector<float> rows(size_t{count} * stride);
    for (uint32_t t = 0; t < count; ++t) {
      std::copy_n(in_.qkv.begin() + size_t{first + t} * shape_.channels(), shape_.channels(),
                  rows.begin() + size_t{t} * stride);
    }
    std::vector<uint16_t> rounded;
    for (const float x : rows) rounded.push_back(FloatToBf16(x));
    const auto f32 = OnDevice(rows);
    const auto bf16 = OnDevice(rounded);
    const auto part = [&](const std::vector<float>& all) {
      const auto begin = all.begin() + size_t{first} * shape_.value_heads;
      return OnDevice(std::vector<float>(begin, begin + size_t{count} * shape_.value_heads));
    };
    auto a = part(in_.a), b = part(in_.b);
    const auto conv = OnDevice(weights_.conv), decay_log = OnDevice(weights_.decay_log);
    const auto decay_bias = OnDevice(weights_.decay_bias);
    const auto device_segments = OnDevice(segments);
    auto mixed = Poisoned<float>(size_t{count} * shape_.channels());
    auto out = Poisoned<float>(size_t{count} * shape_.values());
    DeltaStates states = {slots.data(), device_segments.data(),
                          static_cast<uint32_t>(segments.size())};
    if (segments.size() == 1) states = {.slots = slots.data(), .only = segments[0]};
    NeedOk(RunDeltaMix({.shape = shape_,
                        .states = states,
                        .bf16 = bf16_ ? bf16.data() : nullptr,
                        .f32 = bf16_ ? nullptr : f32.data(),
                        .stride = stride,
                        .row_count = count,
                        .conv = conv.data(),
                        .mixed = mixed.data(),
                        .a = a.data(),
                        .b = b.data(),
                        .decay_log = decay_log.data(),
                        .decay_bias = decay_bias.data()},
                       nullptr));
    NeedOk(RunDeltaMemory({.shape = shape_,
                           .states = states,
                           .mixed = mixed.data(),
                           .decay = a.data(),
                           .beta = b.data(),
                           .out = out.data()},
                          nullptr));
    Finish();
    return Host(out);
  }

  void CheckAll(const DeltaShape& shape, uint32_t rows, bool bf16, uint64_t seed) {
    SCOPED_TRACE(std::to_string(shape.key_heads) + " x " + std::to_string(shape.key_dim) + ", " +
                 std::to_string(shape.value_heads) + " x " + std::to_string(shape.value_dim) +
                 ", taps " + std::to_string(shape.taps) + ", rows " + std::to_string(rows) +
                 ", seed " + std::to_string(seed));
    Make(shape, rows, bf16, seed);
    const Expected expected = Reference(rows);
    auto slots = Poisoned<float>(3 * shape.StateFloats());
    const auto whole = Run(slots, {{0, rows, kZeroState, 1}}, 0, rows);
    const auto state = Host(slots);
    Comparison outs("out"), states("state");
    for (size_t i = 0; i < whole.size(); ++i) {
      outs.Check(i / shape.values(), i % shape.values(), whole[i], expected.out[i], 2e-5);
    }
    for (size_t i = 0; i < expected.state.size(); ++i) {
      states.Check(1, i, state[shape.StateFloats() + i], expected.state[i], 1e-4);
    }
    EXPECT_TRUE(std::isnan(state[0]) && std::isnan(state[2 * shape.StateFloats()]))
        << "a slot of somebody else";
    // In pieces of any length, from slot to slot and in place, the same bits.
    std::vector<float> pieces;
    uint32_t first = 0, from = kZeroState, to = 0;
    for (uint32_t count = 1; first < rows; count = count * 2 + 1) {
      const uint32_t piece = std::min(count, rows - first);
      const auto part = Run(slots, {{0, piece, from, to}}, first, piece);
      pieces.insert(pieces.end(), part.begin(), part.end());
      first += piece;
      from = to;
      if (count % 4 == 3) to = 2 - to;
    }
    EXPECT_TRUE(pieces == whole);
    const auto after = Host(slots);
    EXPECT_TRUE(std::equal(after.begin() + from * shape.StateFloats(),
                           after.begin() + (from + 1) * shape.StateFloats(),
                           after.begin() + shape.StateFloats()));
  }

  DeltaShape shape_;
  bool bf16_ = false;
  Weights weights_;
  Inputs in_;
};

TEST_F(GatedDeltaTest, SmallShapes) {
  SKIP_WITHOUT_GPU();
  CheckAll({2, 4, 32, 32, 4}, 29, false, 1);
  CheckAll({2, 4, 32, 32, 4}, 29, true, 2);
  CheckAll({1, 3, 20, 27, 2}, 12, false, 3);
  CheckAll({3, 3, 64, 40, 1}, 9, true, 4);
  CheckAll({1, 2, 200, 128, 8}, 21, false, 5);
}

TEST_F(GatedDeltaTest, ShapeOfQwen3Next) {
  SKIP_WITHOUT_GPU();
  CheckAll({16, 32, 128, 128, 4}, 70, true, 6);
  CheckAll({16, 32, 128, 128, 4}, 3, false, 7);
}

// Sequences in one batch do not see each other.
TEST_F(GatedDeltaTest, SegmentsAreAsAlone) {
  SKIP_WITHOUT_GPU();
  Make({2, 4, 32, 48, 4}, 8, false, 8);
  const uint64_t floats = shape_.StateFloats();
  auto apart = Poisoned<float>(6 * floats), together = Poisoned<float>(6 * floats);
  std::vector<float> expected;
  for (const DeltaSegment segment : {DeltaSegment{0, 3, kZeroState, 1}, {3, 1, kZeroState, 3},
                                     {4, 4, kZeroState, 5}}) {
    const auto part = Run(apart, {{0, segment.row_count, segment.from, segment.to}},
                          segment.first_row, segment.row_count);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  const std::vector<DeltaSegment> segments = {
      {0, 3, kZeroState, 1}, {}, {3, 1, kZeroState, 3}, {4, 4, kZeroState, 5}, {}};
  EXPECT_TRUE(Run(together, segments, 0, 8) == expected);
  const auto a = Host(apart), b = Host(together);
  for (const uint32_t slot : {1u, 3u, 5u}) {
    EXPECT_TRUE(std::equal(a.begin() + slot * floats, a.begin() + (slot + 1) * floats,
                           b.begin() + slot * floats))
        << slot;
  }
}

TEST_F(GatedDeltaTest, OutputIsNormedAndGated) {
  SKIP_WITHOUT_GPU();
  for (const bool bf16 : {false, true}) {
    Make({2, 6, 16, 40, 4}, 7, bf16, 9);
    Random random(10);
    const auto values = NormalValues(random, size_t{7} * shape_.values());
    const auto device_values = OnDevice(values), norm = OnDevice(weights_.norm), z = OnDevice(in_.z);
    std::vector<uint16_t> rounded;
    for (const float x : in_.z) rounded.push_back(FloatToBf16(x));
    const auto z_bf16 = OnDevice(rounded);
    const uint32_t padded = OperandStride(shape_.values());
    auto operand = Poisoned<uint16_t>(size_t{7} * padded);
    auto rows = Poisoned<float>(values.size());
    NeedOk(RunDeltaOutput({.shape = shape_,
                           .values = device_values.data(),
                           .row_count = 7,
                           .z_bf16 = bf16 ? z_bf16.data() : nullptr,
                           .z_f32 = bf16 ? nullptr : z.data(),
                           .z_stride = shape_.values(),
                           .norm = norm.data(),
                           .epsilon = 1e-6f,
                           .operand = bf16 ? operand.data() : nullptr,
                           .rows = bf16 ? nullptr : rows.data()},
                          nullptr));
    Finish();
    const auto in_order = Host(operand);
    const auto floats = Host(rows);
    Comparison compare("output");
    for (uint32_t t = 0; t < 7; ++t) {
      for (uint32_t c = 0; c < padded; ++c) {
        const double found = Bf16ToFloat(in_order[size_t{t} * padded + OperandPosition(c)]);
        if (c >= shape_.values()) {
          if (bf16) compare.Check(t, c, found, 0, 0);
          continue;
        }
        const uint32_t head = c / shape_.value_dim;
        const size_t at = size_t{t} * shape_.values() + c;
        double squares = 0;
        for (uint32_t d = 0; d < shape_.value_dim; ++d) {
          const double x = values[size_t{t} * shape_.values() + head * shape_.value_dim + d];
          squares += x * x;
        }
        const double z_value = in_.z[at];
        const double expected = values[at] / std::sqrt(squares / shape_.value_dim + 1e-6) *
                                weights_.norm[c % shape_.value_dim] * z_value * Sigmoid(z_value);
        compare.Check(t, c, bf16 ? found : floats[at], expected,
                      std::fabs(expected) * (bf16 ? kHalfUlp + 1e-5 : 1e-5) + 1e-12);
      }
    }
  }
}

TEST(GateRowsTest, OfValuesAndOfRows) {
  SKIP_WITHOUT_GPU();
  Random random(11);
  const uint32_t tokens = 5, cols = 300, stride = 310;
  const auto x = NormalValues(random, size_t{tokens} * stride);
  const auto gates = NormalValues(random, size_t{tokens} * (cols + 4), 2);
  const auto device_gates = OnDevice(gates);
  std::vector<uint16_t> operand(size_t{tokens} * OperandStride(cols)), rounded;
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < cols; ++c) {
      operand[size_t{t} * OperandStride(cols) + OperandPosition(c)] =
          FloatToBf16(x[size_t{t} * stride + c]);
    }
  }
  for (const float gate : gates) rounded.push_back(FloatToBf16(gate));
  const auto bf16_gates = OnDevice(rounded);
  auto rows = OnDevice(x);
  auto device_operand = OnDevice(operand);
  NeedOk(RunGateRows({.f32 = rows.data(), .stride = stride, .token_count = tokens, .cols = cols,
                      .gate_f32 = device_gates.data(), .gate_stride = cols + 4, .gate_cols = 1},
                     nullptr));
  NeedOk(RunGateRows({.operand = device_operand.data(), .token_count = tokens, .cols = cols,
                      .gate_bf16 = bf16_gates.data(), .gate_stride = cols + 4, .gate_cols = cols},
                     nullptr));
  Finish();
  const auto by_row = Host(rows);
  const auto by_value = Host(device_operand);
  Comparison compare("gated");
  for (uint32_t t = 0; t < tokens; ++t) {
    for (uint32_t c = 0; c < stride; ++c) {
      const size_t at = size_t{t} * stride + c;
      const double row_gate = c < cols ? Sigmoid(gates[size_t{t} * (cols + 4)]) : 1;
      compare.Check(t, c, by_row[at], x[at] * row_gate, std::fabs(x[at]) * 1e-6);
      if (c >= cols) continue;
      const double expected = RoundBf16(x[at]) * Sigmoid(RoundBf16(gates[size_t{t} * (cols + 4) + c]));
      const uint16_t found = by_value[size_t{t} * OperandStride(cols) + OperandPosition(c)];
      compare.Check(t, c, Bf16ToFloat(found), expected, std::fabs(expected) * (kHalfUlp + 1e-6));
    }
  }
  EXPECT_EQ(RunGateRows({.token_count = 1, .cols = 4, .gate_cols = 2}, nullptr).code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace moraine::gpu
