// Checkpoint: the tensors of a published model, as the importer sees them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "store/manifest.h"

namespace moraine {

enum class SourceType : uint8_t { kF32, kF16, kBf16 };
const char* SourceTypeName(SourceType type);
constexpr uint32_t SourceTypeBytes(SourceType type) { return type == SourceType::kF32 ? 4 : 2; }

struct SourceTensor {
  std::string name;
  SourceType type = SourceType::kBf16;
  std::vector<uint64_t> shape;
  uint32_t file_index = 0;
  uint64_t offset = 0, bytes = 0;  // in its file

  uint64_t element_count() const;
  std::string ShapeText() const;  // "[64, 256]"
};

// Thread-safe after opening: reads use pread.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const SourceIdentity& identity() const = 0;
  // Contents of config.json, tokenizer.json, ... if present.
  virtual std::optional<std::string> ReadFile(const std::string& name) const = 0;
  virtual const std::vector<SourceTensor>& tensors() const = 0;
  // nullptr if there is none of that name.
  virtual const SourceTensor* Find(const std::string& name) const = 0;
  // The name of a tensor's file, for messages.
  virtual std::string FileOf(const SourceTensor& tensor) const = 0;
  // Elements [first, first + destination.size()) in row-major order, converted to float32 (exact for
  // all three types). Short files are kCorruption naming file, offset, expected and found sizes.
  virtual Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                            std::span<float> destination) const = 0;
};

// A directory of safetensors: model.safetensors, or shards with model.safetensors.index.json. Checks
// every header against its file (length, overlaps, bounds, dtype, shape x dtype == bytes) and that
// every tensor the index names is where it says. Never allocates more than the file's own size.
Result<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory);

// The header parser alone (also a fuzz target). header: the JSON text; data_bytes: what follows it
// in the file. Offsets of the result are relative to the data.
Result<std::vector<SourceTensor>> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t data_bytes,
                                                         const std::string& file_name);

}  // namespace moraine
