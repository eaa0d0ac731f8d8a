#include "progress_display.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/bytes.h"

namespace moraine {
namespace {

constexpr double kRedrawSeconds = 0.1;
constexpr double kPlainLineSeconds = 5;
constexpr int kBarCells = 24;

// no-color.org: any value but the empty one turns colour off.
bool ColorWanted() {
  const char* const no_color = std::getenv("NO_COLOR");
  return no_color == nullptr || *no_color == '\0';
}

std::string FormatEta(double seconds) {
  const uint64_t whole = static_cast<uint64_t>(seconds + 0.5);
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace

ProgressDisplay::ProgressDisplay(std::string verb, bool quiet)
    : verb_(std::move(verb)),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) == 1),
      color_(terminal_ && ColorWanted()) {}

ProgressDisplay::~ProgressDisplay() {
  if (line_open_) std::fputc('\n', stderr);
}

void ProgressDisplay::Update(uint64_t done_bytes, uint64_t total_bytes, uint64_t earlier_bytes,
                             double seconds) {
  const bool finished = done_bytes >= total_bytes;
  const double interval = terminal_ ? kRedrawSeconds : kPlainLineSeconds;
  // Plain lines begin only once an operation has proved to be a long one.
  if (!terminal_ && last_drawn_seconds_ < 0) last_drawn_seconds_ = 0;
  const bool due = seconds - last_drawn_seconds_ >= interval;
  if (quiet_ || (!due && !(finished && line_open_))) return;
  last_drawn_seconds_ = seconds;
  const double share =
      total_bytes == 0 ? 1 : static_cast<double>(done_bytes) / static_cast<double>(total_bytes);
  const double rate =
      seconds > 0 ? static_cast<double>(done_bytes - earlier_bytes) / seconds : 0;
  const std::string eta =
      rate > 0 ? FormatEta(static_cast<double>(total_bytes - done_bytes) / rate) : "?";
  const std::string figures =
      fmt::format("{:3.0f} %  {} of {}  {:.2f} GB/s  ETA {}", share * 100,
                  FormatByteSize(done_bytes), FormatByteSize(total_bytes), rate * 1e-9, eta);
  if (!terminal_) {
    std::fprintf(stderr, "%s %s\n", verb_.c_str(), figures.c_str());
    return;
  }
  const int filled = std::clamp(static_cast<int>(share * kBarCells), 0, kBarCells);
  std::string bar = std::string(static_cast<size_t>(filled), '#') +
                    std::string(static_cast<size_t>(kBarCells - filled), '.');
  if (color_) bar = "\033[36m" + bar + "\033[0m";
  // The spaces cover what a longer line before may have left.
  std::fprintf(stderr, "\r%s [%s] %s    ", verb_.c_str(), bar.c_str(), figures.c_str());
  std::fflush(stderr);
  line_open_ = true;
}

uint64_t PeakRssBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace moraine
