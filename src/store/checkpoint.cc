#include "store/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "store/gguf.h"
#include "store/packed_checkpoint.h"

namespace moraine {

uint64_t SourceTensor::element_count() const {
  uint64_t count = 1;
  for (const uint64_t dimension : shape) count *= dimension;
  return count;
}

std::string SourceTensor::ShapeText() const {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

Status CheckOverlaps(const std::vector<SourceTensor>& tensors, const std::string& file_name) {
  std::vector<const SourceTensor*> by_offset;
  for (const SourceTensor& tensor : tensors) {
    if (tensor.bytes > 0) by_offset.push_back(&tensor);
  }
  std::sort(by_offset.begin(), by_offset.end(),
            [](const SourceTensor* a, const SourceTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const SourceTensor& before = *by_offset[i - 1];
    const SourceTensor& after = *by_offset[i];
    if (before.offset + before.bytes > after.offset) {
      return Corruption(file_name + ": tensors '" + before.name + "' and '" + after.name +
                        "' overlap: the first ends at data offset " +
                        std::to_string(before.offset + before.bytes) + ", the second begins at " +
                        std::to_string(after.offset));
    }
  }
  return OkStatus();
}

Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    ASSIGN_OR_RETURN(std::unique_ptr<Checkpoint> raw, OpenSafetensors(path));
    return UnpackCheckpoint(std::move(raw));
  }
  if (std::filesystem::exists(path, error)) return OpenGguf(path);
  return NotFound(path + ": no such directory or file");
}

}  // namespace moraine
