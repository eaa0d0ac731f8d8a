// ProgressDisplay: how far a long operation is, on stderr: a bar that redraws itself on a terminal,
// a plain line every few seconds elsewhere (a log, CI).
#pragma once

#include <cstdint>
#include <string>

namespace moraine {

// Thread-compatible.
class ProgressDisplay {
 public:
  // verb: "importing". quiet: shows nothing.
  ProgressDisplay(std::string verb, bool quiet);
  ~ProgressDisplay();  // leaves the terminal's cursor on a line of its own
  ProgressDisplay(const ProgressDisplay&) = delete;
  ProgressDisplay& operator=(const ProgressDisplay&) = delete;

  // earlier_bytes of done_bytes were done before this run and do not count for the rate. Draws at
  // most ten times a second, so it may be called as often as is convenient.
  void Update(uint64_t done_bytes, uint64_t total_bytes, uint64_t earlier_bytes, double seconds);

 private:
  const std::string verb_;
  const bool quiet_;
  const bool terminal_;
  const bool color_;
  double last_drawn_seconds_ = -1e9;
  bool line_open_ = false;
};

// Highest resident set of this process so far.
uint64_t PeakRssBytes();

}  // namespace moraine
