// Dithered rounding to integers in fixed point: what `homomorphic` and `modulo` have in common. The vector loops of the
// CPU compute the same, sixteen at a time.
#pragma once
#include "philox.h"
#include "wire.h"

namespace commpress {

constexpr int DITHER_BITS = 19;  // behind the point of a rounded value and of its dither
constexpr uint32_t DITHER_ONE = 1u << DITHER_BITS;
constexpr int MOST_CODE_BITS = 8, MOST_WIDTH = 16;

// Codes of `width` bits: whole groups, then a bit string.
COMMPRESS_HD int64_t integers_nbytes(int64_t numel, int width) {
  return numel / GROUP * (GROUP / 8) * width + packed_nbytes(numel % GROUP, width);
}

// The dither of a 32-bit word, in units of 2^-19: 0 .. 2^19 - 1.
COMMPRESS_HD uint32_t dither_of(uint32_t word) { return word >> (32 - DITHER_BITS); }

}  // namespace commpress
