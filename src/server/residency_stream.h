// ResidencyStream: what one viewer of the live residency view gets, without its socket.
//
// Pulled by the connection's coroutine five times a second, so that a slow reader makes its own stream
// coarser and nobody else's, and the engine thread never hears of readers.
//
// Cost: a comparison of two bytes an expert for each new snapshot, 50 us for 20,000 experts.
// Owned by the I/O thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/residency_feed.h"
#include "server/residency_frame.h"

namespace moraine {

class ResidencyStream {
 public:
  // How often Next() is to be called.
  static constexpr std::chrono::milliseconds kInterval{200};
  // Viewers at one time: each costs the I/O thread its encoding and up to 100 KB.
  static constexpr int kViewerLimit = 16;

  explicit ResidencyStream(std::unique_ptr<ResidencyFeed::Watch> watch) : watch_(std::move(watch)) {}

  // The bytes that follow; empty if there is no newer snapshot. After kQuietCalls empty ones, bytes that
  // keep proxies from giving up.
  std::string Next() {
    const auto latest = watch_->Latest();
    if (latest == nullptr || latest->sequence == sent_) {
      if (++quiet_calls_ < kQuietCalls) return "";
      quiet_calls_ = 0;
      return ResidencyFrameEncoder::KeepAlive();
    }
    quiet_calls_ = 0;
    sent_ = latest->sequence;
    return encoder_.Encode(*latest);
  }

 private:
  static constexpr int kQuietCalls = 50;  // 10 s

  std::unique_ptr<ResidencyFeed::Watch> watch_;
  ResidencyFrameEncoder encoder_;
  uint64_t sent_ = 0;
  int quiet_calls_ = 0;
};

}  // namespace moraine
