// The GGUF header parser on arbitrary bytes: no crash, metadata that is JSON, and tensors that lie
// inside the file and fit their shapes.
#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "base/check.h"
#include "store/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The first bytes say how much longer the file is than what is given of it.
  uint32_t beyond = 0;
  if (size < sizeof(beyond)) return 0;
  std::memcpy(&beyond, data, sizeof(beyond));
  const auto bytes = std::as_bytes(std::span(data, size)).subspan(sizeof(beyond));
  const uint64_t file_bytes = bytes.size() + beyond;
  const auto header = moraine::ParseGgufHeader(bytes, file_bytes, "fuzz");
  if (!header.ok() || !header->has_value()) return 0;
  simdjson::dom::parser parser;
  CHECK(parser.parse((*header)->metadata_json).is_object());
  for (const moraine::SourceTensor& tensor : (*header)->tensors) {
    CHECK(tensor.offset <= file_bytes && tensor.bytes <= file_bytes - tensor.offset);
    CHECK(moraine::SourceBytes(tensor.type, tensor.element_count()) == tensor.bytes);
  }
  return 0;
}
