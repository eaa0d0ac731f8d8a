// RequestMetrics: how long clients wait, as histograms for /metrics.
//
// Times are taken where the answer's bytes are made, on the I/O thread, so that the queue, the prefill and
// the way between the threads are in them; not the network.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace moraine {

// Thread-compatible. In seconds.
class SecondsHistogram {
 public:
  // From one token of a small model to a long answer of a large one.
  static constexpr std::array<double, 18> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                     0.1,   0.25,   0.5,   1,    2.5,   5,
                                                     10,    25,     60,    150,  300,   900};
  void Add(double seconds);
  // HELP, TYPE and the samples of a histogram of this name.
  std::string ToPrometheus(const std::string& name, const std::string& help) const;

 private:
  std::array<uint64_t, kBounds.size() + 1> counts_{};
  double sum_ = 0;
};

// Thread-safe.
class RequestMetrics {
 public:
  void NoteFirstToken(std::chrono::nanoseconds since_request);
  void NoteNextToken(std::chrono::nanoseconds since_token);
  void NoteEnd(std::chrono::nanoseconds since_request);  // of a generation
  std::string ToPrometheus() const;

 private:
  mutable std::mutex mutex_;
  SecondsHistogram first_token_, next_token_, end_;  // guarded by mutex_
};

}  // namespace moraine
