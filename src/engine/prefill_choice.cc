#include "engine/prefill_choice.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace moraine {

uint32_t PrefillChoice::ClassOf(uint32_t tokens) {
  return std::min<uint32_t>(static_cast<uint32_t>(std::bit_width(tokens)), kClasses) - 1;
}

uint32_t PrefillChoice::ProbeTokens(uint32_t tokens) const {
  const bool known = least_tokens_ > 0 || CpuNs(tokens).has_value();
  return known || tokens < 2 * kProbeTokens ? 0 : kProbeTokens;
}

bool PrefillChoice::OnGpu(uint32_t tokens) const {
  if (least_tokens_ > 0) return tokens >= least_tokens_;
  const std::optional<double> cpu = CpuNs(tokens);
  return cpu.has_value() && GpuNs(tokens) < *cpu;
}

void PrefillChoice::Record(bool on_gpu, uint32_t tokens, int64_t ns) {
  if (tokens == 0 || ns <= 0) return;
  if (on_gpu && !gpu_is_warm_) {
    gpu_is_warm_ = true;
    return;
  }
  Class& entry = (on_gpu ? gpu_ : cpu_)[ClassOf(tokens)];
  const double share = entry.tokens == 0 ? 1 : 0.5;
  entry.tokens += share * (tokens - entry.tokens);
  entry.ns += share * (static_cast<double>(ns) - entry.ns);
}

std::optional<double> PrefillChoice::CpuNs(uint32_t tokens) const {
  const auto own = static_cast<int>(ClassOf(tokens));
  const Class* nearest = nullptr;
  int distance = 0;
  for (int i = 0; i < static_cast<int>(kClasses); ++i) {
    if (cpu_[i].tokens == 0) continue;
    // Of two as near the longer one: what a piece reads is spread over its tokens.
    if (nearest != nullptr && std::abs(i - own) > distance) continue;
    nearest = &cpu_[i];
    distance = std::abs(i - own);
  }
  if (nearest == nullptr) return std::nullopt;
  return nearest->ns / nearest->tokens * tokens;
}

double PrefillChoice::GpuNs(uint32_t tokens) const {
  const uint32_t own = ClassOf(tokens);
  for (uint32_t i = own; i < kClasses; ++i) {
    if (gpu_[i].tokens > 0) return gpu_[i].ns;
  }
  for (uint32_t i = own; i-- > 0;) {
    if (gpu_[i].tokens > 0) return gpu_[i].ns * std::max(1.0, tokens / gpu_[i].tokens);
  }
  return gpu_expected_ns_;
}

uint32_t PrefillChoice::break_even_tokens() const {
  if (least_tokens_ > 0) return least_tokens_;
  for (uint32_t i = 0; i < kClasses; ++i) {
    if (OnGpu(uint32_t{1} << i)) return uint32_t{1} << i;
  }
  return 0;
}

}  // namespace moraine
