// PrefillChoice: whether a piece of a prompt is computed on the GPU or on the CPU.
//
// To the GPU a piece costs what its experts cost to bring over, the same for one token and for thousands,
// until the tokens themselves take longer; to the CPU about as much a token. So there is a length at which they
// break even, and it moves with the link, the drive, the model and what is resident. Nothing of that is
// guessed: pieces are timed as they come, in classes of length (powers of two), and a piece goes where one
// like it is expected to end sooner:
//
//   CPU   time a token of the nearest class that was measured
//   GPU   time of the nearest class that was measured, from its own upwards: a shorter piece takes no
//         longer; of shorter ones only, in proportion to its tokens. Before the first: the bytes over the link
//
// The CPU's speed is found out by kProbeTokens of the first prompt that has more to offer. The first piece on the
// GPU is not counted: kernels are loaded in it. Times are averaged with the last one at half.
//
// What that costs: where a piece goes hangs on measured times, and a prompt's bits on where it was computed
// (docs/gpu.md). A length fixed by the caller takes both away.
//
// Threads: thread-compatible. Pure: times come from the caller.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

namespace moraine {

class PrefillChoice {
 public:
  static constexpr uint32_t kProbeTokens = 32;

  // least_tokens: fixed, or 0: found out.
  explicit PrefillChoice(uint32_t least_tokens) : least_tokens_(least_tokens) {}

  // Of a piece that brings all experts over; 0 until it is known.
  void set_gpu_expected_ns(double ns) { gpu_expected_ns_ = ns; }

  // Tokens of a piece that go to the CPU first, so that its speed is known; 0: none.
  uint32_t ProbeTokens(uint32_t tokens) const;
  bool OnGpu(uint32_t tokens) const;
  void Record(bool on_gpu, uint32_t tokens, int64_t ns);
  // The shortest piece that would go to the GPU, as far as powers of two tell; 0: not known yet, or none.
  uint32_t break_even_tokens() const;

 private:
  static constexpr uint32_t kClasses = 24;
  struct Class {
    double tokens = 0, ns = 0;  // averages; tokens 0: nothing measured
  };
  static uint32_t ClassOf(uint32_t tokens);
  std::optional<double> CpuNs(uint32_t tokens) const;
  double GpuNs(uint32_t tokens) const;

  const uint32_t least_tokens_;
  double gpu_expected_ns_ = 0;
  bool gpu_is_warm_ = false;
  std::array<Class, kClasses> cpu_, gpu_;
};

}  // namespace moraine
