// GGUF, the file format of llama.cpp: header parser and checkpoint.
//
//   "GGUF" | version u32 | tensor count u64 | key count u64 | keys | tensor infos | padding | data
//   key:         name | type u32 | value          string: length u64 | bytes, no terminator
//   tensor info: name | dimension count u32 | dimensions u64, innermost first | type u32
//                | offset u64
//
// Everything is little-endian; offsets count from the data, which begins at the next multiple of
// general.alignment (32 if the key is missing). Versions 2 and 3 are alike but for what they
// promise about byte order. Source: docs/gguf.md of github.com/ggml-org/ggml.
//
// The metadata is handed on as one JSON object of the same keys, and tensors keep the names of the
// file: what they mean is the business of model/gguf_config.h and model/weights.h.
//
// Untrusted input: a count or length is compared with what the file can hold before anything is
// allocated for it, and a header is at most 256 MiB. Memory: about 6 times the header's bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "store/checkpoint.h"

namespace moraine {

// The name under which Checkpoint::ReadFile has the metadata.
inline constexpr char kGgufMetadataName[] = "gguf_metadata.json";

struct GgufHeader {
  // {"general.architecture": "qwen3moe", ...}; a float that JSON cannot say is null.
  std::string metadata_json;
  std::vector<SourceTensor> tensors;  // offsets from the start of the file
  uint64_t header_bytes = 0;          // up to the padding before the data
  // Of a model in several files: this one's number from 0, how many there are, tensors of all.
  uint64_t split_index = 0, split_count = 1;
  std::optional<uint64_t> split_tensor_count;
};

// The header parser alone (also a fuzz target). bytes: the beginning of a file of file_bytes;
// nullopt if the header may be sound but goes on beyond them. kCorruption naming file, field, found
// and expected; kUnsupported for a version or for tensor types that are not read, all of them
// named.
Result<std::optional<GgufHeader>> ParseGgufHeader(std::span<const std::byte> bytes,
                                                  uint64_t file_bytes,
                                                  const std::string& file_name);

// A file, or the first of several that are named NAME-00001-of-0000N.gguf.
Result<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path);

}  // namespace moraine
