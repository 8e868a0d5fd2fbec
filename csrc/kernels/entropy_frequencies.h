// What follows from the level of a class of the entropy-coded quantisers: its step, its raw bits and the tails that its
// symbols' frequencies are differences of. In integers alone, but for the step, on the host and on a device
// (docs/wire-format.md, section 4.8).
#pragma once
#include "entropy_tables.h"
#include "hd.h"

namespace commpress {
namespace entropy {

constexpr int PRECISION = 12, TOTAL = 1 << PRECISION;
constexpr int SYMBOLS = 64;        // value + 32; 0 is the escape
constexpr int LARGEST = 31;        // largest magnitude with a symbol
constexpr int CELLS = 8;           // of the dither's magnitude
constexpr int64_t HALF = 1 << 15;  // one half, in 2^-16 of a step

// A device cannot read the host's constants, so it has some of its own.
struct Tables {
  uint32_t survival[8][289];
  uint32_t inverse[32];
  uint32_t level[16];
  uint16_t rate[129];
  float step_coarse[32], step_fine[64];
  uint8_t dead_zone[129];
};
constexpr Tables made_tables() {
  Tables t{};
  for (int shape = 0; shape < 8; ++shape)
    for (int i = 0; i < 289; ++i) t.survival[shape][i] = SURVIVAL[shape][i];
  for (int i = 0; i < 32; ++i) t.inverse[i] = INVERSE[i];
  for (int i = 0; i < 16; ++i) t.level[i] = LEVEL[i];
  for (int i = 0; i < 129; ++i) t.rate[i] = RATE[i];
  for (int i = 0; i < 32; ++i) t.step_coarse[i] = STEP_COARSE[i];
  for (int i = 0; i < 64; ++i) t.step_fine[i] = STEP_FINE[i];
  for (int i = 0; i < 129; ++i) t.dead_zone[i] = DEAD_ZONE[i];
  return t;
}
inline constexpr Tables HOST_TABLES = made_tables();
#if defined(__CUDACC__)
__device__ const Tables DEVICE_TABLES = made_tables();
#endif
COMMPRESS_HD const Tables& tables() {
#if defined(__CUDA_ARCH__)
  return DEVICE_TABLES;
#else
  return HOST_TABLES;
#endif
}

// 2^(j / 2048).
COMMPRESS_HD double step_of(int64_t j) {
  const int64_t f = j & 2047;
  return scale_by_power(
      static_cast<double>(tables().step_coarse[f >> 6]) * static_cast<double>(tables().step_fine[f & 63]),
      static_cast<int>((j - f) / 2048));
}

// A table over levels of 1/16 octave from -64 to 64.
template <class T>
COMMPRESS_HD int64_t interpolated(const T (&table)[129], int64_t relative, int64_t scale) {
  int64_t place = relative + 64 * 128;
  place = place < 0 ? 0 : place > 128 * 128 - 1 ? 128 * 128 - 1 : place;
  const int64_t i = place >> 7, f = place & 127;
  return (table[i] * (128 - f) + table[i + 1] * f) * scale >> 7;
}

// Bits of a normal source in 1/4096, at a level of its mean magnitude in 1/2048 octave above the step.
COMMPRESS_HD int64_t rate_at(int64_t relative) {
  return interpolated(tables().rate, relative, 1) + (relative > 64 * 128 ? 2 * (relative - 64 * 128) : 0);
}

// -log2(f / 4096) in 2^-16 bit, f = 1 .. 4096.
COMMPRESS_HD int64_t length_of(uint32_t f) {
  const int whole = 63 - leading_zeros(f);
  uint64_t m = static_cast<uint64_t>(f) << (30 - whole);
  int64_t log = whole;
  for (int i = 0; i < 16; ++i) {
    m = m * m >> 30;
    log = log << 1 | static_cast<int64_t>(m >> 31);
    m >>= m >> 31;
  }
  return (static_cast<int64_t>(PRECISION) << 16) - log;
}

// Level of a class in 1/32 octave.
COMMPRESS_HD int64_t nominal(int64_t relative) { return (relative + 32) >> 6; }

// Low bits of a value that are sent as they are.
COMMPRESS_HD int raw_bits(int64_t relative) {
  const int64_t raw = (nominal(relative) - 64 + 31) >> 5;
  return raw < 0 ? 0 : static_cast<int>(raw);
}

// The offset f of floor(|v| + f) in 2^-16.
COMMPRESS_HD int64_t dead_zone(int64_t relative) {
  return raw_bits(relative) ? HALF : interpolated(tables().dead_zone, relative, 256);
}

// P(X > z) in 2^-30; z in 2^-16.
COMMPRESS_HD int64_t survival(int shape, int64_t z) {
  const uint32_t* const s = tables().survival[shape];
  if (z >= 1 << 21) z = (1 << 21) - 1;
  if (z < 1 << 12) return (1 << 29) - (((1 << 29) - static_cast<int64_t>(s[0])) * z >> 12);
  const int e = 63 - leading_zeros(static_cast<uint64_t>(z)), shift = e - 5;
  const int64_t i = ((e - 12) << 5) + ((z >> shift) & 31);
  return s[i] - ((static_cast<int64_t>(s[i]) - s[i + 1]) * (z & ((1 << shift) - 1)) >> shift);
}

// Thresholds in 2^-16 step to multiples of the mean magnitude, in 2^-16.
COMMPRESS_HD int64_t scaled(int64_t t, int64_t level) {
  level = level < -320 ? -320 : level > 320 ? 320 : level;
  return t * tables().inverse[level & 31] >> (16 + (level >> 5));
}

// The part above the threshold of magnitude k >= 1, without dither or with raw bits; `level` in 1/32 octave.
COMMPRESS_HD int64_t plain_tail(int shape, int64_t level, int64_t offset, int k) {
  return survival(shape, scaled(k * int64_t{65536} - offset, level));
}

// The part above the threshold of value k under dithers of a cell.
COMMPRESS_HD int64_t dithered_tail(int shape, int64_t level, int cell, int k) {
  const int64_t t = k * int64_t{65536} - HALF - ((2 * cell + 1) << 11);
  const int64_t tail = survival(shape, scaled(t < 0 ? -t : t, level));
  return t < 0 ? (int64_t{1} << 30) - tail : tail;
}

COMMPRESS_HD int32_t frequency(int64_t above, int64_t beyond) {
  const int64_t f = ((above - beyond) * TOTAL + (1 << 29)) >> 30;
  return f < 1 ? 1 : static_cast<int32_t>(f);
}

}  // namespace entropy
}  // namespace commpress
