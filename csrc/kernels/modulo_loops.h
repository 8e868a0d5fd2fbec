// `modulo`, one code path. A modulo_*.cpp names the path with COMMPRESS_ISA and includes the lanes, then this.
#pragma once
#include "dithered_loops.h"
#include "modulo.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Sum of squares, rows of 16 in order, row r to accumulator r mod 4.
static float energy_of(const float* x, int64_t n) {
  Floats sums[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  const int64_t rows = n / 16;
  for (int64_t row = 0; row < rows; ++row) {
    const Floats v = load(x + 16 * row);
    sums[row % 4] = sums[row % 4] + v * v;
  }
  if (n % 16) {
    float rest[16] = {};
    memcpy(rest, x + 16 * rows, 4 * (n % 16));
    const Floats v = load(rest);
    sums[rows % 4] = sums[rows % 4] + v * v;
  }
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// A block of finite values, not all zero, brought to where squares stay in range. Returns the root mean square of
// 2^exponent times the block; `x` then points to those values.
static float root_mean_square(const float*& x, int64_t n, float* own, int& exponent) {
  exponent = 0;
  float energy = energy_of(x, n);
  if (!ordinary_energy(energy)) {
    exponent = -exponent_of(float_of(largest_magnitude(x, n)));
    for (int64_t i = 0; i < n; ++i) own[i] = scale_by_power(x[i], exponent);
    x = own;
    energy = energy_of(own, n);
  }
  return square_root(divide(energy, static_cast<float>(n)));
}

// x less the nearest multiple of 2^bits.
static COMMPRESS_INLINE Floats wrapped(Floats x, Floats modulus, Floats inverse) {
  return x - to_float(rounded(x * inverse)) * modulus;
}

static void modulo_encode_group(const float* x, const uint32_t* words, int width, float inverse, uint32_t* codes) {
  const Floats f = all(inverse), modulus = all(static_cast<float>(1 << width)),
               over = all(1.0f / static_cast<float>(1 << width)), one = all(static_cast<float>(DITHER_ONE));
  const Ints mask = all((1u << width) - 1);
  for (int64_t i = 0; i < GROUP; i += 16) {
    const Floats z = wrapped(load(x + i) * f, modulus, over);
    const Ints sum = rounded(z * one) + shift_right(load(words + i), 32 - DITHER_BITS);
    store(codes + i, shift_right(sum, DITHER_BITS) & mask);
  }
}

void modulo_encode(const Modulo& m, const Key& key, int64_t offset, const float* x, int64_t numel, float gain,
                   uint8_t* out) {
  const Philox random(key, DITHER);
  for (int64_t i = 0; i < numel; i += BLOCK) {
    const int64_t n = numel - i < BLOCK ? numel - i : BLOCK, nbytes = integers_nbytes(n, m.bits);
    const uint32_t largest = largest_magnitude(x + i, n);
    float own[BLOCK];
    const float* from = x + i;
    uint32_t scale = largest >= SCALE32_INFINITY ? SCALE32_NON_FINITE : 0;
    float step = 0.0f;
    if (largest != 0 && scale == 0) {
      int exponent;
      step = root_mean_square(from, n, own, exponent) * m.step;
      scale = bits_of(scale_by_power(step, -exponent) * gain);
      if (scale >= SCALE32_INFINITY) scale = SCALE32_INFINITY - 1;
    }
    memcpy(out, &scale, 4);
    out += 4;
    if (scale == 0 || scale == SCALE32_NON_FINITE) {
      memset(out, 0, nbytes);
      out += nbytes;
      continue;
    }
    const float inverse = divide(1.0f, step);
    for (int64_t j = 0; j < n; j += GROUP) {
      const int64_t count = n - j < GROUP ? n - j : GROUP;
      float padded[GROUP];
      const float* group = from + j;
      if (count < GROUP) {
        memset(padded, 0, sizeof padded);
        memcpy(padded, group, 4 * count);
        group = padded;
      }
      uint32_t words[GROUP], codes[GROUP];
      group_words(random, static_cast<uint64_t>(offset + i + j), words);
      modulo_encode_group(group, words, m.bits, inverse, codes);
      pack_codes(codes, count, m.bits, out);
      out += packed_nbytes(count, m.bits);
    }
  }
}

static void modulo_decode_group(const uint32_t* codes, const uint32_t* words, const float* side, const Modulo& m,
                                float center, float step, float* values) {
  const Floats modulus = all(static_cast<float>(1 << m.bits)), over = all(1.0f / static_cast<float>(1 << m.bits)),
               fine = all(0.5f / DITHER_ONE), c = all(center), shrink = all(m.shrink), s = all(step);
  const Ints mean = all(DITHER_ONE - 1);
  for (int64_t i = 0; i < GROUP; i += 16) {
    const Ints dither = shift_left(shift_right(load(words + i), 32 - DITHER_BITS), 1) - mean;
    const Floats sent = to_float(load(codes + i)) - to_float(dither) * fine, guess = load(side + i) * c;
    store(values + i, (guess + wrapped(sent - guess, modulus, over) * shrink) * s);
  }
}

void modulo_decode(const Modulo& m, const Key& key, int64_t offset, const uint8_t* in, const float* side, int64_t numel,
                   float* out, bool accumulate, float gain, float beta) {
  const Philox random(key, DITHER);
  const Sink sink{delivery_of(accumulate, false, beta), gain, beta};
  const float most = float_of(SCALE32_INFINITY - 1);
  for (int64_t i = 0; i < numel; i += BLOCK) {
    const int64_t n = numel - i < BLOCK ? numel - i : BLOCK, nbytes = integers_nbytes(n, m.bits);
    uint32_t scale;
    memcpy(&scale, in, 4);
    in += 4;
    const uint32_t largest = largest_magnitude(side + i, n);
    if (scale == 0) {
      deliver_constant(out + i, n, 0.0f, sink);
    } else if (scale >= SCALE32_INFINITY || largest >= SCALE32_INFINITY) {
      deliver_constant(out + i, n, float_of(0x7FC00000u), sink);
    } else {
      float own[BLOCK], center = 0.0f;
      const float* from = side + i;
      int exponent;
      if (largest != 0) center = divide(m.center, root_mean_square(from, n, own, exponent));
      const uint8_t* codes_in = in;
      for (int64_t j = 0; j < n; j += GROUP) {
        const int64_t count = n - j < GROUP ? n - j : GROUP;
        float padded[GROUP], values[GROUP];
        const float* group = from + j;
        uint32_t words[GROUP], codes[GROUP];
        if (count < GROUP) {
          memset(codes, 0, sizeof codes);
          memset(padded, 0, sizeof padded);
          memcpy(padded, group, 4 * count);
          group = padded;
        }
        unpack_codes(codes_in, count, m.bits, codes);
        codes_in += packed_nbytes(count, m.bits);
        group_words(random, static_cast<uint64_t>(offset + i + j), words);
        modulo_decode_group(codes, words, group, m, center, float_of(scale) * gain, values);
        for (int64_t k = 0; k < count; ++k) {
          const float value = values[k] > most ? most : values[k] < -most ? -most : values[k];
          deliver(out + i + j + k, value, sink);
        }
      }
    }
    in += nbytes;
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
