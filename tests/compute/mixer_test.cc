// What MLA and gated linear attention ask of the backend: stacked products, attention over a
// latent, the short convolution and the gated delta rule.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend_rigs.h"
#include "compute/kv_format.h"

namespace moraine {
namespace {

uint32_t From(Random& random, uint32_t least, uint32_t most) {
  return least + static_cast<uint32_t>(random.Below(most - least + 1));
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b,
                    const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << what;
}

TEST(MatMulStacked, EqualsTheProductsOneByOne) {
  const uint64_t seed = 61;
  Random random(seed);
  for (const Encoding encoding : kAllEncodings) {
    for (int round = 0; round < 4; ++round) {
      const uint32_t count = From(random, 1, 9), rows = From(random, 1, 90);
      const uint32_t cols = From(random, 1, 200), tokens = From(random, 1, kMaxTokens);
      const uint64_t bytes = MatrixBytes(encoding, rows, cols);
      AlignedArray<std::byte> data(count * bytes);
      MatrixStack stack{MatrixView::Plain(data.data(), encoding, rows, cols), count, bytes};
      for (uint32_t p = 0; p < count; ++p) {
        const std::vector<float> values = RandomFloats(random, size_t{rows} * cols, 0.1f);
        ASSERT_TRUE(EncodeRows(stack.part(p), 0, rows, values.data()).ok());
      }
      // Parts with a gap between them, as a head's dimensions without rotation have.
      const size_t x_part = cols + 5, x_stride = count * x_part + 3;
      const size_t y_part = rows + 2, y_stride = count * y_part + 1;
      const std::vector<float> x = RandomFloats(random, tokens * x_stride, 1.0f);
      const auto run = [&](CpuBackend& backend, uint32_t chunk) {
        std::vector<float> y(tokens * y_stride, 7.0f);
        for (uint32_t t = 0; t < tokens; t += chunk) {
          backend.MatMulStacked({stack, x.data() + t * x_stride, x_stride, x_part,
                                 std::min(chunk, tokens - t), y.data() + t * y_stride, y_stride,
                                 y_part});
        }
        return y;
      };
      const std::string what = std::string(EncodingName(encoding)) + " " + std::to_string(count) +
                               "x" + std::to_string(rows) + "x" + std::to_string(cols) + ", " +
                               std::to_string(tokens) + " tokens, seed " + std::to_string(seed);
      const std::vector<float> one_by_one = SameOnAllRigs([&](CpuBackend& backend) {
        std::vector<float> y(tokens * y_stride, 7.0f);
        for (uint32_t p = 0; p < count; ++p) {
          backend.MatMul(stack.part(p), x.data() + p * x_part, x_stride, tokens,
                         y.data() + p * y_part, y_stride);
        }
        return y;
      });
      ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return run(b, tokens); }), one_by_one,
                     what);
      ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return run(b, 3); }), one_by_one, what);
    }
  }
}

// More tokens than a task of the stack takes.
TEST(MatMulStacked, ManyTokens) {
  Random random(62);
  const uint32_t count = 2, rows = 40, cols = 64, tokens = 300;
  for (const Encoding encoding : {Encoding::kF32, Encoding::kQ8}) {
    const uint64_t bytes = MatrixBytes(encoding, rows, cols);
    AlignedArray<std::byte> data(count * bytes);
    const MatrixStack stack{MatrixView::Plain(data.data(), encoding, rows, cols), count, bytes};
    for (uint32_t p = 0; p < count; ++p) {
      const std::vector<float> values = RandomFloats(random, rows * cols, 0.1f);
      ASSERT_TRUE(EncodeRows(stack.part(p), 0, rows, values.data()).ok());
    }
    const std::vector<float> x = RandomFloats(random, tokens * count * cols, 1.0f);
    const auto run = [&](CpuBackend& backend, uint32_t chunk) {
      std::vector<float> y(tokens * count * rows);
      for (uint32_t t = 0; t < tokens; t += chunk) {
        backend.MatMulStacked({stack, x.data() + t * count * cols, count * cols, cols,
                               std::min(chunk, tokens - t), y.data() + t * count * rows,
                               count * rows, rows});
      }
      return y;
    };
    ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return run(b, tokens); }),
                   SameOnAllRigs([&](CpuBackend& b) { return run(b, 1); }), EncodingName(encoding));
  }
}

// One latent for all heads: keys of head_dim, of which the first value_dim are the values.
struct LatentScene {
  LatentScene(uint64_t seed, AttentionShape attention_shape, uint32_t position_count,
              KvFormat kv_format)
      : shape(attention_shape), positions(position_count), format(kv_format) {
    Random random(seed);
    q = RandomFloats(random, size_t{positions} * shape.query_heads * shape.head_dim, 1.0f);
    const std::vector<float> x = RandomFloats(random, size_t{positions} * shape.head_dim, 1.0f);
    const size_t bytes = KvHeadBytes(format, shape.head_dim);
    latents = AlignedArray<std::byte>(positions * bytes);
    EncodeKv(format, x.data(), shape.head_dim, positions, 1, shape.head_dim,
             {latents.data(), {bytes, 0}});
    if (format == KvFormat::kF32) floats = x;
  }
  std::vector<float> Run(CpuBackend& backend, uint32_t value_dim, uint32_t chunk) const {
    AttentionShape with = shape;
    with.value_dim = value_dim;
    const uint32_t width = value_dim == 0 ? shape.head_dim : value_dim;
    const size_t out_stride = size_t{shape.query_heads} * width;
    const size_t q_stride = size_t{shape.query_heads} * shape.head_dim;
    const KvView kv = {format, latents.data(), latents.data(),
                       {KvHeadBytes(format, shape.head_dim), 0}};
    std::vector<float> out(positions * out_stride);
    for (uint32_t t = 0; t < positions; t += chunk) {
      backend.Attention(with, q.data() + t * q_stride, q_stride, kv, t,
                        std::min(chunk, positions - t), out.data() + t * out_stride, out_stride);
    }
    return out;
  }
  AttentionShape shape;
  uint32_t positions;
  KvFormat format;
  std::vector<float> q, floats;
  AlignedArray<std::byte> latents;
};

// The output is that of attention whose values are as long as its keys (which backend_test compares
// with double arithmetic), without the end of it.
TEST(LatentAttention, IsAttentionWithoutTheRotatedPart) {
  const uint64_t seed = 63;
  Random random(seed);
  for (int round = 0; round < 8; ++round) {
    const KvFormat format = static_cast<KvFormat>(round % 3);
    AttentionShape shape{.query_heads = From(random, 1, 40), .kv_heads = 1};
    shape.head_dim = From(random, 2, 150);
    shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    const uint32_t value_dim = From(random, 1, shape.head_dim);
    const LatentScene scene(seed + round, shape, From(random, 1, 90), format);
    const std::vector<float> whole =
        SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, 0, scene.positions); });
    std::vector<float> expected;
    for (size_t row = 0; row < whole.size(); row += shape.head_dim) {
      const float* values = whole.data() + row;
      expected.insert(expected.end(), values, values + value_dim);
    }
    const std::string what = "round " + std::to_string(round) + ", seed " + std::to_string(seed);
    for (const uint32_t chunk : {scene.positions, 1u, 13u}) {
      ExpectSameBits(
          SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, value_dim, chunk); }), expected,
          what + ", chunks of " + std::to_string(chunk));
    }
  }
}

// DeepSeek-V3's dimensions: more heads than a unit of attention takes at once.
TEST(LatentAttention, ManyHeadsAndSplits) {
  AttentionShape shape{.query_heads = 128, .kv_heads = 1, .head_dim = 576};
  shape.scale = 0.04f;
  const LatentScene scene(64, shape, 3, KvFormat::kF32);
  const uint32_t value_dim = 512;
  const std::vector<float> out =
      SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, value_dim, 3); });
  for (uint32_t head = 0; head < shape.query_heads; head += 9) {
    double scores[3], largest = -1e300, sum = 0;
    for (uint32_t p = 0; p < 3; ++p) {
      scores[p] = 0;
      for (uint32_t d = 0; d < shape.head_dim; ++d) {
        scores[p] += double{scene.q[(2 * shape.query_heads + head) * shape.head_dim + d]} *
                     scene.floats[p * shape.head_dim + d] * shape.scale;
      }
      largest = std::max(largest, scores[p]);
    }
    for (double& score : scores) sum += score = std::exp(score - largest);
    for (uint32_t d = 0; d < value_dim; d += 31) {
      double expected = 0;
      for (uint32_t p = 0; p < 3; ++p) {
        expected += scores[p] / sum * scene.floats[p * shape.head_dim + d];
      }
      // A score is a chain of 576 products of about 0.04 each: off by at most 580 eps * 576 * 0.04
      // (a mean of |q k| is under 1); weights twice that relatively, values under 5.
      const double bound = 2 * 580 * kEpsilon * 576 * 0.04 * 5;
      ASSERT_NEAR(out[(2 * shape.query_heads + head) * value_dim + d], expected, bound);
    }
  }
}

TEST(SigmoidMul, MatchesDouble) {
  std::vector<float> gate;
  for (float x = -90; x < 90; x += 0.0137f) gate.push_back(x);
  for (const float x : {0.0f, -0.0f, 1e-40f, -1000.0f, 1000.0f, 2e38f, -2e38f}) gate.push_back(x);
  const std::vector<float> result = SameOnAllRigs([&](CpuBackend& backend) {
    std::vector<float> x(gate.size(), 1.5f);
    backend.SigmoidMul(gate.data(), x.data(), x.size());
    return x;
  });
  for (size_t i = 0; i < gate.size(); ++i) {
    const double expected = 1.5 / (1 + std::exp(-double{gate[i]}));
    // As SiluMul: 7 eps; below -88 exp is held at e^88.
    const double floor = gate[i] < -87 ? 1.5 / std::exp(87.9) : 1e-44;
    ASSERT_NEAR(result[i], expected, 8 * kEpsilon * expected + floor) << gate[i];
  }
}

struct ConvScene {
  ConvScene(Random& random)
      : taps(From(random, 1, 5)), channels(From(random, 1, 4500)), tokens(From(random, 1, 20)),
        stride(channels + 3) {
    x = RandomFloats(random, (taps - 1 + tokens) * stride, 1.0f);
    weights = RandomFloats(random, size_t{taps} * channels, 0.5f);
  }
  std::vector<float> Run(CpuBackend& backend, uint32_t chunk) const {
    std::vector<float> out(size_t{tokens} * channels);
    for (uint32_t t = 0; t < tokens; t += chunk) {
      backend.CausalConv({.x = x.data() + (taps - 1 + t) * stride,
                          .x_stride = stride,
                          .token_count = std::min(chunk, tokens - t),
                          .channels = channels,
                          .taps = taps,
                          .weights = weights.data(),
                          .out = out.data() + size_t{t} * channels,
                          .out_stride = channels});
    }
    return out;
  }
  uint32_t taps, channels, tokens;
  size_t stride;
  std::vector<float> x, weights;  // x: with the rows before the first token
};

TEST(CausalConv, MatchesDoubleAndIsInvariantToChunks) {
  const uint64_t seed = 65;
  Random random(seed);
  for (int round = 0; round < 8; ++round) {
    const ConvScene scene(random);
    const std::vector<float> out =
        SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, scene.tokens); });
    for (const uint32_t chunk : {1u, 2u, 7u}) {
      ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, chunk); }), out,
                     "round " + std::to_string(round) + ", seed " + std::to_string(seed));
    }
    for (uint32_t t = 0; t < scene.tokens; ++t) {
      for (uint32_t c = 0; c < scene.channels; ++c) {
        double sum = 0, absolute = 0;
        for (uint32_t i = 0; i < scene.taps; ++i) {
          const double term = double{scene.weights[size_t{i} * scene.channels + c]} *
                              scene.x[(t + i) * scene.stride + c];
          sum += term;
          absolute += std::fabs(term);
        }
        const double expected = sum / (1 + std::exp(-sum));
        // The chain errs by taps eps; silu's slope is at most 1.1; then 7 eps of its own.
        const double bound = (1.1 * scene.taps * absolute + 8 * std::fabs(expected)) * kEpsilon;
        ASSERT_NEAR(out[size_t{t} * scene.channels + c], expected, bound + 1e-40)
            << "seed " << seed;
      }
    }
  }
}

struct DeltaScene {
  DeltaScene(Random& random, const GatedDeltaShape& delta_shape, uint32_t token_count)
      : shape(delta_shape), tokens(token_count) {
    const size_t keys = size_t{shape.key_heads} * shape.key_dim;
    stride = 2 * keys + size_t{shape.value_heads} * shape.value_dim + 2;
    mixed = RandomFloats(random, tokens * stride, 1.0f);
    for (uint32_t t = 0; t < tokens; ++t) {  // q and k have length 1
      for (uint32_t head = 0; head < 2 * shape.key_heads; ++head) {
        float* vector = mixed.data() + t * stride + size_t{head} * shape.key_dim;
        double sum = 0;
        for (uint32_t i = 0; i < shape.key_dim; ++i) sum += double{vector[i]} * vector[i];
        for (uint32_t i = 0; i < shape.key_dim; ++i) {
          vector[i] = static_cast<float>(vector[i] / std::sqrt(sum));
        }
      }
    }
    for (uint32_t i = 0; i < tokens * shape.value_heads; ++i) {
      decay.push_back(static_cast<float>(random.Below(1001)) / 1000);
      beta.push_back(static_cast<float>(random.Below(1001)) / 1000);
    }
  }
  // Outputs, then the state that is left. In place, or into another buffer chunk by chunk.
  std::vector<float> Run(CpuBackend& backend, uint32_t chunk, bool in_place) const {
    const size_t keys = size_t{shape.key_heads} * shape.key_dim;
    const size_t values = size_t{shape.value_heads} * shape.value_dim;
    std::vector<float> out(tokens * values);
    std::vector<float> state(shape.state_floats()), other(shape.state_floats(), 9.0f);
    for (uint32_t t = 0; t < tokens; t += chunk) {
      const float* row = mixed.data() + t * stride;
      backend.GatedDelta({.shape = shape,
                          .q = row,
                          .k = row + keys,
                          .v = row + 2 * keys,
                          .stride = stride,
                          .decay = decay.data() + t * shape.value_heads,
                          .beta = beta.data() + t * shape.value_heads,
                          .token_count = std::min(chunk, tokens - t),
                          .state = state.data(),
                          .new_state = in_place ? state.data() : other.data(),
                          .out = out.data() + t * values,
                          .out_stride = values});
      if (!in_place) std::swap(state, other);
    }
    out.insert(out.end(), state.begin(), state.end());
    return out;
  }
  // One column of one value head, in double, against `out`.
  void Check(uint32_t head, uint32_t column, const std::vector<float>& out) const {
    const uint32_t dim = shape.key_dim;
    const size_t keys = size_t{shape.key_heads} * dim;
    const size_t key = size_t{head / (shape.value_heads / shape.key_heads)} * dim;
    const size_t value = size_t{head} * shape.value_dim + column;
    std::vector<double> state(dim);
    // The 2-norm of the state's error. A step multiplies it by at most 1 (decay (I - beta k k^T),
    // k of length 1) and adds: of recalling, a chain of dim / 2 + 1, that many eps of the column's
    // length; of delta and the new state's two roundings 3 and 2 eps more.
    double error = 0;
    for (uint32_t t = 0; t < tokens; ++t) {
      const float* row = mixed.data() + t * stride;
      const double d = decay[t * shape.value_heads + head], b = beta[t * shape.value_heads + head];
      double recalled = 0, length = 0, v = row[2 * keys + value], expected = 0;
      for (uint32_t i = 0; i < dim; ++i) {
        recalled += row[keys + key + i] * state[i] * d;
        length += state[i] * state[i];
      }
      const double delta = b * (v - recalled);
      double new_length = 0;
      for (uint32_t i = 0; i < dim; ++i) {
        state[i] = d * state[i] + row[keys + key + i] * delta;
        new_length += state[i] * state[i];
        expected += state[i] * row[key + i];
      }
      const double longest = std::sqrt(std::max(length, new_length));
      error += kEpsilon * ((dim / 2.0 + 8) * longest + 5 * std::fabs(v)) + 1e-40;
      const double bound = error + kEpsilon * (dim / 2.0 + 2) * longest;
      const size_t values = size_t{shape.value_heads} * shape.value_dim;
      ASSERT_NEAR(out[t * values + value], expected, 1.01 * bound)
          << "head " << head << " column " << column << " token " << t;
    }
  }
  GatedDeltaShape shape;
  uint32_t tokens;
  size_t stride;
  std::vector<float> mixed, decay, beta;
};

TEST(GatedDelta, MatchesDoubleAndIsInvariantToChunks) {
  const uint64_t seed = 66;
  Random random(seed);
  for (int round = 0; round < 10; ++round) {
    GatedDeltaShape shape;
    shape.key_heads = From(random, 1, 3);
    shape.value_heads = shape.key_heads * From(random, 1, 3);
    shape.key_dim = From(random, 1, 70);
    shape.value_dim = From(random, 1, 70);
    const DeltaScene scene(random, shape, From(random, 1, 24));
    const std::vector<float> out =
        SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, scene.tokens, false); });
    const std::string what = "round " + std::to_string(round) + ", seed " + std::to_string(seed);
    for (const uint32_t chunk : {1u, 5u}) {
      ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, chunk, false); }), out,
                     what);
    }
    ExpectSameBits(SameOnAllRigs([&](CpuBackend& b) { return scene.Run(b, 7, true); }), out, what);
    for (uint32_t head = 0; head < shape.value_heads; ++head) {
      for (uint32_t column = 0; column < shape.value_dim; ++column) {
        scene.Check(head, column, out);
        if (HasFatalFailure()) FAIL() << what;
      }
    }
  }
}

}  // namespace
}  // namespace moraine
