#include "engine/text_assembler.h"

#include <algorithm>

namespace moraine {

std::string TextAssembler::Accept(std::string_view text) {
  if (!stopped_by_.empty()) return "";
  held_ += text;
  size_t first = std::string::npos;
  for (const std::string& stop : stop_) {
    const size_t at = stop.empty() ? std::string::npos : held_.find(stop);
    if (at < first) {
      first = at;
      stopped_by_ = stop;
    }
  }
  if (first != std::string::npos) {
    std::string before = held_.substr(0, first);
    held_.clear();
    return before;
  }
  // Keep the longest tail that is a proper prefix of a stop string.
  size_t keep = 0;
  for (const std::string& stop : stop_) {
    for (size_t n = std::min(stop.empty() ? 0 : stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
        keep = n;
        break;
      }
    }
  }
  // A tail may begin inside a character; what is sent must end with a whole one.
  size_t cut = held_.size() - keep;
  while (cut > 0 && cut < held_.size() && (static_cast<unsigned char>(held_[cut]) & 0xC0) == 0x80) {
    --cut;
  }
  std::string ready = held_.substr(0, cut);
  held_.erase(0, cut);
  return ready;
}

std::string TextAssembler::Flush() {
  std::string ready = Accept(decoder_.Flush());
  if (stopped_by_.empty()) ready += held_;
  held_.clear();
  return ready;
}

}  // namespace moraine
