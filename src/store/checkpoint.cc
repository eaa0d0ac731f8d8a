#include "store/checkpoint.h"

namespace moraine {

const char* SourceTypeName(SourceType type) {
  switch (type) {
    case SourceType::kF32:
      return "F32";
    case SourceType::kF16:
      return "F16";
    case SourceType::kBf16:
      return "BF16";
  }
  return "?";
}

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

}  // namespace moraine
