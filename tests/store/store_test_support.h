// Small checkpoints and a plan that needs no model: what the store's tests import.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/random.h"
#include "store/importer.h"
#include "store/store.h"

namespace moraine {

// Removed with everything in it.
class TempDirectory {
 public:
  explicit TempDirectory(const std::string& parent = std::filesystem::temp_directory_path()) {
    std::string pattern = parent + "/moraine-store-XXXXXX";
    CHECK(mkdtemp(pattern.data()) != nullptr, pattern);
    path_ = pattern;
  }
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void WriteText(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << text;
  CHECK(file.good(), path);
}

inline void FlipBit(const std::string& path, uint64_t offset) {
  std::fstream stream(path, std::ios::binary | std::ios::in | std::ios::out);
  stream.seekg(static_cast<std::streamoff>(offset));
  const int byte = stream.get();
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(static_cast<char>(byte ^ 0x10));
  CHECK(stream.good(), path);
}

inline std::string ReadBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  CHECK(file.good(), path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// The bytes of a safetensors file: 8 bytes of header length, header, data.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t header_bytes = header.size();
  std::string file(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  return file + header + data;
}

inline std::string TensorEntry(const std::string& name, const std::string& type,
                               const std::string& shape, uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape + ",\"data_offsets\":[" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

struct CheckpointShape {
  uint32_t layers = 3, experts = 8;
  uint32_t expert_floats = 3000;  // not a whole number of pages
  uint32_t dense_rows = 40, dense_cols = 100;
};

inline std::string ExpertTensorName(uint32_t layer, uint32_t expert) {
  return "layers." + std::to_string(layer) + ".experts." + std::to_string(expert);
}

// F32 tensors of seeded values: one a (layer, expert) in a shard a layer, "embed" and "norm" in the
// last shard; with an index.
inline void WriteShardedCheckpoint(const std::string& directory, const CheckpointShape& shape,
                                   uint64_t seed = 1) {
  std::filesystem::create_directories(directory);
  Random random(seed);
  std::string weight_map;
  const auto shard_name = [&](uint32_t shard) {
    return "model-" + std::to_string(shard) + ".safetensors";
  };
  for (uint32_t shard = 0; shard <= shape.layers; ++shard) {
    std::vector<std::pair<std::string, uint64_t>> tensors;  // name, floats
    for (uint32_t e = 0; shard < shape.layers && e < shape.experts; ++e) {
      tensors.emplace_back(ExpertTensorName(shard, e), shape.expert_floats);
    }
    if (shard == shape.layers) {
      tensors.emplace_back("embed", uint64_t{shape.dense_rows} * shape.dense_cols);
      tensors.emplace_back("norm", shape.dense_cols);
    }
    std::string header = "{\"__metadata__\":{\"format\":\"pt\"}", data;
    for (const auto& [name, count] : tensors) {
      header += "," + TensorEntry(name, "F32", "[" + std::to_string(count) + "]", data.size(),
                                  data.size() + count * 4);
      for (uint64_t i = 0; i < count; ++i) {
        const float value = static_cast<float>(random.Uniform() - 0.5);
        data.append(reinterpret_cast<const char*>(&value), sizeof(value));
      }
      weight_map += (weight_map.empty() ? "\"" : ",\"") + name + "\":\"" + shard_name(shard) + "\"";
    }
    WriteText(directory + "/" + shard_name(shard), SafetensorsBytes(header + "}", data));
  }
  WriteText(directory + "/model.safetensors.index.json", "{\"weight_map\":{" + weight_map + "}}");
}

// Copies the floats of WriteShardedCheckpoint: record = the expert's floats, zeros to the page.
class CopyPlan : public ImportPlan {
 public:
  static constexpr uint32_t kStripRows = 7;  // does not divide the rows

  CopyPlan(const Checkpoint& checkpoint, const CheckpointShape& shape) : shape_(shape) {
    manifest_.created_by = "moraine test";
    manifest_.source = checkpoint.identity();
    manifest_.model_config = "{\"model_type\":\"test\"}";
    manifest_.notes = {"copied"};
    manifest_.files["tokenizer.json"] = "{\"not utf-8\": \"\xff\"}";
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      manifest_.layers.push_back({.expert_count = shape.experts,
                                  .record_bytes = AlignUp(shape.expert_floats * 4, 4096),
                                  .gate_up_encoding = "f32", .down_encoding = "f32",
                                  .hidden = 1, .intermediate = shape.expert_floats});
    }
    manifest_.dense.push_back({.name = "embed", .encoding = "f32", .rows = shape.dense_rows,
                               .cols = shape.dense_cols,
                               .bytes = uint64_t{shape.dense_rows} * shape.dense_cols * 4});
    manifest_.dense.push_back({.name = "norm", .encoding = "vector", .rows = 1,
                               .cols = shape.dense_cols, .bytes = shape.dense_cols * 4ull});
  }

  Manifest& mutable_manifest() { return manifest_; }
  const Manifest& manifest() const override { return manifest_; }
  Status EncodeExpert(const Checkpoint& checkpoint, ExpertKey key,
                      std::span<std::byte> record) const override {
    return Copy(checkpoint, ExpertTensorName(key.layer.value(), key.expert.value()), 0,
                shape_.expert_floats, record);
  }
  uint32_t DenseStripCount(size_t index) const override {
    return index == 0 ? (shape_.dense_rows + kStripRows - 1) / kStripRows : 1;
  }
  uint64_t DenseStripBytes(size_t index, uint32_t strip) const override {
    if (index == 1) return manifest_.dense[1].bytes;
    const uint32_t rows = std::min(kStripRows, shape_.dense_rows - strip * kStripRows);
    return uint64_t{rows} * shape_.dense_cols * 4;
  }
  Status EncodeDenseStrip(const Checkpoint& checkpoint, size_t index, uint32_t strip,
                          std::span<std::byte> bytes) const override {
    const uint64_t first = index == 0 ? uint64_t{strip} * kStripRows * shape_.dense_cols : 0;
    return Copy(checkpoint, manifest_.dense[index].name, first, bytes.size() / 4, bytes);
  }

 protected:
  Status Copy(const Checkpoint& checkpoint, const std::string& name, uint64_t first,
              uint64_t count, std::span<std::byte> bytes) const {
    const SourceTensor* tensor = checkpoint.Find(name);
    if (tensor == nullptr) return NotFound(name);
    std::vector<float> floats(count);
    RETURN_IF_ERROR(checkpoint.ReadFloats(*tensor, first, floats));
    std::memset(bytes.data(), 0, bytes.size());
    std::memcpy(bytes.data(), floats.data(), count * 4);
    return OkStatus();
  }

  CheckpointShape shape_;
  Manifest manifest_;
};

inline std::unique_ptr<Checkpoint> MustOpen(const std::string& directory) {
  Result<std::unique_ptr<Checkpoint>> checkpoint = OpenSafetensors(directory);
  CHECK(checkpoint.ok(), checkpoint.status().ToString());
  return std::move(checkpoint).value();
}

inline Status ImportCopy(const std::string& source, const std::string& store,
                         const CheckpointShape& shape, ImportOptions options = {}) {
  Result<std::unique_ptr<Checkpoint>> checkpoint = OpenSafetensors(source);
  if (!checkpoint.ok()) return checkpoint.status();
  const CopyPlan plan(**checkpoint, shape);
  options.store_directory = store;
  return Import(**checkpoint, plan, options);
}

// Every pack's bytes, in every copy of `a`, and every entry of the index are the same.
inline void ExpectSameStore(const std::string& a, const std::string& b) {
  const auto first = Store::Open(a, StoreMode::kReadOnly);
  const auto second = Store::Open(b, StoreMode::kReadOnly);
  ASSERT_TRUE(first.ok()) << first.status().ToString();
  ASSERT_TRUE(second.ok()) << second.status().ToString();
  const Manifest& manifest = (*first)->manifest();
  EXPECT_EQ(manifest.ToJson(), (*second)->manifest().ToJson());
  ASSERT_EQ((*first)->expert_pack_paths().size(), (*second)->expert_pack_paths().size());
  EXPECT_TRUE(ReadBytes((*first)->dense_pack_path()) == ReadBytes((*second)->dense_pack_path()));
  for (size_t i = 0; i < (*first)->expert_pack_paths().size(); ++i) {
    const std::string expected = ReadBytes((*second)->expert_pack_paths()[i]);
    for (const std::string& path : (*first)->expert_pack_copies(static_cast<uint32_t>(i))) {
      EXPECT_TRUE(ReadBytes(path) == expected) << path;
    }
  }
  for (uint32_t layer = 0; layer < manifest.layers.size(); ++layer) {
    for (uint32_t expert = 0; expert < manifest.layers[layer].expert_count; ++expert) {
      const ExpertKey key{LayerId(layer), ExpertId(expert)};
      const RecordLocation& x = (*first)->Locate(key);
      const RecordLocation& y = (*second)->Locate(key);
      EXPECT_EQ(x.pack, y.pack);
      EXPECT_EQ(x.offset, y.offset);
      EXPECT_EQ(x.bytes, y.bytes);
      EXPECT_EQ(x.checksum, y.checksum);
    }
  }
}

}  // namespace moraine
