// Writes packed weights as safetensors, and reads them back value by value.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "store_test_support.h"

namespace moraine {

// A directory with one safetensors file of raw tensors.
class RawCheckpoint {
 public:
  template <typename T>
  void Add(const std::string& name, const char* dtype, const std::vector<uint64_t>& shape,
           const std::vector<T>& values) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? "," : "") + std::to_string(shape[i]);
    const size_t begin = data_.size();
    data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    header_ += (header_.empty() ? "" : ",") +
               TensorEntry(name, dtype, text + "]", begin, data_.size());
  }
  Result<std::unique_ptr<Checkpoint>> Open(const std::string& quantisation = "{}") {
    WriteText(directory_ / "config.json", "{\"quantization_config\":" + quantisation + "}");
    WriteText(directory_ / "model.safetensors", SafetensorsBytes("{" + header_ + "}", data_));
    return OpenCheckpoint(directory_.path());
  }

 private:
  TempDirectory directory_;
  std::string header_, data_;
};

inline std::unique_ptr<Checkpoint> MustOpen(RawCheckpoint& raw, const std::string& quantisation = "{}") {
  auto opened = raw.Open(quantisation);
  CHECK(opened.ok(), opened.status().message());
  return std::move(opened).value();
}

inline std::vector<float> Rows(const Checkpoint& checkpoint, const std::string& name, uint64_t first,
                        uint64_t count) {
  const SourceTensor* tensor = checkpoint.Find(name);
  CHECK(tensor != nullptr, name);
  std::vector<float> values(count * tensor->shape.back());
  const Status status = checkpoint.ReadFloats(*tensor, first * tensor->shape.back(), values);
  CHECK(status.ok(), status.message());
  return values;
}

// The same rows from ReadBlocks.
inline std::vector<float> BlockRows(const Checkpoint& checkpoint, const std::string& name, uint64_t first,
                             uint64_t count) {
  const SourceTensor* tensor = checkpoint.Find(name);
  const uint64_t cols = tensor->shape.back();
  const SourceTypeInfo& type = InfoOf(tensor->type);
  std::vector<std::byte> blocks(SourceBytes(tensor->type, count * cols));
  const Status status = checkpoint.ReadBlocks(*tensor, first * cols, blocks);
  CHECK(status.ok(), status.message());
  std::vector<float> values(count * cols);
  type.decode(blocks.data(), blocks.size() / type.block.bytes, values.data());
  return values;
}

inline uint16_t Bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);  // values of the tests have short mantissas
}
inline uint16_t Half(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

class PackedCheckpointTest : public testing::Test {
 protected:
  std::vector<uint8_t> Codes(size_t count, uint32_t limit) {
    std::vector<uint8_t> codes(count);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random_.Next() % limit);
    return codes;
  }
  // 2^-10 .. 2^-3 times 1 .. 1.875: exact in bf16 and f16.
  float Scale() {
    return std::ldexp(8 + static_cast<float>(random_.Next() % 8),
                      -static_cast<int>(6 + random_.Next() % 8));
  }
  template <typename Value>
  void ExpectWeight(const Checkpoint& checkpoint, const std::string& name, SourceType type,
                    uint64_t rows, uint64_t cols, bool blocks, Value value) {
    const SourceTensor* tensor = checkpoint.Find(name);
    ASSERT_NE(tensor, nullptr) << name;
    EXPECT_EQ(tensor->type, type);
    EXPECT_EQ(tensor->shape, (std::vector<uint64_t>{rows, cols}));
    // All rows, and some from the middle.
    for (const auto& [first, count] : {std::pair<uint64_t, uint64_t>{0, rows}, {3, rows / 2}}) {
      const std::vector<float> floats = Rows(checkpoint, name, first, count);
      std::vector<std::vector<float>> readings = {floats};
      if (blocks) readings.push_back(BlockRows(checkpoint, name, first, count));
      for (const std::vector<float>& reading : readings) {
        for (uint64_t r = 0; r < count; ++r) {
          for (uint64_t c = 0; c < cols; ++c) {
            ASSERT_EQ(reading[r * cols + c], value(first + r, c))
                << "row " << first + r << " column " << c << " seed " << kSeed;
          }
        }
      }
    }
  }

  static constexpr uint64_t kSeed = 6;
  Random random_{kSeed};
};

inline float E4M3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                    : std::ldexp(8 + static_cast<float>(mantissa), exponent - 10);
  return code < 128 ? value : -value;
}

// Eight codes of a row in a word, or four, the first in its lowest bits.
inline std::vector<int32_t> WordsOfRows(const std::vector<uint8_t>& codes, uint32_t bits = 4) {
  const size_t in_word = 32 / bits;
  std::vector<int32_t> words(codes.size() / in_word);
  for (size_t i = 0; i < codes.size(); ++i) {
    int32_t& word = words[i / in_word];
    word = static_cast<int32_t>(static_cast<uint32_t>(word) |
                                uint32_t{codes[i]} << (bits * (i % in_word)));
  }
  return words;
}

}  // namespace moraine
