// Random weights, written straight as tiles: what a synthetic model is filled with.
//
// Why not random floats through EncodeRows: choosing scales costs some 10 ns a weight, so that a 17 GB
// store would take minutes; these bytes cost less than writing them to a drive. The values are those of
// no trained model, but every kernel, cache and drive treats them alike.
#pragma once

#include <cstdint>
#include <span>

#include "compute/encoding.h"

namespace moraine {

// Fills `tiles` (a multiple of TileBytes(encoding), 8-byte aligned) with independent weights of mean
// zero and about the given standard deviation: exactly that for f32 and quantised encodings but for the
// rounding of the scale, within a factor of sqrt(2) for bf16 and mxfp4; the mean of iq4_nl is 4 % of
// the deviation. All tiles are full: rows and columns of the
// matrix must be multiples of 16 and 64, because padding would have to be zero. The same seed gives the
// same bytes everywhere.
void FillRandomTiles(Encoding encoding, float standard_deviation, uint64_t seed,
                     std::span<std::byte> tiles);

}  // namespace moraine
