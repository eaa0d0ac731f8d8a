// What the nibbles of a 4-bit encoding stand for: value = codes[nibble] * scale.
//
// Codes are integers of at most 8 bits, so that one byte shuffle makes a nibble an operand of the
// integer dot products that q8 and q4 use, whatever the table.
#pragma once

#include <cstdint>

namespace moraine {

// As GGUF's Q4_0 and compressed-tensors' INT4 have it.
struct LinearCodes {
  static constexpr int8_t kCodes[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
};
// E2M1 of the OCP Microscaling specification (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), twice
// its value.
struct E2M1Codes {
  static constexpr int8_t kCodes[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
};
// ggml's table of IQ4_NL (kvalues_iq4nl).
struct Iq4NlCodes {
  static constexpr int8_t kCodes[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
};

}  // namespace moraine
