// `modulo`: the lowest bits of a dithered rounding; the decoder finds the others with side information. Layout and
// maths of one block and of one coordinate, for host and device; docs/wire-format.md 4.12 is the prose form.
#pragma once
#include "dithered.h"
#include "quantise.h"

namespace commpress {

struct Modulo {
  int32_t bits;
  float step;    // over the block's root mean square
  float center;  // of the side information over its root mean square, in steps
  float shrink;  // of what the code adds to the side information
};

COMMPRESS_HD int64_t payload_nbytes(const Modulo& m, int64_t numel) {
  return (numel + BLOCK - 1) / BLOCK * 4 + integers_nbytes(numel, m.bits);
}

COMMPRESS_HD bool modulo_scale_valid(uint32_t s) { return s == SCALE32_NON_FINITE || s < SCALE32_INFINITY; }

// Sums of squares in this range need no care.
COMMPRESS_HD bool ordinary_energy(float e) { return e >= 0x1p-60f && e <= 0x1p100f; }

}  // namespace commpress
