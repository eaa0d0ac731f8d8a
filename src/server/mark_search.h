// MarkSearch: text that arrives in pieces, searched for the first of several marks.
//
// What cannot be the beginning of a mark is handed out at once; nothing is searched twice, so that a
// value of megabytes that comes byte by byte costs its length and not its square.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <string_view>

namespace moraine {

// Thread-compatible.
class MarkSearch {
 public:
  struct Hit {
    size_t at = 0;
    size_t mark = 0;  // index into the marks
  };

  void Append(std::string_view text) { text_ += text; }
  const std::string& text() const { return text_; }
  bool empty() const { return text_.empty(); }
  // Takes `count` bytes off the front.
  std::string Take(size_t count) {
    std::string taken = text_.substr(0, count);
    text_.erase(0, count);
    searched_ = 0;
    return taken;
  }

  // The first mark in the text, of two at one place the one named first. Empty marks are not looked
  // for. Calls with other marks must be separated by Take.
  bool Find(std::span<const std::string_view> marks, Hit* hit) {
    hit->at = std::string::npos;
    size_t longest = 1;
    for (size_t i = 0; i < marks.size(); ++i) {
      if (marks[i].empty()) continue;
      longest = std::max(longest, marks[i].size());
      const size_t at = text_.find(marks[i], searched_);
      if (at < hit->at) *hit = {at, i};
    }
    if (hit->at != std::string::npos) return true;
    searched_ = text_.size() >= longest ? text_.size() - longest + 1 : 0;
    return false;
  }
  // How many bytes at the front cannot be part of a mark that is still to come.
  size_t Settled(std::span<const std::string_view> marks) const {
    size_t kept = 0;
    for (const std::string_view mark : marks) {
      const size_t most = std::min(mark.empty() ? 0 : mark.size() - 1, text_.size());
      for (size_t n = most; n > kept; --n) {
        if (std::string_view(text_).substr(text_.size() - n) == mark.substr(0, n)) {
          kept = n;
          break;
        }
      }
    }
    return text_.size() - kept;
  }

 private:
  std::string text_;
  size_t searched_ = 0;  // no mark begins before
};

}  // namespace moraine
