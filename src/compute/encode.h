// Float rows <-> tiles. Used by the importer, by tests, and by embedding look-ups.
#pragma once

#include <cstdint>
#include <span>

#include "base/status.h"
#include "compute/encoding.h"

namespace moraine {

float Bf16ToFloat(uint16_t bits);
uint16_t FloatToBf16(float value);  // round to nearest even; NaN stays NaN
float F16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);   // round to nearest even, overflow to infinity

// Encodes `row_count` rows that start at row first_row (a multiple of 16) of a rows x cols matrix
// into the panels of `view` (its data must be writable: the caller owns it). source: row_count x
// cols floats, row-major. Padding rows and columns are written as zeros. For quantised
// encodings the scale of each group is chosen by minimising the squared error (docs/quantisation.md
// has what that buys); mxfp4 and iq4_nl, meant for blocks that are carried, take some 5 and 20 times
// as long as q4.
// A quantised encoding refuses, by row and column, a NaN, an infinity, and a value so large that
// its group's scale would not fit f16. The bytes written are the same on every CPU.
//
// importance: empty, or one finite value >= 0 a column, by which the squared error of a quantised
// encoding is weighted (the mean square of the activations that meet the column). Only their ratios
// within a group of 32 count; equal ones give the bytes that none give.
Status EncodeRows(const MatrixView& view, uint32_t first_row, uint32_t row_count,
                  const float* source, std::span<const float> importance = {});

// Decodes one row into cols floats.
void DecodeRow(const MatrixView& view, uint32_t row, float* destination);

}  // namespace moraine
