// The maths of one coordinate and of one block: scales, codes, values. Host and device; the vector loops of the CPU
// compute the same, sixteen at a time.
#pragma once
#include "philox.h"
#include "tables.h"
#include "wire.h"

namespace commpress {

// ---- bfloat16 and binary16, round to nearest even ----

COMMPRESS_HD uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? (u >> 16 & 0x8000u) | 0x7FC0u : rounded);
}

COMMPRESS_HD float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

COMMPRESS_HD uint16_t to_fp16(float x) {
  const uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
  // Below 2^-14 the result is denormal: adding 0.5 makes the float adder round to its unit 2^-24. Else rebias the
  // exponent and round the mantissa.
  const uint32_t denormal = bits_of(float_of(a) + 0.5f) - bits_of(0.5f);
  const uint32_t normal = (a - (112u << 23) + 0xFFFu + ((a >> 13) & 1)) >> 13;
  const uint32_t finite = a < (113u << 23) ? denormal : normal > 0x7C00u ? 0x7C00u : normal;
  return static_cast<uint16_t>(sign | (a > 0x7F800000u ? 0x7E00u : a >= (143u << 23) ? 0x7C00u : finite));
}

COMMPRESS_HD float from_fp16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, a = h & 0x7FFFu;
  const float denormal = static_cast<float>(static_cast<int32_t>(a)) * 5.9604644775390625e-8f;  // 2^-24
  const uint32_t normal = (a << 13) + ((a >= 0x7C00u ? 224u : 112u) << 23);
  return float_of(sign | (a < 0x0400u ? bits_of(denormal) : normal));
}

// ---- magnitudes of blocks that need no care: squares, sums and reciprocals stay in range ----

COMMPRESS_HD bool ordinary(float a) { return a >= 0x1p-60f && a <= 0x1p100f; }  // false for NaN

// Exponent e with |x| in [2^e, 2^(e+1)), x finite and not zero; also for denormals.
COMMPRESS_HD int exponent_of(float x) {
  const uint32_t a = bits_of(x) & 0x7FFFFFFFu;
  if (a >= 0x00800000u) return static_cast<int>(a >> 23) - 127;
  return static_cast<int>(bits_of(float_of(a) * 0x1p64f) >> 23) - 127 - 64;
}

// ---- uniform: stochastic rounding on the grid of one group ----

struct UniformScale {
  uint16_t code;     // bfloat16 on the wire
  float multiplier;  // the coordinate's multiplier on the way to the 32-bit fixed point code, 2^(32-bits) / step
};

// Top level L in steps; half a level for one bit, where the codes stand for -1 and +1.
COMMPRESS_HD float top_level(int bits) { return bits == 1 ? 0.5f : static_cast<float>((1 << (bits - 1)) - 1); }

// largest = largest absolute value of the group after multiplication by 2^-exponent.
COMMPRESS_HD UniformScale uniform_scale(float largest, int exponent, int bits, float gain) {
  const float levels = bits == 1 ? 1.0f : top_level(bits);
  const uint32_t up = (bits_of(scale_by_power(divide(largest * gain, levels), exponent)) + 0xFFFFu) >> 16;
  uint16_t code = static_cast<uint16_t>(up > SCALE16_LARGEST ? SCALE16_LARGEST : up);
  while (bits_of(levels * from_bf16(code)) >= SCALE32_INFINITY) --code;  // finite values stay finite
  if (code == 0) return {0, 0.0f};
  float inverse = divide(gain, scale_by_power(from_bf16(code), -exponent));
  if (bits == 1) inverse *= 0.5f;
  // No code may pass the top level, whatever the roundings did.
  const float top = top_level(bits);
  if (largest * inverse > top) inverse = divide(top, largest);
  while (largest * inverse > top) inverse = float_of(bits_of(inverse) - 1);
  return {code, inverse * static_cast<float>(1u << (32 - bits - 1)) * 2.0f};
}

COMMPRESS_HD uint32_t uniform_half(int bits) { return bits == 1 ? 0x40000000u : 0x80000000u; }

// The bits of a random word that are added below the code.
COMMPRESS_HD uint32_t uniform_noise_mask(int bits) { return 0xFFFFFFFFu >> bits; }

COMMPRESS_HD uint32_t uniform_code(float x, float multiplier, int bits, uint32_t random) {
  const uint32_t fixed = static_cast<uint32_t>(round_to_int(x * multiplier));
  return (fixed + (random & uniform_noise_mask(bits)) + uniform_half(bits)) >> (32 - bits);
}

COMMPRESS_HD float uniform_value(uint32_t code, int bits, float step) {
  const int32_t level = bits == 1 ? 2 * static_cast<int32_t>(code) - 1 : static_cast<int32_t>(code) - (1 << (bits - 1));
  return static_cast<float>(level) * step;
}

// ---- selection, below one bit ----

// Window j of k over n coordinates is [j n / k, (j+1) n / k); the selected coordinate is drawn from it.
struct Window {
  int64_t chosen, length;
};
COMMPRESS_HD Window window(const Key& key, uint64_t start, int64_t n, int64_t k, int64_t j) {
  const int64_t begin = j * n / k, length = (j + 1) * n / k - begin;
  return {begin + multiply_high(selection_word(key, start, static_cast<uint32_t>(j)), static_cast<uint32_t>(length)),
          length};
}

// A selected value stands for its window.
COMMPRESS_HD float window_value(float x, int64_t length) {
  const float value = x * static_cast<float>(length), limit = float_of(SCALE32_INFINITY - 1);
  return value > limit ? limit : value < -limit ? -limit : value;
}

// ---- Lloyd-Max ----

// Above this scale a value could pass the largest float; a finite block decodes to finite values.
constexpr float LARGE_FACTOR = 0x1p100f;
COMMPRESS_HD float finite_product(float level, float factor) {
  const float limit = float_of(SCALE32_INFINITY - 1), value = level == 0.0f ? level : level * factor;
  return value > limit ? limit : value < -limit ? -limit : value;
}

// Code of v = y * (PER_SIGMA / deviation): the number of thresholds that v reaches.
template <int B>
COMMPRESS_HD int32_t lloyd_code(float v) {
  using L = LloydMax<B>;
  const float last = L::CELLS - 0.0625f, p = v < -L::CELLS ? -L::CELLS : v < last ? v : last;
  const int32_t toward_zero = static_cast<int32_t>(p),
                cell = toward_zero - (p < static_cast<float>(toward_zero)) + L::CELLS;
  return L::CELL_BASE[cell] + (v >= L::CELL_THRESHOLD[cell] ? 1 : 0);
}

// The k-th threshold above zero.
template <int B>
COMMPRESS_HD constexpr float positive_threshold(int k) {
  using L = LloydMax<B>;
  for (int cell = L::CELLS + 1; cell < 2 * L::CELLS; ++cell)
    if (L::CELL_THRESHOLD[cell] < 1e38f && k-- == 0) return L::CELL_THRESHOLD[cell];
  return L::CELL_THRESHOLD[2 * L::CELLS - 1];
}

// Scale on the wire. energy = sum x^2 and deviation = s are of the block after multiplication by 2^-exponent; product =
// P, square = Q of docs/wire-format.md 4.3; gram = c, the factor by which the rotations stretch. Unbiased: Vargaftik et
// al., "EDEN", 2022.
COMMPRESS_HD uint32_t lloyd_scale(float energy, float deviation, float product, float square, float gram, bool centroid,
                                  int exponent, float gain) {
  if (!(product > 0.0f)) return 0;
  const float ratio = centroid ? divide(deviation * product, gram * square) : divide(energy, deviation * product);
  const uint32_t bits = bits_of(scale_by_power(ratio, exponent) * gain);
  return bits < SCALE32_INFINITY ? bits : SCALE32_INFINITY - 1;
}

}  // namespace commpress
