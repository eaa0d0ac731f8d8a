// Checkpoint: the tensors of a published model, as the importer sees them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "store/manifest.h"
#include "store/source_type.h"

namespace moraine {

struct SourceTensor {
  std::string name;
  SourceType type = SourceType::kBf16;
  std::vector<uint64_t> shape;  // outermost first; a row is what the last dimension counts
  uint32_t file_index = 0;
  uint64_t offset = 0, bytes = 0;  // in its file
  std::string_view packing;        // what it was put together from, for people: "GPTQ"; "": nothing

  uint64_t element_count() const;
  std::string ShapeText() const;  // "[64, 256]"
};

// Thread-safe after opening: reads use pread.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const SourceIdentity& identity() const = 0;
  // Contents of config.json, tokenizer.json, ... if present; of a GGUF, kGgufMetadataName only.
  virtual std::optional<std::string> ReadFile(const std::string& name) const = 0;
  virtual const std::vector<SourceTensor>& tensors() const = 0;
  // nullptr if there is none of that name.
  virtual const SourceTensor* Find(const std::string& name) const = 0;
  // The name of a tensor's file, for messages.
  virtual std::string FileOf(const SourceTensor& tensor) const = 0;
  // Elements [first, first + destination.size()) in row-major order, converted to float32 (exact
  // for all types); whole blocks. Short files are kCorruption naming file, offset, expected and
  // found sizes.
  virtual Status ReadFloats(const SourceTensor& tensor, uint64_t first,
                            std::span<float> destination) const = 0;
  // The same elements as the file has them: SourceBytes of them, for what is carried over as it is.
  virtual Status ReadBlocks(const SourceTensor& tensor, uint64_t first,
                            std::span<std::byte> destination) const = 0;
  // Time that threads have waited for its files, added up; 0 if it has none.
  virtual int64_t reading_ns() const { return 0; }
};

// A directory of safetensors, packed weights seen whole (packed_checkpoint.h), or a GGUF file (of a
// split one: its first part).
Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path);

// A directory of safetensors: model.safetensors, or shards with model.safetensors.index.json.
// Every tensor as it is there, parts of packed weights too. Checks every header against its file (length, overlaps, bounds, dtype, shape x dtype == bytes)
// and that every tensor the index names is where it says. Never allocates more than the file's own
// size.
Result<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory);

// The header parser alone (also a fuzz target). header: the JSON text; data_bytes: what follows it
// in the file. Offsets of the result are relative to the data.
Result<std::vector<SourceTensor>> ParseSafetensorsHeader(std::string_view header,
                                                         uint64_t data_bytes,
                                                         const std::string& file_name);

// kCorruption naming two tensors of one file that share bytes.
Status CheckOverlaps(const std::vector<SourceTensor>& tensors, const std::string& file_name);

}  // namespace moraine
