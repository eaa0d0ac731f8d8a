// TunedSettings: what `moraine tune` has found for a model on a machine. Unset: nothing better than the default
// was, or the setting has no effect there.
//
// None of them changes a bit of what the CPU computes. On a GPU a prompt's bits depend on its chunks, and with
// gpu_prefill on where it is computed: within rounding (docs/gpu.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace moraine {

struct TunedSettings {
  std::optional<int> threads;
  std::optional<uint32_t> prefill_chunk;
  std::optional<bool> lookahead;
  std::optional<std::string> io;  // BlockReaderOptions::kind
  std::optional<uint32_t> gpu_prefill_tokens;

  bool empty() const {
    return !threads && !prefill_chunk && !lookahead && !io && !gpu_prefill_tokens;
  }
  bool operator==(const TunedSettings&) const = default;
  // "threads 8, prefill chunk 2048", in the options' words.
  std::string ToText() const;
};

}  // namespace moraine
