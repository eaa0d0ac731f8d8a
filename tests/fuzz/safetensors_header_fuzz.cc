// The safetensors header parser on arbitrary bytes: no crash, and what it accepts lies inside the
// file and fits its shapes.
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/check.h"
#include "store/checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The first bytes are the length of the file's data.
  uint32_t data_bytes = 0;
  if (size < sizeof(data_bytes)) return 0;
  std::memcpy(&data_bytes, data, sizeof(data_bytes));
  const std::string_view header(reinterpret_cast<const char*>(data) + sizeof(data_bytes),
                                size - sizeof(data_bytes));
  const auto tensors = moraine::ParseSafetensorsHeader(header, data_bytes, "fuzz");
  if (!tensors.ok()) return 0;
  for (const moraine::SourceTensor& tensor : *tensors) {
    CHECK(tensor.offset <= data_bytes && tensor.bytes <= data_bytes - tensor.offset);
    CHECK(moraine::SourceBytes(tensor.type, tensor.element_count()) == tensor.bytes);
  }
  return 0;
}
