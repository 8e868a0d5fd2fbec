// Number formats, encoded: statistics of scale blocks -> scales.
#pragma once
#include "cuda_formats.h"

namespace commpress {
namespace cuda {

constexpr int SCALES = static_cast<int>(MAX_SCALES);
constexpr int NOT_FINITE = 1 << 20;  // in place of an exponent

// Shared memory of a block of threads.
struct FormatSpace {
  alignas(16) uint32_t codes[BLOCK];     // values while sums are taken, then codes
  alignas(16) uint32_t largest[SCALES];  // magnitudes of scale blocks or of 128 coordinates; then bytes of five trits
  float multiplier[SCALES];              // first the largest magnitude, as a coder sees it
  int exponent[SCALES];                  // taken off the values
  float partial[SCALES];
  uint32_t scratch[32];
};

// ---- magnitudes ----

// Values by lane; zeros behind the n-th.
COMMPRESS_DEVICE void load_values(const Values& x, const Spot& at, int n, float (&values)[4][8]) {
  const int begin = 16 * first_row(at) + 4 * at.quad;
  if (begin + 16 * 7 + 4 <= n) {
    load_lanes(x, begin, values);
    return;
  }
  for (int row = 0; row < 8; ++row)
    for (int lane = 0; lane < 4; ++lane) {
      const int i = begin + 16 * row + lane;
      values[lane][row] = i < n ? x[i] : 0.0f;
    }
}

// The largest magnitudes of scale blocks, or of 128 coordinates where those are longer. A barrier must follow.
COMMPRESS_DEVICE void note_largest(const float (&values)[4][8], const Spot& at, const Shape& shape, uint32_t* largest) {
  uint32_t most[8];
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row)
    most[row] = larger(larger(magnitude(values[0][row]), magnitude(values[1][row])),
                       larger(magnitude(values[2][row]), magnitude(values[3][row])));
  COMMPRESS_UNROLL_ALL
  for (int step = 0; step < 3; ++step) {
    if (step >= shape.kept) continue;
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row)
      if (row % (2 << step) == 0) most[row] = larger(most[row], most[row + (1 << step)]);
  }
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    if (row & ((1 << shape.kept) - 1)) continue;
    uint32_t top = larger(most[row], __shfl_xor_sync(ALL_LANES, most[row], 1));
    top = larger(top, __shfl_xor_sync(ALL_LANES, top, 2));
    if (at.quad == 0) largest[(first_row(at) + row) >> shape.kept] = top;
  }
}

// ---- scales. Each leaves the multiplier, and tells whether the block's values need care ----

struct Statistic {
  float largest;  // times gain; 0 for a block that is not finite
  bool finite, care;
};

COMMPRESS_DEVICE Statistic statistic_of(const FormatSpace& s, const Shape& shape, int b, float gain) {
  const int more = shape.shift - shape.kept;
  uint32_t top = 0;
  for (int i = b << more; i < (b + 1) << more; ++i) top = larger(top, s.largest[i]);
  const bool finite = top < FLOAT_INFINITY;
  return {finite ? clamped_product(float_of(top), gain) : 0.0f, finite,
          !(float_of(top) * gain <= float_of(FLOAT_LARGEST))};
}

COMMPRESS_DEVICE bool float_scales(FormatSpace& s, const Shape& shape, float gain, uint8_t* out) {
  const uint32_t round_up = scale_round_up(shape.format, shape.form);
  bool care = false;
  for (int b = thread(); b < shape.scales; b += threads()) {
    const Statistic found = statistic_of(s, shape, b, gain);
    const uint32_t scale = float_scale(bits_of(found.largest), round_up, shape.form);
    out[b] = static_cast<uint8_t>(found.finite ? scale : SCALE8_NON_FINITE);
    s.multiplier[b] = float_of((254 - scale) << 23);
    s.exponent[b] = found.finite ? 0 : NOT_FINITE;
    care = care || found.care;
  }
  return care;
}

COMMPRESS_DEVICE bool nvfp4_scales(FormatSpace& s, const Shape& shape, float gain, uint8_t* out) {
  const FloatForm e4m3 = e4m3_form();
  uint32_t top = 0;
  bool care = false;
  for (int b = thread(); b < shape.scales; b += threads()) {
    const Statistic found = statistic_of(s, shape, b, gain);
    s.multiplier[b] = found.largest;
    s.exponent[b] = found.finite ? 0 : NOT_FINITE;
    top = larger(top, bits_of(found.largest));
    care = care || found.care;
  }
  const float most = float_of(block_largest(top, s.scratch));
  const int exponent = plain_magnitude(most) ? 0 : exponent_of(most);
  const Nvfp4Outer outer = nvfp4_outer(scale_by_power(most, -exponent), exponent);
  if (thread() == 0) store_word(bits_of(outer.wire), out);
  for (int b = thread(); b < shape.scales; b += threads()) {
    const uint32_t scale =
        nvfp4_scale(scale_by_power(s.multiplier[b], -exponent), outer, e4m3, shape.format.stochastic);
    const bool finite = s.exponent[b] != NOT_FINITE;
    out[4 + b] = static_cast<uint8_t>(finite ? scale : E4M3_NAN);
    s.multiplier[b] = nvfp4_multiplier(scale, outer, e4m3);
    if (finite) s.exponent[b] = exponent;
  }
  return care || exponent != 0;
}

// Of blocks whose scale is a function of more than their largest magnitude: what has to come before.
COMMPRESS_DEVICE bool take_exponents(FormatSpace& s, const Shape& shape, float gain) {
  bool care = false;
  for (int b = thread(); b < shape.scales; b += threads()) {
    const Statistic found = statistic_of(s, shape, b, gain);
    const int exponent = plain_magnitude(found.largest) ? 0 : exponent_of(found.largest);
    s.multiplier[b] = scale_by_power(found.largest, -exponent);
    s.exponent[b] = found.finite ? exponent : NOT_FINITE;
    care = care || found.care || exponent != 0;
  }
  return care;
}

COMMPRESS_DEVICE void put_level_scale(FormatSpace& s, const Shape& shape, int b, float norm, uint8_t* out) {
  const bool finite = s.exponent[b] != NOT_FINITE;
  const LevelScale scale = level_scale(s.multiplier[b], norm, finite ? s.exponent[b] : 0, shape.format.levels);
  store_word(finite ? bits_of(scale.step) : SCALE32_NON_FINITE, out + 4 * b);
  s.multiplier[b] = finite ? scale.multiplier * level_unit(shape.format) : 0.0f;
}

// Sums of term(value) over scale blocks, in the order of `P` in docs/wire-format.md section 5: put(b, sum) is called by
// one thread for each. Values are in `codes`. Ends in step.
template <class F, class G>
COMMPRESS_DEVICE void sum_scale_blocks(FormatSpace& s, const Shape& shape, const F& term, const G& put) {
  const float* const y = reinterpret_cast<const float*>(s.codes);
  const int rows = 1 << shape.shift, warp = thread() / 32 * 32;
  const bool long_rows = shape.shift >= 6;  // then a thread has one of the four accumulators, else all of them
  if (long_rows) {
    for (int item = thread(); item < 64 * shape.scales; item += threads()) {
      float sum = 0.0f;
      const int first = (item / 64 << shape.shift) + item / 16 % 4;
      for (int row = 0; row < rows; row += 4) sum += term(y[16 * (first + row) + item % 16]);
      s.partial[item] = sum;
    }
    __syncthreads();
  }
  for (int base = 0; base + warp < 16 * shape.scales; base += threads()) {
    const int item = base + thread(), b = smaller(item / 16, shape.scales - 1), lane = item % 16;
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (long_rows) {
      COMMPRESS_UNROLL_ALL
      for (int k = 0; k < 4; ++k) sum[k] = s.partial[64 * b + 16 * k + lane];
    } else {
      for (int row = 0; row < rows; row += 4) {
        COMMPRESS_UNROLL_ALL
        for (int k = 0; k < 4; ++k)
          if (row + k < rows) sum[k] += term(y[16 * ((b << shape.shift) + row + k) + lane]);
      }
    }
    float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int width = 8; width; width /= 2) all += __shfl_down_sync(ALL_LANES, all, width, 16);
    if (lane == 0 && item < 16 * shape.scales) put(b, all);
  }
  __syncthreads();
}

// Scales of signs, from the values in `codes`.
COMMPRESS_DEVICE void sign_scales(FormatSpace& s, const Shape& shape, int n, uint8_t* out) {
  const int block = shape.format.block;
  const auto put = [&](int b, int64_t count, float sum, int at) {
    const bool finite = s.exponent[b] != NOT_FINITE;
    store_word(finite ? bits_of(mean_scale(sum, count, s.exponent[b])) : SCALE32_NON_FINITE, out + at);
  };
  if (shape.format.scheme == SIGN) {
    sum_scale_blocks(
        s, shape, [](float v) { return fabsf(v); },
        [&](int b, float sum) { put(b, smaller(n - b * block, block), sum, 4 * b); });
    return;
  }
  // Padding is +0. A float holds the count exactly.
  sum_scale_blocks(
      s, shape, [](float v) { return bits_of(v) >> 31 ? 1.0f : 0.0f; },
      [&](int b, float negative) { s.multiplier[b] = negative; });
  sum_scale_blocks(
      s, shape, [](float v) { return v > 0.0f ? v : 0.0f; },
      [&](int b, float sum) { put(b, smaller(n - b * block, block) - static_cast<int>(s.multiplier[b]), sum, 8 * b); });
  sum_scale_blocks(
      s, shape, [](float v) { return v < 0.0f ? -v : 0.0f; },
      [&](int b, float sum) { put(b, static_cast<int>(s.multiplier[b]), sum, 8 * b + 4); });
}

}  // namespace cuda
}  // namespace commpress
