// Manifest: everything about a store that is not weights. Written once, last, when an import has
// been completed and synced; a store without it is incomplete and does not open.
//
// What weights mean (encodings, tile layout) is compute's business: here they are names and sizes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace moraine {

// Bumped whenever a reader of the previous version would misread a store.
inline constexpr uint32_t kStoreFormatVersion = 2;

// All experts of one layer have one layout. Layers without routed experts have expert_count 0.
struct LayerManifest {
  uint32_t expert_count = 0;
  uint64_t record_bytes = 0;     // multiple of 4096
  std::string gate_up_encoding;  // "bf16", "q8", "q4"
  std::string down_encoding;
  uint32_t hidden = 0, intermediate = 0;
};

// A dense matrix or vector, resident from start to end. Stored in the dense pack at a 4 KiB-aligned
// offset, in the tile layout of its encoding (vectors: encoding "f32", rows = 1, plain floats).
struct DenseTensor {
  std::string name;      // by role: "layers.3.attention.q", see model/weights.h
  std::string encoding;  // "f32", "bf16", "q8", "q4", or "vector" for plain float32
  uint32_t rows = 0, cols = 0;
  uint64_t offset = 0, bytes = 0;
  uint64_t checksum = 0;  // XXH3 of the bytes
};

// Where a store came from, so that a resume or a second import can tell whether it is the same.
struct SourceIdentity {
  std::string format;       // "safetensors", "gguf"
  std::string description;  // directory name, shown to people
  uint64_t fingerprint = 0; // XXH3 over file names, sizes, mtimes and headers
};

struct Manifest {
  uint32_t format_version = kStoreFormatVersion;
  std::string store_uuid;
  std::string created_by;    // "moraine 0.1.0"
  SourceIdentity source;
  std::string model_config;  // the checkpoint's config.json, verbatim
  std::vector<LayerManifest> layers;
  std::vector<DenseTensor> dense;
  uint64_t dense_pack_bytes = 0;
  std::vector<std::string> notes;  // losses at import, for people: "q4 experts: 4.5 bits a weight"
  // Verbatim copies of small files: "tokenizer.json", "tokenizer_config.json",
  // "chat_template.jinja", "generation_config.json".
  std::map<std::string, std::string> files;

  uint64_t expert_count() const;  // routed, all layers
  uint64_t expert_bytes() const;  // sum of record_bytes over all experts
  uint64_t max_record_bytes() const;

  std::string ToJson() const;
  // kCorruption naming the field for anything missing or of the wrong type; kUnsupported for another
  // format version, naming both versions.
  static Result<Manifest> FromJson(const std::string& json);
};

}  // namespace moraine
