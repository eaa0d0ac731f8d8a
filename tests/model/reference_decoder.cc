#include "reference_decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moraine {
namespace {

// x / sqrt(mean(x^2) + epsilon) * weight
Vector Normalize(const Vector& x, const std::vector<float>& weight, double epsilon) {
  double squares = 0;
  for (const double value : x) squares += value * value;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + epsilon);
  Vector out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
  return out;
}

// q * cos + rotate_half(q) * sin, where the angle of pair (i, i + d/2) is position * theta^(-2i/d).
Vector Rotate(const Vector& head, double position, double theta) {
  const size_t half = head.size() / 2;
  Vector out(head.size());
  for (size_t i = 0; i < half; ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head.size());
    const double angle = position * std::pow(theta, -exponent);
    out[i] = head[i] * std::cos(angle) - head[i + half] * std::sin(angle);
    out[i + half] = head[i + half] * std::cos(angle) + head[i] * std::sin(angle);
  }
  return out;
}

Vector Project(const TensorMap& tensors, const std::string& role, const Vector& x) {
  Vector y = Multiply(tensors.at(role), x);
  if (const auto bias = tensors.find(role + "_bias"); bias != tensors.end()) {
    for (size_t i = 0; i < y.size(); ++i) y[i] += bias->second[i];
  }
  return y;
}

// The heads of x, each normalised and rotated.
std::vector<Vector> Heads(Vector x, const GqaConfig& a, double epsilon, const TensorMap& tensors,
                          const std::string& norm, double position) {
  if (a.qk_norm == QkNorm::kWholeRow) x = Normalize(x, tensors.at(norm), epsilon);
  std::vector<Vector> heads;
  for (size_t begin = 0; begin < x.size(); begin += a.head_dim) {
    Vector head(x.begin() + static_cast<ptrdiff_t>(begin),
                x.begin() + static_cast<ptrdiff_t>(begin + a.head_dim));
    if (a.qk_norm == QkNorm::kPerHead) head = Normalize(head, tensors.at(norm), epsilon);
    heads.push_back(Rotate(head, position, a.rope.theta));
  }
  return heads;
}

Vector Softmax(Vector scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - best);
  for (double& score : scores) score /= sum;
  return scores;
}

void AddAttention(const GqaConfig& c, double epsilon, const TensorMap& tensors,
                  const std::string& prefix, std::vector<Vector>* hidden) {
  std::vector<std::vector<Vector>> queries, keys;
  std::vector<Vector> values;
  for (size_t t = 0; t < hidden->size(); ++t) {
    const Vector x = Normalize((*hidden)[t], tensors.at(prefix + "norm"), epsilon);
    const double position = static_cast<double>(t);
    queries.push_back(Heads(Project(tensors, prefix + "q", x), c, epsilon, tensors,
                            prefix + "q_norm", position));
    keys.push_back(Heads(Project(tensors, prefix + "k", x), c, epsilon, tensors,
                         prefix + "k_norm", position));
    values.push_back(Project(tensors, prefix + "v", x));
  }
  const size_t group = c.query_heads / c.kv_heads;
  for (size_t t = 0; t < hidden->size(); ++t) {
    const size_t first =
        c.sliding_window == 0 || t < c.sliding_window ? 0 : t + 1 - c.sliding_window;
    Vector joined;
    for (size_t h = 0; h < c.query_heads; ++h) {
      const size_t kv = h / group;
      Vector scores(t + 1 - first);
      for (size_t s = first; s <= t; ++s) {
        scores[s - first] = std::inner_product(queries[t][h].begin(), queries[t][h].end(),
                                       keys[s][kv].begin(), 0.0) /
                    std::sqrt(static_cast<double>(c.head_dim));
      }
      const Vector weights = Softmax(scores);
      for (size_t i = 0; i < c.head_dim; ++i) {
        double sum = 0;
        for (size_t s = first; s <= t; ++s) {
          sum += weights[s - first] * values[s][kv * c.head_dim + i];
        }
        joined.push_back(sum);
      }
    }
    const Vector out = Project(tensors, prefix + "o", joined);
    for (size_t i = 0; i < out.size(); ++i) (*hidden)[t][i] += out[i];
  }
}

Vector MixtureOfExperts(const ModelConfig& c, const TensorMap& tensors, size_t layer,
                        const Vector& x) {
  const std::string prefix = std::to_string(layer) + ".";
  const Vector p = Softmax(Multiply(tensors.at("layers." + prefix + "mlp.router"), x));
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  order.resize(c.top_k);
  double sum = 1;
  if (c.router.normalize) {
    sum = 0;
    for (const size_t e : order) sum += p[e];
  }
  Vector out(x.size());
  for (const size_t e : order) {
    const std::string expert = prefix + std::to_string(e) + ".";
    const Vector y = SwiGlu(tensors.at(expert + "gate"), tensors.at(expert + "up"),
                            tensors.at(expert + "down"), x);
    for (size_t i = 0; i < out.size(); ++i) out[i] += p[e] / sum * y[i];
  }
  return out;
}

}  // namespace

Vector Multiply(const std::vector<float>& w, const Vector& x) {
  Vector y(w.size() / x.size());
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += w[r * x.size() + c] * x[c];
  }
  return y;
}

Vector SwiGlu(const std::vector<float>& gate, const std::vector<float>& up,
              const std::vector<float>& down, const Vector& x) {
  Vector a = Multiply(gate, x);
  const Vector b = Multiply(up, x);
  for (size_t i = 0; i < a.size(); ++i) a[i] = a[i] / (1 + std::exp(-a[i])) * b[i];
  return Multiply(down, a);
}

std::vector<Vector> ReferenceLogits(const ModelConfig& c, const TensorMap& tensors,
                                    std::span<const int32_t> tokens) {
  const std::vector<float>& embedding = tensors.at("embedding");
  std::vector<Vector> hidden;
  for (const int32_t token : tokens) {
    const auto row = embedding.begin() + static_cast<ptrdiff_t>(token) * c.hidden;
    hidden.emplace_back(row, row + c.hidden);
  }
  for (size_t layer = 0; layer < c.layers.size(); ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    AddAttention(std::get<GqaConfig>(c.layers[layer].mixer), c.rms_norm_epsilon, tensors,
                 prefix + "attention.", &hidden);
    const std::string mlp = prefix + "mlp.";
    for (Vector& h : hidden) {
      const Vector x = Normalize(h, tensors.at(mlp + "norm"), c.rms_norm_epsilon);
      const Vector y = c.layers[layer].feed_forward == FeedForwardKind::kMoe
                           ? MixtureOfExperts(c, tensors, layer, x)
                           : SwiGlu(tensors.at(mlp + "gate"), tensors.at(mlp + "up"),
                                    tensors.at(mlp + "down"), x);
      for (size_t i = 0; i < h.size(); ++i) h[i] += y[i];
    }
  }
  std::vector<Vector> logits;
  for (const Vector& h : hidden) {
    const Vector x = Normalize(h, tensors.at("norm"), c.rms_norm_epsilon);
    logits.push_back(Multiply(tensors.at(c.tied_embeddings ? "embedding" : "output"), x));
  }
  return logits;
}

}  // namespace moraine
