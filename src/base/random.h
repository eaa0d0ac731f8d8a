// A seeded generator with the same sequence on every platform (std:: distributions have none).
#pragma once

#include <cstdint>

namespace moraine {

// splitmix64 (Steele, Lea, Flood 2014). Not for cryptography. Thread-compatible.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  // Uniform in [0, bound); 0 for bound 0. Bias below 2^-32 for the bounds in use here.
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
  }
  // Uniform in [0, 1) with 53 bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  bool Chance(double probability) { return Uniform() < probability; }
  // Approximately standard normal (sum of 12 uniforms, Irwin-Hall): for test weights.
  float Normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += Uniform();
    return static_cast<float>(sum);
  }

 private:
  uint64_t state_;
};

}  // namespace moraine
