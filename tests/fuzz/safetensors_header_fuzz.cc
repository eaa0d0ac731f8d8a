// The safetensors header parser on arbitrary bytes: no crash, and what it accepts lies inside the
// file and fits its shapes. Then the same tensors as a checkpoint of packed weights: no crash, and
// what is put together can be read by rows.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/check.h"
#include "store/checkpoint.h"
#include "store/packed_checkpoint.h"

namespace {

using moraine::SourceTensor;
using moraine::Status;

constexpr const char* kConfigs[] = {
    "", R"({"quantization_config":{"quant_method":"fp8","weight_block_size":[4,32]}})",
    R"({"quantization_config":{"quant_method":"gptq","bits":4,"group_size":32,"sym":true}})",
    R"({"quantization_config":{"quant_method":"gptq","group_size":-1,"desc_act":true}})",
    R"({"quantization_config":{"quant_method":"awq","bits":4,"group_size":32}})"};

// All of the data is zeros.
class ZeroCheckpoint final : public moraine::Checkpoint {
 public:
  ZeroCheckpoint(std::vector<SourceTensor> tensors, const char* config)
      : tensors_(std::move(tensors)), config_(config) {}
  const moraine::SourceIdentity& identity() const override { return identity_; }
  std::optional<std::string> ReadFile(const std::string&) const override { return config_; }
  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  const SourceTensor* Find(const std::string& name) const override {
    const auto found = std::ranges::find(tensors_, name, &SourceTensor::name);
    return found == tensors_.end() ? nullptr : &*found;
  }
  std::string FileOf(const SourceTensor&) const override { return "fuzz"; }
  Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                    std::span<float> destination) const override {
    CHECK(first <= tensor.element_count() &&
          destination.size() <= tensor.element_count() - first);
    std::ranges::fill(destination, 0.0f);
    return moraine::OkStatus();
  }
  Status ReadBlocks(const SourceTensor& tensor, uint64_t first,
                    std::span<std::byte> destination) const override {
    const uint64_t begin = moraine::SourceBytes(tensor.type, first);
    CHECK(begin <= tensor.bytes && destination.size() <= tensor.bytes - begin);
    std::ranges::fill(destination, std::byte{0});
    return moraine::OkStatus();
  }

 private:
  const std::vector<SourceTensor> tensors_;
  const std::string config_;
  moraine::SourceIdentity identity_;
};

void ReadPacked(std::vector<SourceTensor> tensors, const char* config) {
  const auto opened =
      moraine::UnpackCheckpoint(std::make_unique<ZeroCheckpoint>(std::move(tensors), config));
  if (!opened.ok()) return;
  for (const SourceTensor& tensor : (*opened)->tensors()) {
    const uint64_t elements = tensor.element_count();
    const uint64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
    if (elements == 0 || cols > 4096) continue;
    std::vector<float> row(cols);
    const Status floats = (*opened)->ReadFloats(tensor, elements - cols, row);
    const moraine::SourceBlock block = moraine::BlockOf(tensor.type);
    if (block.elements == 1 || cols % block.elements != 0) continue;
    std::vector<std::byte> blocks(moraine::SourceBytes(tensor.type, cols));
    const Status bytes = (*opened)->ReadBlocks(tensor, elements - cols, blocks);
    if (!floats.ok() || !bytes.ok()) continue;  // such as a zero point that is not 8
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The first bytes are the length of the file's data.
  uint32_t data_bytes = 0;
  if (size < sizeof(data_bytes)) return 0;
  std::memcpy(&data_bytes, data, sizeof(data_bytes));
  const std::string_view header(reinterpret_cast<const char*>(data) + sizeof(data_bytes),
                                size - sizeof(data_bytes));
  auto tensors = moraine::ParseSafetensorsHeader(header, data_bytes, "fuzz");
  if (!tensors.ok()) return 0;
  for (const SourceTensor& tensor : *tensors) {
    CHECK(tensor.offset <= data_bytes && tensor.bytes <= data_bytes - tensor.offset);
    CHECK(moraine::SourceBytes(tensor.type, tensor.element_count()) == tensor.bytes);
  }
  ReadPacked(std::move(*tensors), kConfigs[size % std::size(kConfigs)]);
  return 0;
}
