// `homomorphic`: codes on a grid that all ranks share, so that their sum is the code of the sum. The layout and the
// maths of one scale and of one coordinate, for host and device; docs/wire-format.md 4.11 is the prose form.
#pragma once
#include "dithered.h"
#include "quantise.h"

namespace commpress {

constexpr int MOST_WORKERS = 2048;

struct Grid {
  int32_t bits;   // of one worker's codes
  int32_t block;  // coordinates that share a scale, a power of two from 512 to 4096
  bool subtract;  // the decoder subtracts the dithers
};

// A scale is the bfloat16 at or above the largest magnitude M; up to 2^128, whose pattern is that of infinity.
constexpr uint16_t GRID_LARGEST = 0x7F80, GRID_NON_FINITE = 0xFFFF;
COMMPRESS_HD bool grid_scale_valid(uint16_t s) { return s <= GRID_LARGEST || s == GRID_NON_FINITE; }

// largest = bits of the largest magnitude of a block.
COMMPRESS_HD uint16_t grid_scale(uint32_t largest) {
  return largest >= SCALE32_INFINITY ? GRID_NON_FINITE : static_cast<uint16_t>((largest + 0xFFFFu) >> 16);
}

COMMPRESS_HD int64_t scales_nbytes(const Grid& g, int64_t numel) { return 2 * ((numel + g.block - 1) / g.block); }

// Bits of the sum of `workers` codes: b + ceil(log2 n).
COMMPRESS_HD int sum_width(int bits, int64_t workers) {
  int width = bits;
  for (int64_t n = 1; n < workers; n *= 2) ++width;
  return width;
}

// A block is worked on after multiplication by 2^exponent, so that nothing over- or underflows.
COMMPRESS_HD int grid_exponent(uint16_t scale) {
  return scale >= 0x7180 ? -64 : scale < 0x2180 ? 80 : 0;  // M >= 2^100, M < 2^-60
}

// M 2^exponent; the scale is neither zero nor GRID_NON_FINITE.
COMMPRESS_HD float grid_range(uint16_t scale) {
  const uint32_t bits = static_cast<uint32_t>(scale) << 16;
  const int exponent = grid_exponent(scale);
  return exponent < 0 ? float_of(bits - (64u << 23)) : scale_by_power(float_of(bits), exponent);
}

// The grid has 2^b levels from -M to M: half of its range in fixed point.
COMMPRESS_HD uint32_t grid_half(int bits) { return ((1u << bits) - 1) << (DITHER_BITS - 1); }

// Of a coordinate, on the way to fixed point; no coordinate up to `range` passes grid_half.
COMMPRESS_HD float grid_multiplier(float range, int bits) {
  const float half = static_cast<float>(grid_half(bits));
  float multiplier = divide(half, range);
  while (range * multiplier > half) multiplier = float_of(bits_of(multiplier) - 1);
  return multiplier;
}

COMMPRESS_HD float grid_half_step(float range, int bits) { return divide(range, static_cast<float>((1 << bits) - 1)); }

// Worker i's random word of a coordinate is first + i * stride: pairwise independent, for two words in all.
COMMPRESS_HD uint32_t worker_word(uint32_t first, uint32_t stride, uint32_t worker) { return first + worker * stride; }

// The sum of the values in half steps, of a sum of codes and the sum of its dithers.
COMMPRESS_HD float grid_sum(uint32_t code, uint32_t dithers, int bits, uint32_t workers, bool subtract) {
  const float level = static_cast<float>(static_cast<int32_t>(2 * code - workers * ((1u << bits) - 1)));
  if (!subtract) return level;
  const int32_t dither = static_cast<int32_t>(2 * dithers - workers * (DITHER_ONE - 1));
  return level - static_cast<float>(dither) * (1.0f / DITHER_ONE);
}

}  // namespace commpress
