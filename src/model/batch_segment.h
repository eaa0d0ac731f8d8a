// BatchSegment: what one sequence has in a batch: some tokens that follow on what it has, and what is wanted
// of them. A batch is a few of these, of different sequences.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "base/status.h"

namespace moraine {

class SequenceState;

enum class LogitsMode : uint8_t { kNone, kLast, kAll };
using LogitsSink = std::function<void(uint32_t position, std::span<const float> logits)>;

struct BatchSegment {
  std::span<const int32_t> tokens;
  SequenceState* state = nullptr;
  LogitsMode logits = LogitsMode::kLast;
  const LogitsSink* sink = nullptr;              // called in order of position
  const std::atomic<bool>* cancelled = nullptr;  // looked at once a layer
  bool decode = false;  // a token of an answer: its experts are kept, and its time is that of decode
  // Out: not ok if the segment was taken out of the batch. Its sequence is then as before.
  Status status = {};
};

}  // namespace moraine
