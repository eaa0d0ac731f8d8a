// The fixture of Qwen3-MoE, its matrices packed as published checkpoints pack them, by code of this
// test: what the importer makes of each form is the weights that the form stands for, and runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "compute/encode.h"
#include "engine/evaluation.h"
#include "engine/import_plan.h"
#include "test_store.h"

namespace moraine {
namespace {

using testing::HasSubstr;

uint16_t Half(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
float FromHalf(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}

// A safetensors file in the making.
class TensorFile {
 public:
  template <typename T>
  void Add(const std::string& name, const char* dtype, const std::vector<uint64_t>& shape,
           const std::vector<T>& values) {
    const uint64_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
  }
  void Write(const std::string& path) const {
    const std::string header = header_.dump();
    const uint64_t length = header.size();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), sizeof(length));
    file << header << data_;
    CHECK(file.good(), path);
  }

 private:
  nlohmann::ordered_json header_;
  std::string data_;
};

struct Matrix {
  std::string base;  // the name without ".weight"
  uint64_t rows = 0, cols = 0;
  std::vector<float> values;  // become what the packing stands for
  float& at(uint64_t r, uint64_t c) { return values[r * cols + c]; }
  // The value of largest magnitude in some columns of a row, with its sign.
  float Extreme(uint64_t r, uint64_t begin, uint64_t count) const {
    float extreme = 0;
    for (uint64_t c = begin; c < begin + count; ++c) {
      const float value = values[r * cols + c];
      if (std::fabs(value) > std::fabs(extreme)) extreme = value;
    }
    return extreme;
  }
};

// Eight codes in a word, the first lowest.
void PutNibble(std::vector<int32_t>* words, uint64_t word, uint64_t place, uint32_t code) {
  const uint32_t before = static_cast<uint32_t>((*words)[word]);
  (*words)[word] = static_cast<int32_t>(before | code << (4 * place));
}

void AddFp8(Matrix& m, TensorFile& file) {
  constexpr uint64_t kBlock = 64;
  const auto value_of = [](uint32_t code) {
    const int exponent = static_cast<int>(code >> 3 & 15), mantissa = static_cast<int>(code & 7);
    const double value = exponent == 0 ? std::ldexp(mantissa, -9)
                                       : std::ldexp(8 + mantissa, exponent - 10);
    return static_cast<float>(code < 128 ? value : -value);
  };
  const uint64_t across = m.cols / kBlock;
  std::vector<float> scales(m.rows / kBlock * across);
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t c = 0; c < m.cols; ++c) {
      float& scale = scales[r / kBlock * across + c / kBlock];
      scale = std::max(scale, std::fabs(m.at(r, c)) / 448);
    }
  }
  std::vector<uint8_t> codes;
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t c = 0; c < m.cols; ++c) {
      const float scale = scales[r / kBlock * across + c / kBlock];
      uint32_t best = 0;
      for (uint32_t code = 0; code < 255; ++code) {
        if (code == 127) continue;
        const float wanted = m.at(r, c) / scale;
        const auto distance = [&](uint32_t k) { return std::fabs(value_of(k) - wanted); };
        if (distance(code) < distance(best)) best = code;
      }
      codes.push_back(static_cast<uint8_t>(best));
      m.at(r, c) = value_of(best) * scale;
    }
  }
  file.Add(m.base + ".weight", "F8_E4M3", {m.rows, m.cols}, codes);
  file.Add(m.base + ".weight_scale_inv", "F32", {m.rows / kBlock, across}, scales);
}

void AddInt4(Matrix& m, TensorFile& file) {
  std::vector<int32_t> words(m.rows * m.cols / 8);
  std::vector<uint16_t> scales;
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t begin = 0; begin < m.cols; begin += 32) {
      const uint16_t bits = FloatToBf16(m.Extreme(r, begin, 32) / -8);
      const float scale = Bf16ToFloat(bits);
      scales.push_back(bits);
      for (uint64_t c = begin; c < begin + 32; ++c) {
        const float code = std::clamp(std::rint(m.at(r, c) / scale), -8.0f, 7.0f);
        PutNibble(&words, (r * m.cols + c) / 8, c % 8, static_cast<uint32_t>(code + 8));
        m.at(r, c) = code * scale;
      }
    }
  }
  file.Add(m.base + ".weight_packed", "I32", {m.rows, m.cols / 8}, words);
  file.Add(m.base + ".weight_scale", "BF16", {m.rows, m.cols / 32}, scales);
  file.Add(m.base + ".weight_shape", "I64", {2},
           std::vector<int64_t>{static_cast<int64_t>(m.rows), static_cast<int64_t>(m.cols)});
}

// Codes of `bits` bits, half of the range added, in words from the lowest bits on; one scale and zero
// point for 32 columns (4 bits), or a scale a row (8 bits).
void AddWords(Matrix& m, TensorFile& file, uint32_t bits) {
  const uint64_t in_word = 32 / bits, group = bits == 4 ? 32 : m.cols, groups = m.cols / group;
  const float half = bits == 4 ? 8.0f : 128.0f;
  const auto put = [bits](std::vector<int32_t>* words, uint64_t word, uint64_t place, float code) {
    const uint32_t before = static_cast<uint32_t>((*words)[word]);
    (*words)[word] = static_cast<int32_t>(before | static_cast<uint32_t>(code) << (bits * place));
  };
  std::vector<int32_t> words(m.rows * m.cols / in_word), zeros((m.rows + 7) / 8 * groups);
  std::vector<uint16_t> scales;
  for (uint64_t r = 0; r < m.rows; ++r) {
    for (uint64_t g = 0; g < groups; ++g) {
      const auto begin = m.values.begin() + static_cast<ptrdiff_t>(r * m.cols + g * group);
      const auto [low, high] = std::minmax_element(begin, begin + static_cast<ptrdiff_t>(group));
      const float extreme = std::max(std::fabs(*low), std::fabs(*high));
      const uint16_t scale_bits = FloatToBf16(bits == 4 ? (*high - *low) / 15 : extreme / 127);
      const float scale = Bf16ToFloat(scale_bits);
      const float zero =
          bits == 4 ? std::clamp(std::rint(-*low / scale), 0.0f, 15.0f) : half;
      scales.push_back(scale_bits);
      if (bits == 4) put(&zeros, r / 8 * groups + g, r % 8, zero);
      for (uint64_t c = g * group; c < (g + 1) * group; ++c) {
        const float code = std::clamp(std::rint(m.at(r, c) / scale) + zero, 0.0f, 2 * half - 1);
        put(&words, (r * m.cols + c) / in_word, c % in_word, code);
        m.at(r, c) = (code - zero) * scale;
      }
    }
  }
  file.Add(m.base + ".weight_packed", "I32", {m.rows, m.cols / in_word}, words);
  file.Add(m.base + ".weight_scale", "BF16", {m.rows, groups}, scales);
  if (bits == 4) file.Add(m.base + ".weight_zero_point", "I32", {(m.rows + 7) / 8, groups}, zeros);
  file.Add(m.base + ".weight_shape", "I64", {2},
           std::vector<int64_t>{static_cast<int64_t>(m.rows), static_cast<int64_t>(m.cols)});
}

constexpr uint64_t kGroup = 64;

// Scale and zero point of a group of a row, and its codes; values become what they stand for.
struct Group {
  uint16_t scale;
  uint32_t zero;
  uint32_t codes[kGroup];
};
Group EncodeGroup(Matrix& m, uint64_t r, uint64_t begin, bool symmetric) {
  float low = 0, high = 0;
  for (uint64_t c = begin; c < begin + kGroup; ++c) {
    low = std::min(low, m.at(r, c));
    high = std::max(high, m.at(r, c));
  }
  Group group;
  group.scale = Half(symmetric ? std::max(-low, high) / 7.5f : (high - low) / 15);
  const float scale = FromHalf(group.scale);
  // 1 to 15: GPTQ's first format has no 0.
  const float zero = symmetric ? 8.0f : std::clamp(std::rint(-low / scale), 1.0f, 15.0f);
  group.zero = static_cast<uint32_t>(zero);
  for (uint64_t i = 0; i < kGroup; ++i) {
    float& value = m.at(r, begin + i);
    const float code = std::clamp(std::rint(value / scale) + zero, 0.0f, 15.0f);
    group.codes[i] = static_cast<uint32_t>(code);
    value = (code - zero) * scale;
  }
  return group;
}

void AddGrouped(Matrix& m, TensorFile& file, bool awq, bool symmetric) {
  constexpr uint64_t kAwqPlace[] = {0, 4, 1, 5, 2, 6, 3, 7};  // of rows 0 to 7 in a word
  const uint64_t groups = m.cols / kGroup, row_words = m.rows / 8;
  std::vector<int32_t> codes(m.rows * m.cols / 8), zeros(groups * row_words), g_idx;
  std::vector<uint16_t> scales(groups * m.rows);
  for (uint64_t r = 0; r < m.rows; ++r) {
    const uint64_t place = awq ? kAwqPlace[r % 8] : r % 8;
    for (uint64_t g = 0; g < groups; ++g) {
      const Group group = EncodeGroup(m, r, g * kGroup, symmetric);
      scales[g * m.rows + r] = group.scale;
      PutNibble(&zeros, g * row_words + r / 8, place, awq ? group.zero : group.zero - 1);
      for (uint64_t i = 0; i < kGroup; ++i) {
        const uint64_t c = g * kGroup + i;
        if (awq) {
          PutNibble(&codes, c * row_words + r / 8, place, group.codes[i]);
        } else {
          PutNibble(&codes, c / 8 * m.rows + r, c % 8, group.codes[i]);
        }
      }
    }
  }
  for (uint64_t c = 0; c < m.cols; ++c) g_idx.push_back(static_cast<int32_t>(c / kGroup));
  if (awq) {
    file.Add(m.base + ".qweight", "I32", {m.cols, row_words}, codes);
  } else {
    file.Add(m.base + ".qweight", "I32", {m.cols / 8, m.rows}, codes);
  }
  file.Add(m.base + ".qzeros", "I32", {groups, row_words}, zeros);
  file.Add(m.base + ".scales", "F16", {groups, m.rows}, scales);
  if (!awq) file.Add(m.base + ".g_idx", "I32", {m.cols}, g_idx);
}

struct Form {
  const char* name;
  void (*add)(Matrix& matrix, TensorFile& file);
  nlohmann::json quantisation;  // of config.json
  const char* encoding;
  double largest_loss;  // relative RMS; 0: to the bit
  const char* note;
};
void PrintTo(const Form& form, std::ostream* out) { *out << form.name; }

const Form kForms[] = {
    {"Fp8", AddFp8, {{"quant_method", "fp8"}, {"weight_block_size", {64, 64}}}, "q8", 0.006,
     "made from FP8: lossy; relative RMS error of a sample: "},
    {"Int4", AddInt4, {{"quant_method", "compressed-tensors"}}, "q4_bf16", 0,
     "exactly the checkpoint's INT4"},
    {"Int4WithZeroPoints", [](Matrix& m, TensorFile& f) { AddWords(m, f, 4); },
     {{"quant_method", "compressed-tensors"}}, "q8", 0,
     "the checkpoint's INT4 with zero points: exactly so in a sample"},
    {"Int8", [](Matrix& m, TensorFile& f) { AddWords(m, f, 8); },
     {{"quant_method", "compressed-tensors"}}, "q8", 0,
     "the checkpoint's INT8: exactly so in a sample"},
    {"Gptq", [](Matrix& m, TensorFile& f) { AddGrouped(m, f, false, false); },
     {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 64}, {"sym", false}}, "q8", 0,
     "exactly the checkpoint's GPTQ"},
    {"SymmetricGptq", [](Matrix& m, TensorFile& f) { AddGrouped(m, f, false, true); },
     {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 64}, {"sym", true}}, "q4", 0,
     "exactly the checkpoint's GPTQ"},
    {"Awq", [](Matrix& m, TensorFile& f) { AddGrouped(m, f, true, false); },
     {{"quant_method", "awq"}, {"bits", 4}, {"group_size", 64}, {"version", "gemm"}}, "q8", 0,
     "exactly the checkpoint's AWQ"},
};

// The fixture with experts and attention packed; directory() has config.json and the weights.
class PackedFixture {
 public:
  explicit PackedFixture(const Form& form) : directory_(MakeScratchDirectory("packed")) {
    const auto source = OpenCheckpoint(Directory());
    CHECK(source.ok(), source.status().message());
    TensorFile file;
    for (const SourceTensor& tensor : (*source)->tensors()) {
      const bool packed = tensor.name.find("_proj.weight") != std::string::npos;
      std::vector<float> values(tensor.element_count());
      const Status status = (*source)->ReadFloats(tensor, 0, values);
      CHECK(status.ok(), status.message());
      if (!packed) {
        file.Add(tensor.name, "F32", tensor.shape, values);
        continue;
      }
      Matrix matrix = {tensor.name.substr(0, tensor.name.size() - 7), tensor.shape[0],
                       tensor.shape[1], std::move(values)};
      form.add(matrix, file);
      matrices_[tensor.name] = std::move(matrix);
    }
    file.Write(directory_ + "/model.safetensors");
    std::ifstream in(Directory() + "/config.json");
    nlohmann::json config = nlohmann::json::parse(in);
    config["quantization_config"] = form.quantisation;
    std::ofstream(directory_ + "/config.json") << config.dump(1);
  }
  ~PackedFixture() { std::filesystem::remove_all(directory_); }

  static std::string Directory() { return GoldenPath("fixtures/qwen3_moe"); }
  const std::string& directory() const { return directory_; }
  const Matrix& matrix(const std::string& name) const { return matrices_.at(name); }

 private:
  const std::string directory_;
  std::map<std::string, Matrix> matrices_;
};

class PackedFormatsTest : public testing::TestWithParam<Form> {
 protected:
  void ExpectMatrix(const MatrixView& view, const Matrix& expected) {
    std::vector<float> row(view.cols);
    double error = 0, power = 0;
    for (uint32_t r = 0; r < view.rows; ++r) {
      DecodeRow(view, r, row.data());
      for (uint32_t c = 0; c < view.cols; ++c) {
        const double value = expected.values[size_t{r} * view.cols + c];
        error += (row[c] - value) * (row[c] - value);
        power += value * value;
        if (GetParam().largest_loss == 0) {
          ASSERT_EQ(row[c], value) << expected.base << " " << r << " " << c;
        }
      }
    }
    EXPECT_LE(std::sqrt(error), GetParam().largest_loss * std::sqrt(power)) << expected.base;
  }
};

TEST_P(PackedFormatsTest, ExpertsAndAttentionAreTheWeightsThatTheFormStandsFor) {
  const PackedFixture fixture(GetParam());
  const auto checkpoint = OpenCheckpoint(fixture.directory());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto plan = MakeImportPlan(**checkpoint, {});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  const Manifest& manifest = (*plan)->manifest();
  for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
    const LayerManifest& entry = manifest.layers[layer];
    EXPECT_EQ(entry.gate_up_encoding, GetParam().encoding);
    EXPECT_EQ(entry.down_encoding, GetParam().encoding);
    const ExpertLayout layout = {*ParseEncoding(entry.gate_up_encoding),
                                 *ParseEncoding(entry.down_encoding), entry.hidden,
                                 entry.intermediate};
    for (uint32_t expert = 0; expert < entry.expert_count; ++expert) {
      std::vector<std::byte> record(entry.record_bytes);
      const Status status =
          (*plan)->EncodeExpert(**checkpoint, {LayerId(layer), ExpertId(expert)}, record);
      ASSERT_TRUE(status.ok()) << status.ToString();
      const ExpertView view = ViewExpert(layout, record.data());
      const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts." +
                                 std::to_string(expert) + ".";
      ExpectMatrix(view.gate, fixture.matrix(prefix + "gate_proj.weight"));
      ExpectMatrix(view.up, fixture.matrix(prefix + "up_proj.weight"));
      ExpectMatrix(view.down, fixture.matrix(prefix + "down_proj.weight"));
    }
  }
  int attention = 0;
  for (size_t i = 0; i < manifest.dense.size(); ++i) {
    const DenseTensor& dense = manifest.dense[i];
    if (dense.name != "layers.1.attention.k") continue;
    ++attention;
    EXPECT_EQ(dense.encoding, GetParam().encoding);
    std::vector<std::byte> bytes(dense.bytes);
    ASSERT_EQ((*plan)->DenseStripCount(i), 1u);
    ASSERT_TRUE((*plan)->EncodeDenseStrip(**checkpoint, i, 0, bytes).ok());
    ExpectMatrix(MatrixView::Plain(bytes.data(), *ParseEncoding(dense.encoding), dense.rows,
                                   dense.cols),
                 fixture.matrix("model.layers.1.self_attn.k_proj.weight"));
  }
  EXPECT_EQ(attention, 1);
  const std::string note = std::string(" are ") + GetParam().encoding + ", " + GetParam().note;
  EXPECT_THAT(manifest.notes, testing::Contains(HasSubstr("experts" + note)));
  EXPECT_THAT(manifest.notes, testing::Contains(HasSubstr("dense matrices" + note)));
}

// Greedy, and the same whatever is resident.
TEST_P(PackedFormatsTest, Runs) {
  const PackedFixture fixture(GetParam());
  const TestStore store(fixture.directory(), std::nullopt);
  std::string digests[2];
  for (const int streams : {0, 1}) {
    const auto runner = Runner::Open(TestRunnerOptions(store, streams == 1 ? "30%" : "100%"));
    ASSERT_TRUE(runner.ok()) << runner.status().ToString();
    const auto evaluation = Evaluation::Create(**runner);
    ASSERT_TRUE(evaluation.ok());
    ASSERT_TRUE((*evaluation)->AddFixture(PackedFixture::Directory()).ok());
    const EvaluationReport report = (*evaluation)->Finish();
    EXPECT_EQ(report.greedy->total, 1u);
    EXPECT_LT(*report.prefill_decode_max_abs_difference, 1e-4);
    digests[streams] = report.digest;
  }
  EXPECT_EQ(digests[0], digests[1]);
}

// gpt-oss as published: rows of outputs in MXFP4, gate and up in turns, under names of their own.
class GptOssInMxfp4 {
 public:
  GptOssInMxfp4() : directory_(MakeScratchDirectory("mxfp4")) {
    const auto source = OpenCheckpoint(Directory());
    CHECK(source.ok(), source.status().message());
    TensorFile file;
    for (const SourceTensor& tensor : (*source)->tensors()) {
      std::vector<float> values(tensor.element_count());
      const Status status = (*source)->ReadFloats(tensor, 0, values);
      CHECK(status.ok(), status.message());
      if (tensor.name.ends_with("_proj") && tensor.shape.size() == 3) {
        AddBlocks(tensor, values, file);
      } else {
        file.Add(tensor.name, "F32", tensor.shape, values);
      }
    }
    file.Write(directory_ + "/model.safetensors");
    std::filesystem::copy(Directory() + "/config.json", directory_ + "/config.json");
  }
  ~GptOssInMxfp4() { std::filesystem::remove_all(directory_); }

  static std::string Directory() { return GoldenPath("fixtures/gpt_oss"); }
  const std::string& directory() const { return directory_; }
  // experts x outputs x inputs.
  const std::vector<float>& values(const std::string& name) const { return values_.at(name); }

 private:
  // values: [experts, inputs, outputs].
  void AddBlocks(const SourceTensor& tensor, const std::vector<float>& values, TensorFile& file) {
    constexpr float kE2M1[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    const uint64_t experts = tensor.shape[0], inputs = tensor.shape[1], outputs = tensor.shape[2];
    std::vector<uint8_t> blocks, scales;
    std::vector<float>& packed = values_[tensor.name];
    for (uint64_t row = 0; row < experts * outputs; ++row) {
      const uint64_t expert = row / outputs, output = row % outputs;
      for (uint64_t begin = 0; begin < inputs; begin += 32) {
        float block[32], largest = 0;
        for (uint64_t i = 0; i < 32; ++i) {
          block[i] = values[(expert * inputs + begin + i) * outputs + output];
          largest = std::max(largest, std::fabs(block[i]));
        }
        const int exponent = std::ilogb(largest) - 2;
        scales.push_back(static_cast<uint8_t>(exponent + 127));
        uint8_t codes[32];
        for (uint64_t i = 0; i < 32; ++i) {
          const float wanted = std::ldexp(std::fabs(block[i]), -exponent);
          uint8_t best = 0;
          for (uint8_t k = 1; k < 8; ++k) {
            if (std::fabs(kE2M1[k] - wanted) < std::fabs(kE2M1[best] - wanted)) best = k;
          }
          const float value = std::ldexp(kE2M1[best], exponent);
          packed.push_back(block[i] < 0 ? -value : value);
          codes[i] = static_cast<uint8_t>(block[i] < 0 ? best + 8 : best);
        }
        for (uint64_t i = 0; i < 32; i += 2) {
          blocks.push_back(static_cast<uint8_t>(codes[i] | codes[i + 1] << 4));
        }
      }
    }
    file.Add(tensor.name + "_blocks", "U8", {experts, outputs, inputs / 32, 16}, blocks);
    file.Add(tensor.name + "_scales", "U8", {experts, outputs, inputs / 32}, scales);
  }

  const std::string directory_;
  std::map<std::string, std::vector<float>> values_;
};

TEST(PackedGptOss, ExpertsAreCarriedBitForBitAndRun) {
  const GptOssInMxfp4 fixture;
  const auto checkpoint = OpenCheckpoint(fixture.directory());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto plan = MakeImportPlan(**checkpoint, {});
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  const LayerManifest& entry = (*plan)->manifest().layers[1];
  EXPECT_EQ(entry.gate_up_encoding, "mxfp4");
  EXPECT_EQ(entry.down_encoding, "mxfp4");
  EXPECT_THAT((*plan)->manifest().notes,
              testing::Contains("experts are mxfp4, exactly the checkpoint's MXFP4"));
  ExpertLayout layout = {Encoding::kMxfp4, Encoding::kMxfp4, entry.hidden, entry.intermediate};
  const uint32_t expert = 5;
  std::vector<std::byte> record(entry.record_bytes);
  const Status status = (*plan)->EncodeExpert(**checkpoint, {LayerId(1), ExpertId(expert)}, record);
  ASSERT_TRUE(status.ok()) << status.ToString();
  const ExpertView view = ViewExpert(layout, record.data());
  const auto expect = [&](const MatrixView& matrix, const char* name, uint32_t rows_of_expert,
                          uint32_t first, uint32_t step) {
    const std::vector<float>& values =
        fixture.values(std::string("model.layers.1.mlp.experts.") + name);
    std::vector<float> row(matrix.cols);
    for (uint32_t r = 0; r < matrix.rows; ++r) {
      DecodeRow(matrix, r, row.data());
      const size_t from = size_t{expert} * rows_of_expert + first + size_t{r} * step;
      for (uint32_t c = 0; c < matrix.cols; ++c) {
        ASSERT_EQ(row[c], values[from * matrix.cols + c]) << name << " " << r << " " << c;
      }
    }
  };
  expect(view.gate, "gate_up_proj", 2 * entry.intermediate, 0, 2);
  expect(view.up, "gate_up_proj", 2 * entry.intermediate, 1, 2);
  expect(view.down, "down_proj", entry.hidden, 0, 1);

  const TestStore store(fixture.directory(), std::nullopt);
  const auto runner = Runner::Open(TestRunnerOptions(store, "30%"));
  ASSERT_TRUE(runner.ok()) << runner.status().ToString();
  const auto evaluation = Evaluation::Create(**runner);
  ASSERT_TRUE((*evaluation)->AddFixture(GptOssInMxfp4::Directory()).ok());
  const EvaluationReport report = (*evaluation)->Finish();
  EXPECT_EQ(report.greedy->total, 1u);
  EXPECT_LT(*report.prefill_decode_max_abs_difference, 1e-4);
}

TEST(PackedGptOss, ImportanceWeightsOnlyWhatIsNotCarried) {
  const GptOssInMxfp4 fixture;
  const auto checkpoint = OpenCheckpoint(fixture.directory());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto config = ParseModelConfig(*(*checkpoint)->ReadFile("config.json"), "config.json");
  Importance importance;
  for (const auto& [name, shape] : ShapesOfImportance(*config)) {
    importance.tensors()[name] = {shape, std::vector<float>(shape[0] * shape[1], 1.0f)};
  }
  ImportPlanOptions options;
  options.importance = &importance;
  EXPECT_THAT(MakeImportPlan(**checkpoint, options).status().message(),
              HasSubstr("nothing to weight"));
  options.experts = Encoding::kQ4;
  const auto plan = MakeImportPlan(**checkpoint, options);
  ASSERT_TRUE(plan.ok()) << plan.status().ToString();
  // 4 layers of 8 experts of 3 matrices.
  EXPECT_THAT((*plan)->manifest().notes.back(), HasSubstr("of 96 experts' matrices is weighted"));
}

INSTANTIATE_TEST_SUITE_P(Forms, PackedFormatsTest, testing::ValuesIn(kForms),
                         [](const auto& form) { return std::string(form.param.name); });

}  // namespace
}  // namespace moraine
