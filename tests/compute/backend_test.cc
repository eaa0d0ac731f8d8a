// CpuBackend through its public interface: values, batch invariance, no allocation.
#include "compute/cpu_backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

#include "backend_rigs.h"
#include "compute/e4m3.h"
#include "compute_test_support.h"

namespace {

std::atomic<uint64_t> allocation_count{0};

}  // namespace

// noinline: inlined into one another, GCC takes the pairs for mismatched.
#define NOINLINE __attribute__((noinline))
NOINLINE void* operator new(size_t bytes) {
  allocation_count.fetch_add(1, std::memory_order_relaxed);
  void* p = std::malloc(bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
NOINLINE void* operator new(size_t bytes, std::align_val_t alignment) {
  allocation_count.fetch_add(1, std::memory_order_relaxed);
  const size_t a = static_cast<size_t>(alignment);
  void* p = std::aligned_alloc(a, (bytes + a - 1) / a * a);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
NOINLINE void operator delete(void* p) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, size_t) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
NOINLINE void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace moraine {
namespace {

TEST(MatMul, IsInvariantToThreadsIsaAndBatch) {
  const uint64_t seed = 21;
  Random random(seed);
  for (const Encoding encoding : kAllEncodings) {
    for (int round = 0; round < 4; ++round) {
      const uint32_t rows = 1 + static_cast<uint32_t>(random.Below(300));
      const uint32_t cols = 1 + static_cast<uint32_t>(random.Below(200));
      const uint32_t stride = cols + 3;
      const TestMatrix w(encoding, rows, cols, RandomFloats(random, size_t{rows} * cols, 0.1f));
      const std::vector<float> x = RandomFloats(random, kMaxTokens * stride, 1.0f);
      const std::vector<float> whole = SameOnAllRigs([&](CpuBackend& backend) {
        std::vector<float> y(kMaxTokens * rows);
        backend.MatMul(w.view, x.data(), stride, kMaxTokens, y.data(), rows);
        return y;
      });
      const std::vector<float> parts = SameOnAllRigs([&](CpuBackend& backend) {
        std::vector<float> y(kMaxTokens * rows);
        for (uint32_t t = 0, step = 1; t < kMaxTokens; t += step, ++step) {
          backend.MatMul(w.view, x.data() + t * stride, stride, std::min(step, kMaxTokens - t),
                         y.data() + t * rows, rows);
        }
        return y;
      });
      ASSERT_EQ(std::memcmp(whole.data(), parts.data(), whole.size() * 4), 0)
          << EncodingName(encoding) << " " << rows << "x" << cols << " seed " << seed;
    }
  }
}

TEST(MatMul, ManyEqualsOneByOne) {
  Random random(22);
  const uint32_t cols = 96;
  std::vector<TestMatrix> matrices;
  std::vector<uint32_t> rows = {70, 16, 33};
  const Encoding encodings[] = {Encoding::kQ8, Encoding::kBf16, Encoding::kQ4};
  for (size_t i = 0; i < 3; ++i) {
    matrices.emplace_back(encodings[i], rows[i], cols, RandomFloats(random, rows[i] * cols, 0.1f));
  }
  const std::vector<float> x = RandomFloats(random, 7 * cols, 1.0f);
  const auto run = [&](CpuBackend& backend, bool together) {
    std::vector<float> y(7 * (70 + 16 + 33));
    std::vector<CpuBackend::MatMulTarget> targets;
    float* out = y.data();
    for (size_t i = 0; i < 3; ++i) {
      targets.push_back({matrices[i].view, out, rows[i]});
      out += 7 * rows[i];
    }
    if (together) {
      backend.MatMulMany(targets, x.data(), cols, 7);
    } else {
      for (const auto& target : targets) {
        backend.MatMul(target.w, x.data(), cols, 7, target.y, target.y_stride);
      }
    }
    return y;
  };
  EXPECT_EQ(SameOnAllRigs([&](CpuBackend& b) { return run(b, true); }),
            SameOnAllRigs([&](CpuBackend& b) { return run(b, false); }));
}

// One expert in a record, with its decoded matrices.
struct TestExpert {
  TestExpert(Random& random, const ExpertLayout& layout)
      : record(layout.record_bytes()), view(ViewExpert(layout, record.data())) {
    const size_t count = size_t{layout.hidden} * layout.intermediate;
    for (const MatrixView* w : {&view.gate, &view.up, &view.down}) {
      const Status status = EncodeRows(*w, 0, w->rows, RandomFloats(random, count, 0.1f).data());
      CHECK(status.ok(), status.ToString());
    }
    if (!layout.biases) return;
    for (const auto& [bias, rows] : {std::pair(view.gate_bias, layout.intermediate),
                                     std::pair(view.up_bias, layout.intermediate),
                                     std::pair(view.down_bias, layout.hidden)}) {
      float* const values = const_cast<float*>(bias);
      std::fill_n(values, ExpertLayout::PaddedBias(rows), 0.0f);
      for (uint32_t i = 0; i < rows; ++i) values[i] = random.Normal();
    }
  }
  AlignedArray<std::byte> record;
  ExpertView view;
};

std::vector<double> Product(const MatrixView& w, const std::vector<double>& x,
                            const float* bias = nullptr) {
  std::vector<float> row(w.cols);
  std::vector<double> y(w.rows);
  for (uint32_t r = 0; r < w.rows; ++r) {
    DecodeRow(w, r, row.data());
    if (bias != nullptr) y[r] = bias[r];
    for (uint32_t c = 0; c < w.cols; ++c) y[r] += row[c] * x[c];
  }
  return y;
}

struct ExpertScene {
  ExpertScene(uint64_t seed, Encoding gate_up, Encoding down, uint32_t hidden_size,
              uint32_t intermediate, bool biases = false, ExpertActivation of_experts = {})
      : random(seed),
        layout{gate_up, down, hidden_size, intermediate, biases},
        activation(of_experts),
        hidden(hidden_size) {
    for (int i = 0; i < 6; ++i) experts.emplace_back(random, layout);
    x = RandomFloats(random, kMaxTokens * hidden, 1.0f);
    for (size_t i = 0; i < experts.size(); ++i) {
      std::vector<uint32_t> chosen;
      for (uint32_t t = 0; t < kMaxTokens; ++t) {
        // Expert 0 has every token, expert 5 none, the others some.
        if (i == 0 || (i < 5 && random.Chance(0.3))) chosen.push_back(t);
      }
      tokens.push_back(chosen);
    }
  }
  // Runs the experts [0, 6) with `per_call` tasks a call; results of all experts one behind another.
  std::vector<float> Run(CpuBackend& backend, size_t per_call) const {
    size_t total = 0;
    for (const auto& chosen : tokens) total += chosen.size();
    std::vector<float> output(total * hidden, 7.0f);
    std::vector<ExpertTask> tasks;
    float* out = output.data();
    for (size_t i = 0; i < experts.size(); ++i) {
      tasks.push_back({experts[i].view, tokens[i].data(), static_cast<uint32_t>(tokens[i].size()),
                       out, activation});
      out += tokens[i].size() * hidden;
    }
    backend.SetExpertInput(x.data(), hidden, kMaxTokens, hidden, layout.gate_up);
    for (size_t begin = 0; begin < tasks.size(); begin += per_call) {
      const size_t count = std::min(per_call, tasks.size() - begin);
      backend.RunExperts(std::span(tasks).subspan(begin, count));
    }
    return output;
  }
  Random random;
  ExpertLayout layout;
  ExpertActivation activation;
  uint32_t hidden;
  std::vector<TestExpert> experts;
  std::vector<float> x;
  std::vector<std::vector<uint32_t>> tokens;
};

double Activate(const ExpertActivation& activation, double gate, double up) {
  if (activation.kind == ActivationKind::kSwiGlu) return gate * up / (1 + std::exp(-gate));
  const double limit = activation.limit;
  gate = std::min(gate, limit);
  return gate / (1 + std::exp(-1.702 * gate)) * (std::clamp(up, -limit, limit) + 1);
}

TEST(RunExperts, MatchesDoubleArithmeticAndIsInvariant) {
  struct Case {
    Encoding gate_up, down;
    uint32_t hidden, intermediate;
    bool biases = false;
    ExpertActivation activation = {};
  };
  // 0.7: of gates and ups of deviation 0.8 to 1.3, some are cut.
  constexpr ExpertActivation kClamped = {ActivationKind::kClampedSwiGlu, 0.7f};
  for (const Case c : {Case{Encoding::kBf16, Encoding::kBf16, 70, 40},
                       Case{Encoding::kF32, Encoding::kBf16, 64, 64},
                       Case{Encoding::kQ8, Encoding::kQ8, 128, 96},
                       Case{Encoding::kQ4, Encoding::kQ4, 200, 17},
                       Case{Encoding::kQ4, Encoding::kBf16, 64, 130},
                       Case{Encoding::kBf16, Encoding::kBf16, 70, 40, true},
                       Case{Encoding::kBf16, Encoding::kBf16, 90, 50, true, kClamped},
                       Case{Encoding::kQ8, Encoding::kQ4, 72, 33, true, kClamped}}) {
    const ExpertScene scene(23, c.gate_up, c.down, c.hidden, c.intermediate, c.biases,
                            c.activation);
    const std::vector<float> together =
        SameOnAllRigs([&](CpuBackend& backend) { return scene.Run(backend, 6); });
    const std::vector<float> apart =
        SameOnAllRigs([&](CpuBackend& backend) { return scene.Run(backend, 1); });
    ASSERT_EQ(std::memcmp(together.data(), apart.data(), together.size() * 4), 0);

    // Against double: bf16 and f32 leave float32's rounding, far below 1e-4 of the result's size;
    // an int8 activation errs by up to max/254, max/440 rms, and the maximum of a group is at most
    // sqrt(32) times its rms: 1.3 % at worst in each of gate, up and down; cancellation in the sums
    // can double it.
    const bool quantised = c.gate_up == Encoding::kQ8 || c.gate_up == Encoding::kQ4;
    const double bound = quantised ? 0.05 : 1e-4;
    const float* out = together.data();
    for (size_t e = 0; e < scene.experts.size(); ++e) {
      for (const uint32_t t : scene.tokens[e]) {
        const std::vector<double> x(scene.x.begin() + t * c.hidden,
                                    scene.x.begin() + (t + 1) * c.hidden);
        const ExpertView& w = scene.experts[e].view;
        std::vector<double> gate = Product(w.gate, x, w.gate_bias);
        const std::vector<double> up = Product(w.up, x, w.up_bias);
        for (size_t i = 0; i < gate.size(); ++i) gate[i] = Activate(c.activation, gate[i], up[i]);
        const std::vector<double> expected = Product(w.down, gate, w.down_bias);
        double error = 0, power = 0;
        for (uint32_t i = 0; i < c.hidden; ++i, ++out) {
          error += std::pow(*out - expected[i], 2.0);
          power += std::pow(expected[i], 2.0);
        }
        ASSERT_LE(std::sqrt(error), bound * std::sqrt(power))
            << EncodingName(c.gate_up) << " expert " << e << " token " << t;
      }
    }
  }
}

TEST(RunExperts, MoreRowsThanScratchRunInWaves) {
  // 12 tasks of 40 tokens are 480 rows; scratch has 64.
  const ExpertScene scene(24, Encoding::kQ8, Encoding::kQ8, 64, 64);
  const std::vector<float> result = SameOnAllRigs([&](CpuBackend& backend) {
    std::vector<ExpertTask> tasks;
    std::vector<float> output(12 * kMaxTokens * 64);
    for (uint32_t i = 0; i < 12; ++i) {
      tasks.push_back({scene.experts[0].view, scene.tokens[0].data(), kMaxTokens,
                       output.data() + i * kMaxTokens * 64});
    }
    backend.SetExpertInput(scene.x.data(), 64, kMaxTokens, 64, Encoding::kQ8);
    backend.RunExperts(tasks);
    return output;
  });
  for (uint32_t i = 1; i < 12; ++i) {
    ASSERT_EQ(std::memcmp(result.data(), result.data() + i * kMaxTokens * 64, kMaxTokens * 256), 0);
  }
}

struct AttentionScene {
  AttentionScene(uint64_t seed, AttentionShape attention_shape, uint32_t position_count)
      : random(seed), shape(attention_shape), positions(position_count) {
    q = RandomFloats(random, size_t{positions} * q_stride(), 1.0f);
    keys = RandomFloats(random, size_t{positions} * kv_stride(), 1.0f);
    values = RandomFloats(random, size_t{positions} * kv_stride(), 1.0f);
  }
  // From now on keys and values are kept in this format; `keys` and `values` become what it makes of them.
  void Pack(KvFormat kv_format) {
    format = kv_format;
    const size_t head_bytes = KvHeadBytes(format, shape.head_dim);
    packed_strides = {shape.kv_heads * head_bytes, head_bytes};
    if (format == KvFormat::kFp8) packed_strides.head *= kKvBlockPositions;
    for (auto* floats : {&keys, &values}) {
      std::vector<std::byte>& out = floats == &keys ? packed_keys : packed_values;
      out.assign(blocks_of_positions() * kKvBlockPositions * packed_strides.position,
                 std::byte{0xFF});
      EncodeKv(format, floats->data(), kv_stride(), positions, shape.kv_heads, shape.head_dim,
               {out.data(), packed_strides});
      for (size_t i = 0; i < floats->size(); ++i) {
        const std::byte* head = out.data() + i / shape.head_dim * head_bytes;
        const size_t d = i % shape.head_dim;
        if (format == KvFormat::kFp8) {
          const size_t p = i / kv_stride();
          const std::byte* piece = out.data() + p / 64 * 64 * packed_strides.position +
                                   i / shape.head_dim % shape.kv_heads * packed_strides.head;
          (*floats)[i] = E4m3Value(static_cast<uint32_t>(piece[p % 64 * shape.head_dim + d]),
                                   static_cast<uint32_t>(piece[64 * shape.head_dim + p % 64]));
          continue;
        }
        if (format == KvFormat::kBf16) {
          uint16_t bits;
          std::memcpy(&bits, head + 2 * d, 2);
          (*floats)[i] = Bf16ToFloat(bits);
        } else {
          float scale;
          std::memcpy(&scale, head, 4);
          (*floats)[i] = scale * static_cast<float>(static_cast<int8_t>(head[4 + d]));
        }
      }
    }
  }
  // From now on keys and values are in blocks, in any order, with blocks of NaN between.
  void Scatter() {
    const KvView plain = kv();
    const size_t stride = plain.strides.position, plane = kKvBlockPositions * stride;
    const uint32_t count = blocks_of_positions();
    std::vector<uint32_t> order(count + 3);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) std::swap(order[i], order[random.Below(i + 1)]);
    scattered.assign(order.size() * 2 * plane, std::byte{0xFF});
    for (uint32_t block = 0; block < count; ++block) {
      const size_t from = block * plane;
      const size_t end = format == KvFormat::kF32 ? positions * stride : from + plane;
      std::byte* const to = scattered.data() + order[block] * 2 * plane;
      std::memcpy(to, plain.keys + from, std::min(plane, end - from));
      std::memcpy(to + plane, plain.values + from, std::min(plane, end - from));
    }
    order.resize(count);
    blocks = order;
  }
  KvView kv() const {
    KvView view = Plain();
    if (blocks.empty()) return view;
    const size_t plane = kKvBlockPositions * view.strides.position;
    view.keys = scattered.data();
    view.values = scattered.data() + plane;
    view.blocks = blocks.data();
    view.block_bytes = 2 * plane;
    return view;
  }
  KvView Plain() const {
    if (format != KvFormat::kF32) {
      return {format, packed_keys.data(), packed_values.data(),
              packed_strides};
    }
    return {format, reinterpret_cast<const std::byte*>(keys.data()),
            reinterpret_cast<const std::byte*>(values.data()),
            {kv_stride() * sizeof(float), shape.head_dim * sizeof(float)}};
  }
  uint32_t blocks_of_positions() const {
    return (positions + kKvBlockPositions - 1) / kKvBlockPositions;
  }
  uint32_t q_stride() const { return shape.query_heads * shape.head_dim + 5; }
  uint32_t kv_stride() const { return shape.kv_heads * shape.head_dim; }
  // The last `count` tokens, `chunk` at a time.
  std::vector<float> Run(CpuBackend& backend, uint32_t count, uint32_t chunk) const {
    const uint32_t out_stride = shape.query_heads * shape.head_dim;
    std::vector<float> out(size_t{count} * out_stride);
    for (uint32_t t = 0; t < count; t += chunk) {
      const uint32_t position = positions - count + t;
      AttentionShape with_sinks = shape;
      if (!sinks.empty()) with_sinks.sinks = sinks.data();
      backend.Attention(with_sinks, q.data() + size_t{position} * q_stride(), q_stride(), kv(),
                        position, std::min(chunk, count - t), out.data() + size_t{t} * out_stride,
                        out_stride);
    }
    return out;
  }
  // In double. `bound`: what float32 may err by. A score is one chain of head_dim fused
  // multiply-adds (Higham, Accuracy and Stability, 3.1) of a query rounded twice, then a difference: off
  // by (head_dim + 4) eps scale sum|q k|. A weight is off by that and 3 eps of the power, relatively, and
  // so is their sum; the chain over n positions adds n eps, corrections and the merging of splits 4 a block.
  std::vector<double> Naive(uint32_t position, uint32_t head, double* bound) const {
    const uint32_t dim = shape.head_dim;
    const uint32_t kv_head = head / (shape.query_heads / shape.kv_heads);
    const uint32_t begin = shape.sliding_window != 0 && position + 1 > shape.sliding_window
                               ? position + 1 - shape.sliding_window
                               : 0;
    std::vector<double> out(dim), scores(position + 1);
    double sum = 0, largest = -1e300, magnitude = 0, largest_value = 0;
    for (uint32_t p = begin; p <= position; ++p) {
      double absolute = 0;
      for (uint32_t d = 0; d < dim; ++d) {
        const double term = double{q[size_t{position} * q_stride() + head * dim + d]} *
                            keys[size_t{p} * kv_stride() + kv_head * dim + d] * shape.scale;
        scores[p] += term;
        absolute += std::fabs(term);
      }
      largest = std::max(largest, scores[p]);
      magnitude = std::max(magnitude, absolute);
    }
    if (!sinks.empty()) {
      largest = std::max(largest, double{sinks[head]});
      sum = std::exp(sinks[head] - largest);
    }
    for (uint32_t p = begin; p <= position; ++p) {
      const double weight = std::exp(scores[p] - largest);
      sum += weight;
      for (uint32_t d = 0; d < dim; ++d) {
        const double value = values[size_t{p} * kv_stride() + kv_head * dim + d];
        out[d] += weight * value;
        largest_value = std::max(largest_value, std::fabs(value));
      }
    }
    for (double& value : out) value /= sum;
    const double weight_error = ((dim + 4) * magnitude + 3) * kEpsilon;
    const double steps = (position + 1 - begin) * (1 + 4.0 / 64) + 12;
    *bound = (2 * weight_error + steps * kEpsilon) * largest_value;
    return out;
  }
  Random random;
  AttentionShape shape;
  uint32_t positions;
  std::vector<float> q, keys, values, sinks;
  KvFormat format = KvFormat::kF32;
  std::vector<std::byte> packed_keys, packed_values;
  KvStrides packed_strides;
  std::vector<std::byte> scattered;
  std::vector<uint32_t> blocks;
};

TEST(Attention, MatchesDoubleArithmeticAndIsInvariantToChunks) {
  struct Case {
    AttentionShape shape;
    uint32_t positions, count;
  };
  for (const Case c : {Case{{4, 2, 64, 0.125f, 0}, 100, 40}, Case{{6, 1, 20, 0.3f, 0}, 70, 40},
                       Case{{2, 2, 32, 0.2f, 0}, 1300, 12}, Case{{4, 1, 16, 0.25f, 45}, 600, 40},
                       Case{{2, 1, 128, 0.09f, 700}, 1700, 7}, Case{{1, 1, 7, 1.0f, 0}, 40, 40},
                       // Rows of several tokens in one tile, with windows that end inside it.
                       Case{{2, 2, 24, 0.2f, 30}, 530, 40}, Case{{16, 1, 33, 0.2f, 100}, 560, 40},
                       // More query heads than a call of the kernel takes; heads that are not a
                       // multiple of a tile; one dimension; scores to 500.
                       Case{{150, 1, 8, 0.3f, 0}, 80, 20}, Case{{14, 2, 96, 0.1f, 0}, 200, 40},
                       Case{{1, 1, 1, 30.0f, 0}, 600, 40}, Case{{5, 1, 1000, 0.03f, 0}, 70, 9}}) {
    const AttentionScene scene(25, c.shape, c.positions);
    const std::vector<float> whole = SameOnAllRigs(
        [&](CpuBackend& backend) { return scene.Run(backend, c.count, c.count); });
    for (const uint32_t chunk : {1u, 3u, 16u}) {
      const std::vector<float> parts =
          SameOnAllRigs([&](CpuBackend& backend) { return scene.Run(backend, c.count, chunk); });
      ASSERT_EQ(std::memcmp(whole.data(), parts.data(), whole.size() * 4), 0) << chunk;
    }
    const uint32_t dim = c.shape.head_dim;
    for (uint32_t t = 0; t < c.count; ++t) {
      for (uint32_t head = 0; head < c.shape.query_heads; ++head) {
        double bound = 0;
        const std::vector<double> expected = scene.Naive(c.positions - c.count + t, head, &bound);
        for (uint32_t d = 0; d < dim; ++d) {
          ASSERT_NEAR(whole[(t * c.shape.query_heads + head) * dim + d], expected[d], bound)
              << "token " << t << " head " << head;
        }
      }
    }
  }
}

TEST(Attention, RandomShapesEqualTheScalarBits) {
  const uint64_t seed = 41;
  Random random(seed);
  Rig scalar(Isa::kScalar, 1);
  for (int round = 0; round < 24; ++round) {
    const uint32_t kv_heads = 1 + static_cast<uint32_t>(random.Below(3));
    AttentionShape shape;
    shape.kv_heads = kv_heads;
    shape.query_heads = kv_heads * (1 + static_cast<uint32_t>(random.Below(16)));
    shape.head_dim = 1 + static_cast<uint32_t>(random.Below(140));
    shape.scale = 0.01f + 0.5f * static_cast<float>(random.Uniform());
    const uint32_t positions = 40 + static_cast<uint32_t>(random.Below(600));
    if (random.Chance(0.5)) shape.sliding_window = 1 + static_cast<uint32_t>(random.Below(positions));
    AttentionScene scene(seed + static_cast<uint64_t>(round), shape, positions);
    if (round % 2 == 1) scene.sinks = RandomFloats(random, shape.query_heads, 3.0f);
    constexpr KvFormat kPacked[] = {KvFormat::kBf16, KvFormat::kQ8, KvFormat::kFp8};
    if (round % 4 != 0) scene.Pack(kPacked[round % 4 - 1]);
    const uint32_t count = 1 + static_cast<uint32_t>(random.Below(kMaxTokens));
    const std::vector<float> expected = scene.Run(scalar.backend, count, count);
    if (round % 5 != 0) scene.Scatter();
    for (const Isa isa : SupportedIsas()) {
      Rig rig(isa, 1 + static_cast<int>(random.Below(4)));
      const uint32_t chunk = 1 + static_cast<uint32_t>(random.Below(count));
      const std::vector<float> out = scene.Run(rig.backend, count, chunk);
      ASSERT_EQ(std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)), 0)
          << IsaName(isa) << " round " << round << " chunk " << chunk << " seed " << seed;
    }
    double bound = 0;
    const std::vector<double> naive = scene.Naive(positions - 1, shape.query_heads - 1, &bound);
    for (uint32_t d = 0; d < shape.head_dim; ++d) {
      ASSERT_NEAR(expected[expected.size() - shape.head_dim + d], naive[d], bound)
          << "round " << round << " seed " << seed;
    }
  }
}

// A sink far above all scores leaves nothing, one far below changes nothing, and none is NaN.
TEST(Attention, ExtremeSinks) {
  AttentionScene scene(47, {3, 1, 16, 0.2f, 0}, 30);
  Rig rig(Isa::kScalar, 1);
  const std::vector<float> plain = scene.Run(rig.backend, 30, 30);
  scene.sinks = {1e30f, -1e30f, 0};
  const std::vector<float> out = scene.Run(rig.backend, 30, 30);
  for (uint32_t i = 0; i < out.size(); ++i) {
    const uint32_t head = i / 16 % 3;
    const float expected[] = {0, plain[i], out[i]};
    EXPECT_EQ(out[i], expected[head]);
    EXPECT_LE(std::abs(out[i]), std::abs(plain[i]));
  }
}

// A token is computed in the same tile and block as later ones, and with a window as earlier ones: what
// it must not see must not reach it even as zero times infinity.
TEST(Attention, WhatIsMaskedIsNotTouched) {
  for (const AttentionShape shape : {AttentionShape{2, 2, 16, 0.2f, 0}, AttentionShape{8, 1, 20, 0.2f, 0},
                                     AttentionShape{3, 1, 32, 0.2f, 10}}) {
    const uint32_t positions = 100, count = 40, bad = 80;
    const AttentionScene clean(42, shape, positions);
    AttentionScene poisoned = clean;
    for (uint32_t i = 0; i < clean.kv_stride(); ++i) {
      poisoned.keys[bad * clean.kv_stride() + i] = std::nanf("");
      poisoned.values[bad * clean.kv_stride() + i] = std::numeric_limits<float>::infinity();
    }
    const auto run = [&](const AttentionScene& scene) {
      return SameOnAllRigs([&](CpuBackend& backend) { return scene.Run(backend, count, count); });
    };
    const std::vector<float> expected = run(clean);
    for (const Isa isa : SupportedIsas()) {
      Rig rig(isa, 2);
      const std::vector<float> out = poisoned.Run(rig.backend, count, count);
      const uint32_t width = shape.query_heads * shape.head_dim;
      for (uint32_t i = 0; i < out.size(); ++i) {
        const uint32_t position = positions - count + i / width;
        const bool sees = position >= bad &&
                          (shape.sliding_window == 0 || position < bad + shape.sliding_window);
        if (sees) {
          ASSERT_TRUE(std::isnan(out[i])) << IsaName(isa) << " position " << position;
        } else {
          ASSERT_EQ(out[i], expected[i]) << IsaName(isa) << " position " << position;
        }
      }
    }
  }
}

// Unpacking is exact in float32, so a packed cache gives what its own values give unpacked, to the bit.
TEST(Attention, PackedCachesComputeWhatTheirValuesDo) {
  for (const KvFormat format : {KvFormat::kBf16, KvFormat::kQ8, KvFormat::kFp8}) {
    for (const AttentionShape shape : {AttentionShape{4, 2, 64, 0.125f, 0}, AttentionShape{6, 1, 20, 0.3f, 0},
                                       AttentionShape{8, 1, 256, 0.06f, 300}, AttentionShape{1, 1, 7, 1.0f, 0}}) {
      AttentionScene packed(31, shape, 700);
      packed.Pack(format);
      AttentionScene floats = packed;
      floats.format = KvFormat::kF32;
      for (const uint32_t chunk : {1u, 13u}) {
        const auto run = [&](const AttentionScene& scene) {
          return SameOnAllRigs([&](CpuBackend& backend) { return scene.Run(backend, 13, chunk); });
        };
        const std::vector<float> a = run(packed), b = run(floats);
        ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0)
            << KvFormatName(format) << " head_dim " << shape.head_dim << " chunk " << chunk;
      }
    }
  }
}

TEST(Elementwise, LargeBatchesEqualSmallOnes) {
  Random random(26);
  const uint32_t rows = 40, cols = 2000;  // over the threshold for going parallel
  const std::vector<float> x = RandomFloats(random, rows * cols, 1.0f);
  const std::vector<float> y = RandomFloats(random, rows * cols, 1.0f);
  const auto run = [&](CpuBackend& backend, uint32_t step) {
    std::vector<float> out(x);
    for (uint32_t row = 0; row < rows; row += step) {
      float* rows_of_out = out.data() + size_t{row} * cols;
      backend.RmsNorm(rows_of_out, cols, y.data(), 1e-5f, step, cols, rows_of_out, cols);
      backend.Rope(rows_of_out, cols, step, 10, 200, 100, y.data() + row * 50,
                   y.data() + 5000 + row * 50);
      backend.Add(rows_of_out, cols, y.data() + size_t{row} * cols, cols, step, cols);
      backend.SiluMul(rows_of_out, y.data() + size_t{row} * cols, size_t{step} * cols);
    }
    return out;
  };
  EXPECT_EQ(SameOnAllRigs([&](CpuBackend& b) { return run(b, 1); }),
            SameOnAllRigs([&](CpuBackend& b) { return run(b, 40); }));
  Rig rig(Isa::kScalar, 1);
  std::vector<float> head = {1, 2, 3, 4, 5, 6};
  const float cos[] = {0.5f, 0.25f}, sin[] = {2.0f, 3.0f};
  rig.backend.Rope(head.data(), 6, 1, 1, 6, 4, cos, sin);  // the last two stay
  EXPECT_EQ(head, (std::vector<float>{0.5f - 6, 0.5f - 12, 1.5f + 2, 1 + 6, 5, 6}));
}

TEST(Allocation, NoCallAllocatesAfterConstruction) {
  for (const Isa isa : SupportedIsas()) {
    Rig rig(isa, 2);
    const ExpertScene scene(27, Encoding::kQ4, Encoding::kQ8, 128, 96);
    const AttentionScene attention(28, {4, 1, 32, 0.2f, 0}, 1200);
    std::vector<ExpertTask> tasks;
    std::vector<float> out(6 * kMaxTokens * 256);
    for (uint32_t i = 0; i < 6; ++i) {
      tasks.push_back({scene.experts[i].view, scene.tokens[0].data(), kMaxTokens,
                       out.data() + i * kMaxTokens * 128});
    }
    const uint64_t before = allocation_count.load();
    for (const uint32_t tokens : {1u, kMaxTokens}) {
      rig.backend.MatMul(scene.experts[0].view.down, scene.x.data(), 128, tokens, out.data(), 128);
      rig.backend.SetExpertInput(scene.x.data(), 128, tokens, 128, Encoding::kQ4);
      for (ExpertTask& task : tasks) task.token_count = tokens;
      rig.backend.RunExperts(tasks);
      rig.backend.Attention(attention.shape, attention.q.data(), attention.q_stride(),
                            attention.kv(), 1200 - tokens, tokens, out.data(), 128);
      rig.backend.RmsNorm(out.data(), 128, scene.x.data(), 1e-6f, tokens, 128, out.data(), 128);
      rig.backend.SiluMul(out.data(), scene.x.data(), tokens * 128);
    }
    EXPECT_EQ(allocation_count.load(), before) << IsaName(isa);
  }
}

TEST(ChooseIsa, OverridesAndErrors) {
  ASSERT_TRUE(ChooseIsa("scalar").ok());
  EXPECT_EQ(ChooseIsa("scalar").value(), Isa::kScalar);
  EXPECT_EQ(ChooseIsa("sse9").status().code(), StatusCode::kInvalidArgument);
  for (const Isa isa : kAllIsas) {
    const Result<Isa> chosen = ChooseIsa(IsaName(isa));
    ASSERT_EQ(chosen.ok(), IsaSupported(isa));
    if (chosen.ok()) {
      EXPECT_EQ(*chosen, isa);
    } else {
      EXPECT_EQ(chosen.status().code(), StatusCode::kUnsupported);
    }
  }
  setenv("MORAINE_ISA", "scalar", 1);
  EXPECT_EQ(ChooseIsa().value(), Isa::kScalar);
  unsetenv("MORAINE_ISA");
  EXPECT_EQ(ChooseIsa().value(), BestIsa());
}

}  // namespace
}  // namespace moraine
