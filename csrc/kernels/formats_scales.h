// The first half of encode(): a statistic of each scale block -> its scale on the wire and its multiplier. A
// formats_*.cpp names the path with COMMPRESS_ISA and includes the lanes before this.
#pragma once
#include "formats_codes.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Trailing zeros of block / 16: rows of a scale block, as a shift.
static int shift_of(int64_t block) { return bit_length(static_cast<uint32_t>(block / 16)) - 1; }

// One block of up to 4096 coordinates on its way to codes.
struct Source {
  const float* values;  // 4096 of them
  float gain;           // what they are still to be multiplied with
  int64_t scales;
  bool prepared;  // values are in `copy`: multiplied by the gain, zeros where not finite, exponents taken off
  alignas(64) float largest[MAX_SCALES];  // |gain * value| of each scale block: finite, its exponent taken off
  float most;                             // the largest of these
  int exponent[MAX_SCALES];               // only if prepared
  bool finite[MAX_SCALES];                // only if prepared
  float multiplier[MAX_SCALES];           // what a coder needs, of each scale block
  float of_row[MAX_SCALES];               // and of each row
  alignas(64) float copy[BLOCK];
};

// Which blocks have their exponents taken off: none, those that are tiny or huge, or all alike if the largest is.
enum class Care { NONE, EACH, ALL };

// Of one scale block of `rows` rows, lane by lane.
static COMMPRESS_INLINE Ints largest_rows(const float* x, int64_t rows) {
  const Ints magnitude = all(0x7FFFFFFFu);
  if (rows < 4) {
    const Ints first = bits(load(x)) & magnitude;
    return rows == 1 ? first : larger(first, bits(load(x + 16)) & magnitude);
  }
  Ints four[4] = {all(0u), all(0u), all(0u), all(0u)};
  for (int64_t row = 0; row < rows; row += 4)
    for (int k = 0; k < 4; ++k) four[k] = larger(four[k], bits(load(x + 16 * (row + k))) & magnitude);
  return larger(larger(four[0], four[1]), larger(four[2], four[3]));
}

// The bits of the largest magnitude of each scale block, sixteen blocks at a time, and gain times it. ROWS: `rows`
// where they are as formats have them by default, else 0.
template <int64_t ROWS>
static void scan(const float* x, int64_t rows, Source& s, uint32_t* largest) {
  const Floats gain = all(s.gain);
  Ints most = all(0u);
  if (ROWS) rows = ROWS;
  for (int64_t first = 0; first < s.scales; first += 16) {
    Ints m[16];
    if (first + 16 <= s.scales && (ROWS == 1 || ROWS == 2)) {
      each<16>([&](auto b) __attribute__((always_inline)) { m[b] = largest_rows(x + (first + b) * 16 * rows, rows); });
    } else {
      for (int64_t b = 0; b < 16; ++b)
        m[b] = first + b < s.scales ? largest_rows(x + (first + b) * 16 * rows, rows) : all(0u);
    }
    const Ints a = largest_lanes(m);
    const Floats product = floats(a) * gain;
    store(largest + first, a);
    store(s.largest + first, product);
    most = larger(most, bits(product) & all(0x7FFFFFFFu));
  }
  s.most = float_of(largest_lane(most));  // NaN, if anything is
}

static void prepare(Source& s, const float* x, int64_t n, int64_t block, float gain, Care care) {
  alignas(64) uint32_t largest[MAX_SCALES];
  s.scales = (n + block - 1) / block;
  s.values = x;
  s.gain = gain;
  s.prepared = n < BLOCK;
  if (s.prepared) {
    memcpy(s.copy, x, 4 * n);
    memset(s.copy + n, 0, 4 * (BLOCK - n));
    s.values = s.copy;
  }
  const int64_t rows = block / 16;
  (rows == 1 ? scan<1> : rows == 2 ? scan<2> : rows == 32 ? scan<32> : scan<0>)(s.values, rows, s, largest);
  s.prepared = s.prepared || !(s.most <= float_of(FLOAT_LARGEST)) || (care == Care::ALL && !plain_magnitude(s.most));
  if (care == Care::EACH)
    for (int64_t b = 0; b < s.scales; ++b) s.prepared = s.prepared || !plain_magnitude(s.largest[b]);
  if (!s.prepared) return;
  s.most = 0.0f;
  for (int64_t b = 0; b < s.scales; ++b) {
    s.finite[b] = largest[b] < FLOAT_INFINITY;
    s.largest[b] = s.finite[b] ? clamped_product(float_of(largest[b]), gain) : 0.0f;
    s.most = s.largest[b] > s.most ? s.largest[b] : s.most;
  }
  for (int64_t b = 0; b < s.scales; ++b) {
    const float a = care == Care::ALL ? s.most : s.largest[b];
    const int e = s.exponent[b] = care == Care::NONE || plain_magnitude(a) ? 0 : exponent_of(a);
    s.largest[b] = scale_by_power(s.largest[b], -e);
    for (int64_t i = b * block; i < (b + 1) * block; ++i)
      s.copy[i] = s.finite[b] ? scale_by_power(clamped_product(s.values[i], gain), -e) : 0.0f;
  }
  if (care == Care::ALL) s.most = scale_by_power(s.most, -s.exponent[0]);
  s.values = s.copy;
  s.gain = 1.0f;
}

// One number for each scale block becomes one for each row.
static COMMPRESS_INLINE void spread(const float* of_scale, int shift, int64_t rows, float* of_row) {
  if (shift >= 4) {
    for (int64_t row = 0; row < rows; row += 16) store(of_row + row, all(of_scale[row >> shift]));
  } else {
    for (int64_t row = 0; row < rows; ++row) of_row[row] = of_scale[row >> shift];
  }
}

// Sums over the rows of one scale block: of squares, of magnitudes, or of the values without and with a sign bit.
struct Accumulators {
  Floats a[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  COMMPRESS_INLINE void add(int64_t row, Floats v) { a[row % 4] = a[row % 4] + v; }
  COMMPRESS_INLINE float total() const { return sum_lanes((a[0] + a[1]) + (a[2] + a[3])); }
};
// term(v) -> what is added.
template <class F>
static COMMPRESS_INLINE float sum_rows(const float* x, float gain, int rows, const F& term) {
  Accumulators sums;
  const Floats g = all(gain);
  if (rows % 4 == 0) {
    for (int row = 0; row < rows; row += 4)
      for (int k = 0; k < 4; ++k) sums.a[k] = sums.a[k] + term(load(x + 16 * (row + k)) * g);
  } else {
    for (int row = 0; row < rows; ++row) sums.add(row, term(load(x + 16 * row) * g));
  }
  return sums.total();
}

template <class T>
static COMMPRESS_INLINE void write(uint8_t*& out, T value) {
  memcpy(out, &value, sizeof value);
  out += sizeof value;
}

// The low bytes of the first `count` lanes, or of all.
static COMMPRESS_INLINE void store_narrow(uint8_t* out, Ints v, int64_t count) {
  uint32_t lane[16];
  uint8_t byte[16];
  store(lane, v);
  for (int i = 0; i < 16; ++i) byte[i] = static_cast<uint8_t>(lane[i]);
  if (count >= 16)
    memcpy(out, byte, 16);
  else
    memcpy(out, byte, count);
}

// ---- scales: each writes them and leaves the multipliers ----

static uint8_t* float_scales(Source& s, const Format& f, const FloatForm& form, uint8_t* out) {
  const Ints round_up = all(scale_round_up(f, form)), shift = all(static_cast<uint32_t>(256 - form.top)),
             low = all(static_cast<uint32_t>(form.lowest_scale + 127 + 256)),
             high = all(static_cast<uint32_t>(form.highest_scale + 127 + 256)), up = all(256u), top = all(254u);
  for (int64_t b = 0; b < s.scales; b += 16) {
    const Ints field = shift_right(bits(load(s.largest + b)) + round_up, 23) + shift;
    const Ints scale = smaller(larger(field, low), high) - up;
    store_narrow(out + b, scale, s.scales - b);
    store(s.multiplier + b, floats(shift_left(top - scale, 23)));
  }
  for (int64_t b = 0; s.prepared && b < s.scales; ++b)
    if (!s.finite[b]) out[b] = SCALE8_NON_FINITE;
  return out + s.scales;
}

static uint8_t* nvfp4_scales(Source& s, const Format& f, uint8_t* out) {
  const FloatForm form = e4m3_form();
  const int exponent = s.prepared ? s.exponent[0] : 0;
  const Nvfp4Outer outer = nvfp4_outer(s.most, exponent);
  write(out, outer.wire);
  const bool zero = outer.local == 0.0f;
  // Rounded up, so that no code has to exceed the largest, where rounding is to be without bias.
  const FloatCoder<true, false> up(form, 1.0f);
  const FloatCoder<false, false> nearest(form, 1.0f);
  const FloatValues<true> values(form);
  const float one = 1.0f;
  for (int64_t b = 0; b < s.scales; b += 16) {
    const Floats a = load(s.largest + b), q = a * all(outer.inverse);
    Ints code = f.stochastic ? up(q, all(~0u), 1.0f) : nearest(q, all(0u), 1.0f);
    if (f.stochastic && !zero) code = larger(code, smaller(bits(a), all(1u)));
    const Floats scale = values(code, &one);
    store(s.multiplier + b, floats(where_less(code, all(1u), all(0u), bits(all(1.0f) / (scale * all(outer.local))))));
    store_narrow(out + b, code, s.scales - b);
  }
  for (int64_t b = 0; s.prepared && b < s.scales; ++b)
    if (!s.finite[b]) out[b] = E4M3_NAN;
  return out + s.scales;
}

static uint8_t* level_scales(Source& s, const Format& f, uint8_t* out) {
  const float unit = level_unit(f);
  const int rows = f.block / 16;
  for (int64_t b = 0; b < s.scales; ++b) {
    if (s.prepared && !s.finite[b]) {
      write(out, SCALE32_NON_FINITE);
      s.multiplier[b] = 0.0f;
      continue;
    }
    float norm = s.largest[b];
    if (f.euclidean) norm = square_root(sum_rows(s.values + b * f.block, s.gain, rows, [](Floats v) { return v * v; }));
    const LevelScale scale = level_scale(s.largest[b], norm, s.prepared ? s.exponent[b] : 0, f.levels);
    write(out, scale.step);
    s.multiplier[b] = scale.multiplier * unit;
  }
  return out;
}

static uint8_t* sign_scales(Source& s, const Format& f, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < s.scales; ++b) {
    const bool finite = !s.prepared || s.finite[b];
    const float* const x = s.values + b * (f.block ? f.block : BLOCK);
    const int64_t here = n - b * f.block < f.block ? n - b * f.block : f.block;
    const int exponent = s.prepared ? s.exponent[b] : 0;
    if (f.block == 0) {
      *out++ = static_cast<uint8_t>(!finite ? SCALE8_NON_FINITE : s.largest[b] == 0.0f ? SCALE8_ZERO : SCALE8_ONE);
    } else if (!finite) {
      write(out, SCALE32_NON_FINITE);
      if (f.scheme == TWO_MEANS) write(out, SCALE32_NON_FINITE);
    } else if (f.scheme == SIGN) {
      const float sum = sum_rows(x, s.gain, f.block / 16, [](Floats v) { return absolute(v); });
      write(out, mean_scale(sum, here, exponent));
    } else {
      const Floats zero = all(0.0f);
      const float above = sum_rows(x, s.gain, f.block / 16, [&](Floats v) { return larger(v, zero); }),
                  below = sum_rows(x, s.gain, f.block / 16, [&](Floats v) { return larger(zero - v, zero); });
      Ints signs = all(0u);
      for (int64_t row = 0; row < f.block / 16; ++row) signs = signs + shift_right(bits(load(x + 16 * row)), 31);
      // Padding is +0. A float holds the count exactly.
      const int64_t negative = static_cast<int64_t>(sum_lanes(to_float(signs))), positive = here - negative;
      write(out, mean_scale(above, positive, exponent));
      write(out, mean_scale(below, negative, exponent));
    }
  }
  return out;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
