// The ways in which checkpoints keep routed experts give the same records: each expert's matrices alone,
// gate and up of all in one tensor in halves or in turns, rows or columns, with biases.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "compute/encode.h"
#include "engine/import_plan.h"
#include "model/config.h"
#include "model/weights.h"

namespace moraine {
namespace {

// Tensors of float32 in memory.
class MemoryCheckpoint final : public Checkpoint {
 public:
  explicit MemoryCheckpoint(std::string config) : config_(std::move(config)) {
    identity_.description = "memory";
  }
  void Add(const std::string& name, std::vector<uint64_t> shape, std::vector<float> values) {
    SourceTensor tensor;
    tensor.name = name;
    tensor.type = SourceType::kF32;
    tensor.shape = std::move(shape);
    tensor.bytes = SourceBytes(tensor.type, tensor.element_count());
    CHECK(tensor.element_count() == values.size(), name);
    tensors_.push_back(tensor);
    values_[name] = std::move(values);
  }

  const SourceIdentity& identity() const override { return identity_; }
  std::optional<std::string> ReadFile(const std::string& name) const override {
    return name == "config.json" ? std::optional(config_) : std::nullopt;
  }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override {
    for (const SourceTensor& tensor : tensors_) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  std::string FileOf(const SourceTensor&) const override { return "memory"; }
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override {
    const std::vector<float>& all = values_.at(tensor.name);
    CHECK(first + destination.size() <= all.size(), "a read beyond " + tensor.name);
    std::copy_n(all.begin() + static_cast<ptrdiff_t>(first), destination.size(),
                destination.begin());
    return OkStatus();
  }
  Status ReadBlocks(const SourceTensor&, uint64_t, std::span<std::byte>) const override {
    return Unsupported("no blocks");
  }

 private:
  const std::string config_;
  SourceIdentity identity_;
  std::vector<SourceTensor> tensors_;
  std::map<std::string, std::vector<float>> values_;
};

constexpr uint32_t kHidden = 36, kIntermediate = 21, kExperts = 3;

std::string Config(const char* model_type) {
  return nlohmann::json({{"model_type", model_type}, {"hidden_size", kHidden}, {"vocab_size", 20},
                         {"num_attention_heads", 2}, {"head_dim", 6}, {"num_hidden_layers", 1},
                         {"num_local_experts", kExperts}, {"num_experts_per_tok", 2},
                         {"moe_intermediate_size", kIntermediate},
                         {"intermediate_size", kIntermediate}})
      .dump();
}

// Tells expert, matrix, row and column; records are float32, which has it exactly.
float Value(uint32_t expert, uint32_t matrix, uint32_t row, uint32_t col) {
  return static_cast<float>(((expert * 4 + matrix) * 64 + row) * 64 + col);
}
enum Matrix : uint32_t { kGate, kUp, kDown };

std::vector<float> Fill(std::vector<uint64_t> shape,
                        const std::function<float(const std::vector<uint32_t>&)>& value) {
  uint64_t count = 1;
  for (const uint64_t extent : shape) count *= extent;
  std::vector<float> values(count);
  std::vector<uint32_t> at(shape.size());
  for (float& v : values) {
    v = value(at);
    for (size_t d = shape.size(); d-- > 0 && ++at[d] == shape[d];) at[d] = 0;
  }
  return values;
}

// Everything but the experts.
void AddDense(const ModelConfig& config, MemoryCheckpoint* checkpoint) {
  for (const DenseRole& role : DenseRoles(config)) {
    std::vector<uint64_t> shape = role.source_shape;
    checkpoint->Add(role.source, shape, Fill(shape, [](const auto&) { return 1.0f; }));
  }
}

using AddExperts = std::function<void(MemoryCheckpoint*, const std::string& prefix)>;

// Decoded: gate, up, down of every expert, then their biases.
std::vector<float> Import(const char* model_type, const AddExperts& add) {
  const ModelConfig config = *ParseModelConfig(Config(model_type), "config.json");
  MemoryCheckpoint checkpoint(Config(model_type));
  AddDense(config, &checkpoint);
  add(&checkpoint, "model.layers.0.mlp.experts");
  const auto plan = MakeImportPlan(checkpoint, {Encoding::kF32, Encoding::kF32});
  CHECK(plan.ok(), plan.status().message());
  const ExpertLayout layout = {Encoding::kF32, Encoding::kF32, kHidden, kIntermediate,
                               config.expert_bias};
  CHECK((*plan)->manifest().layers[0].record_bytes == layout.record_bytes());
  std::vector<float> result;
  for (uint32_t e = 0; e < kExperts; ++e) {
    std::vector<std::byte> record(layout.record_bytes(), std::byte{0x7f});
    const Status status = (*plan)->EncodeExpert(checkpoint, {LayerId(0), ExpertId(e)}, record);
    CHECK(status.ok(), status.message());
    const ExpertView view = ViewExpert(layout, record.data());
    for (const MatrixView* matrix : {&view.gate, &view.up, &view.down}) {
      std::vector<float> row(matrix->cols);
      for (uint32_t r = 0; r < matrix->rows; ++r) {
        DecodeRow(*matrix, r, row.data());
        result.insert(result.end(), row.begin(), row.end());
      }
    }
    if (!config.expert_bias) continue;
    // With the padding, which must be zeros.
    for (const auto& [bias, rows] : {std::pair(view.gate_bias, kIntermediate),
                                     std::pair(view.up_bias, kIntermediate),
                                     std::pair(view.down_bias, kHidden)}) {
      result.insert(result.end(), bias, bias + ExpertLayout::PaddedBias(rows));
    }
  }
  return result;
}

std::vector<float> Expected(bool biases) {
  std::vector<float> result;
  for (uint32_t e = 0; e < kExperts; ++e) {
    for (const Matrix m : {kGate, kUp, kDown}) {
      const uint32_t rows = m == kDown ? kHidden : kIntermediate;
      for (uint32_t r = 0; r < rows; ++r) {
        for (uint32_t c = 0; c < (m == kDown ? kIntermediate : kHidden); ++c) {
          result.push_back(Value(e, m, r, c));
        }
      }
    }
    if (!biases) continue;
    for (const Matrix m : {kGate, kUp, kDown}) {
      const uint32_t rows = m == kDown ? kHidden : kIntermediate;
      for (uint32_t r = 0; r < ExpertLayout::PaddedBias(rows); ++r) {
        result.push_back(r < rows ? -Value(e, m, r, 0) : 0);
      }
    }
  }
  return result;
}

TEST(ExpertForms, EachAlone) {
  const auto records = Import("qwen3_moe", [](MemoryCheckpoint* checkpoint, const std::string& at) {
    for (uint32_t e = 0; e < kExperts; ++e) {
      const char* const names[] = {"gate", "up", "down"};
      for (const Matrix m : {kGate, kUp, kDown}) {
        const std::vector<uint64_t> shape =
            m == kDown ? std::vector<uint64_t>{kHidden, kIntermediate}
                       : std::vector<uint64_t>{kIntermediate, kHidden};
        checkpoint->Add(fmt::format("{}.{}.{}_proj.weight", at, e, names[m]), shape,
                        Fill(shape, [&](const auto& i) { return Value(e, m, i[0], i[1]); }));
      }
    }
  });
  EXPECT_TRUE(records == Expected(false));
}

TEST(ExpertForms, StackedInHalves) {
  const auto records = Import("qwen3_moe", [](MemoryCheckpoint* checkpoint, const std::string& at) {
    const std::vector<uint64_t> both = {kExperts, 2 * kIntermediate, kHidden};
    checkpoint->Add(at + ".gate_up_proj", both, Fill(both, [](const auto& i) {
                      return Value(i[0], i[1] / kIntermediate, i[1] % kIntermediate, i[2]);
                    }));
    const std::vector<uint64_t> down = {kExperts, kHidden, kIntermediate};
    checkpoint->Add(at + ".down_proj", down, Fill(down, [](const auto& i) {
                      return Value(i[0], kDown, i[1], i[2]);
                    }));
  });
  EXPECT_TRUE(records == Expected(false));
}

void AddGptOssBiases(MemoryCheckpoint* checkpoint, const std::string& at) {
  const std::vector<uint64_t> both = {kExperts, 2 * kIntermediate}, down = {kExperts, kHidden};
  checkpoint->Add(at + ".gate_up_proj_bias", both, Fill(both, [](const auto& i) {
                    return -Value(i[0], i[1] % 2, i[1] / 2, 0);
                  }));
  checkpoint->Add(at + ".down_proj_bias", down,
                  Fill(down, [](const auto& i) { return -Value(i[0], kDown, i[1], 0); }));
}

TEST(ExpertForms, StackedInTurnsAsColumns) {
  const auto records = Import("gpt_oss", [](MemoryCheckpoint* checkpoint, const std::string& at) {
    const std::vector<uint64_t> both = {kExperts, kHidden, 2 * kIntermediate};
    checkpoint->Add(at + ".gate_up_proj", both, Fill(both, [](const auto& i) {
                      return Value(i[0], i[2] % 2, i[2] / 2, i[1]);
                    }));
    const std::vector<uint64_t> down = {kExperts, kIntermediate, kHidden};
    checkpoint->Add(at + ".down_proj", down, Fill(down, [](const auto& i) {
                      return Value(i[0], kDown, i[2], i[1]);
                    }));
    AddGptOssBiases(checkpoint, at);
  });
  EXPECT_TRUE(records == Expected(true));
}

TEST(ExpertForms, StackedInTurnsAsRows) {
  const auto records = Import("gpt_oss", [](MemoryCheckpoint* checkpoint, const std::string& at) {
    const std::vector<uint64_t> both = {kExperts, 2 * kIntermediate, kHidden};
    checkpoint->Add(at + ".gate_up_proj_blocks", both, Fill(both, [](const auto& i) {
                      return Value(i[0], i[1] % 2, i[1] / 2, i[2]);
                    }));
    const std::vector<uint64_t> down = {kExperts, kHidden, kIntermediate};
    checkpoint->Add(at + ".down_proj_blocks", down, Fill(down, [](const auto& i) {
                      return Value(i[0], kDown, i[1], i[2]);
                    }));
    AddGptOssBiases(checkpoint, at);
  });
  EXPECT_TRUE(records == Expected(true));
}

}  // namespace
}  // namespace moraine
