// Number formats and the classic quantisers: small floats (`float`, `mxfp*`, `nvfp4`, `natural`), signed levels
// (`int8`, `qsgd`, `ternary`) and signs (`sign`, `onebit`). One skeleton: a statistic of each scale block -> a scale ->
// codes -> packing. This header has the layout and the maths of one scale and of one coordinate, for host and device;
// docs/wire-format.md 4.7 is the prose form.
#pragma once
#include "philox.h"
#include "wire.h"

namespace commpress {

enum Scheme : int32_t { FLOAT = 1, NVFP4 = 2, LEVELS = 3, SIGN = 4, TWO_MEANS = 5 };

struct Format {
  int32_t scheme;
  int32_t exponent, mantissa;  // bits, of FLOAT and NVFP4
  int32_t levels;              // of LEVELS: codes stand for -levels .. levels
  int32_t block;      // coordinates that share a scale, a power of two from 16 to 4096; 0: FLOAT and SIGN alone
  bool stochastic;    // rounding
  bool euclidean;     // LEVELS: the scale is the block's norm, not its largest value
  bool trits;         // LEVELS: five codes to a byte
  bool may_saturate;  // FLOAT: the scale of OCP MX, under which values above the largest code are clamped
};

constexpr int64_t SMALLEST_SCALE_BLOCK = 16, MAX_SCALES = BLOCK / SMALLEST_SCALE_BLOCK;
constexpr uint32_t FLOAT_INFINITY = 0x7F800000u, FLOAT_LARGEST = 0x7F7FFFFFu, FLOAT_NAN = 0x7FC00000u;
constexpr uint32_t SCALE8_NON_FINITE = 0xFF, SCALE8_ONE = 127, SCALE8_ZERO = 0;  // the last two of SIGN without scale

// ---- layout ----

COMMPRESS_HD int bit_length(uint32_t v) {
  int n = 0;
  for (; v; v >>= 1) ++n;
  return n;
}

// A format as one number: what the table of layers of the CUDA kernels has in place of a rate. From the lowest bit on:
// scheme (3 bits), flags (4), the block's exponent of two or 0 (4), then levels, or exponent and mantissa (5).
COMMPRESS_HD int32_t packed_format(const Format& f) {
  const int flags = f.stochastic + 2 * f.euclidean + 4 * f.trits + 8 * f.may_saturate;
  const int block = f.block ? bit_length(static_cast<uint32_t>(f.block)) - 1 : 0;
  const int rest = f.scheme == LEVELS ? f.levels : f.exponent << 5 | f.mantissa;
  return f.scheme | flags << 3 | block << 7 | rest << 11;
}

COMMPRESS_HD Format unpacked_format(int32_t packed) {
  const int block = packed >> 7 & 15, rest = packed >> 11;
  Format f{};
  f.scheme = packed & 7;
  f.exponent = f.scheme == LEVELS ? 0 : rest >> 5;
  f.mantissa = f.scheme == LEVELS ? 0 : rest & 31;
  f.levels = f.scheme == LEVELS ? rest : 0;
  f.block = block ? 1 << block : 0;
  f.stochastic = packed >> 3 & 1;
  f.euclidean = packed >> 4 & 1;
  f.trits = packed >> 5 & 1;
  f.may_saturate = packed >> 6 & 1;
  return f;
}

COMMPRESS_HD int code_bits(const Format& f) {
  if (f.scheme == FLOAT || f.scheme == NVFP4) return 1 + f.exponent + f.mantissa;
  if (f.scheme == LEVELS) return bit_length(2 * static_cast<uint32_t>(f.levels));
  return 1;
}

COMMPRESS_HD int64_t scale_nbytes(const Format& f) {
  return f.scheme == FLOAT || f.scheme == NVFP4 ? 1
         : f.scheme == SIGN && f.block == 0     ? 1
         : f.scheme == TWO_MEANS                ? 8
                                                : 4;
}

// What precedes the codes of a block of n <= BLOCK coordinates.
COMMPRESS_HD int64_t scales_nbytes(const Format& f, int64_t n) {
  if (f.block == 0) return f.scheme == SIGN && n > 0 ? 1 : 0;
  return (n + f.block - 1) / f.block * scale_nbytes(f) + (f.scheme == NVFP4 && n > 0 ? 4 : 0);
}

COMMPRESS_HD int64_t codes_nbytes(const Format& f, int64_t n) {
  return f.trits ? (n + 4) / 5 : packed_nbytes(n, code_bits(f));
}

COMMPRESS_HD int64_t payload_nbytes(const Format& f, int64_t numel) {
  const int64_t rest = numel % BLOCK;
  return numel / BLOCK * (scales_nbytes(f, BLOCK) + codes_nbytes(f, BLOCK)) + scales_nbytes(f, rest) +
         codes_nbytes(f, rest);
}

// 2^e for e from -149 to 127.
COMMPRESS_HD float power_of_two(int e) {
  return float_of(e >= -126 ? static_cast<uint32_t>(e + 127) << 23 : 1u << (e + 149));
}

// gain * x, clamped to the finite floats.
COMMPRESS_HD float clamped_product(float x, float gain) {
  const float p = x * gain, most = float_of(FLOAT_LARGEST);
  return p > most ? most : p < -most ? -most : p;
}

// ---- small floats ----

// A code is a sign bit above a magnitude of exponent and mantissa bits, with gradual underflow, as in IEEE 754.
struct FloatForm {
  int mantissa, bits;
  int least;               // exponent of the smallest normal number
  uint32_t largest;        // code of the largest finite magnitude; those above are special, or never written
  uint32_t infinity, nan;  // codes, where there is no block scale to say it
  int top;                 // exponent of the largest finite magnitude
  uint32_t top_mantissa;   // and its mantissa, as a binary32 has it
  int lowest_scale, highest_scale;
};

// Exponents of five bits and more reserve the top one, as IEEE 754 does; shorter ones reserve the top code alone
// (OCP's "fn"), and those under four bits nothing if a block scale can tell of non-finite values.
COMMPRESS_HD FloatForm float_form(const Format& f) {
  FloatForm r{};
  r.mantissa = f.mantissa;
  r.bits = 1 + f.exponent + f.mantissa;
  const int bias = (1 << (f.exponent - 1)) - 1;
  const uint32_t all = (1u << (f.exponent + f.mantissa)) - 1, one = 1u << f.mantissa;
  r.least = 1 - bias;
  if (f.exponent >= 5) {
    r.infinity = all + 1 - one;
    r.nan = f.mantissa == 0 ? r.infinity : r.infinity | one >> 1;
    r.largest = r.infinity - 1;
    if (f.mantissa == 0) r.infinity = r.nan;
  } else {
    r.infinity = r.nan = all;
    r.largest = f.exponent == 4 || f.block == 0 ? all - 1 : all;
  }
  r.top = static_cast<int>(r.largest >> f.mantissa) - bias;
  r.top_mantissa = (r.largest & (one - 1)) << (23 - f.mantissa);
  // Every value of a code times the scale is a binary32, exactly, and finite.
  const int exact = -149 - r.least + f.mantissa;
  r.lowest_scale = exact > -127 ? exact : -127;
  r.highest_scale = 127 - r.top;
  return r;
}

// Added to the bits of the largest magnitude of a block: its exponent field then is that of the scale plus `top`.
COMMPRESS_HD uint32_t scale_round_up(const Format& f, const FloatForm& form) {
  return f.may_saturate ? 0u : 0x007FFFFFu - form.top_mantissa;
}

// The scale 2^(result - 127) of a block whose largest magnitude has these bits (finite).
COMMPRESS_HD uint32_t float_scale(uint32_t largest, uint32_t round_up, const FloatForm& form) {
  const int e = static_cast<int>((largest + round_up) >> 23) - 127 - form.top;
  return static_cast<uint32_t>((e < form.lowest_scale    ? form.lowest_scale
                                : e > form.highest_scale ? form.highest_scale
                                                         : e) +
                               127);
}

COMMPRESS_HD bool float_scale_valid(uint8_t s, const FloatForm& form) {
  const int e = static_cast<int>(s) - 127;
  return s == SCALE8_NON_FINITE || (e >= form.lowest_scale && e <= form.highest_scale);
}

// With eight bits of exponent a format has binary32's own exponents.
COMMPRESS_HD bool float_is_wide(const FloatForm& form) { return form.least == -126; }

// Taken off the bits of what float_code() rounds stochastically.
COMMPRESS_HD uint32_t float_base(const FloatForm& form) {
  return float_is_wide(form) ? 0u : static_cast<uint32_t>(127 + form.least) << 23;
}

// The code of a finite y.
//
// To nearest: P is the power of two at or below |y|, but at least the smallest normal number; |y| / P is exact.
// Stochastically: |y| + max(|y|, smallest normal number) is a binary32 whose bits, less a constant, are the code and
// the digits behind it: twice a normal number has its mantissa and the next exponent, and below the smallest normal
// number the sum has one exponent throughout (it is rounded to 23 digits there).
COMMPRESS_HD uint32_t float_code(float y, const FloatForm& form, bool stochastic, uint32_t random) {
  const uint32_t u = bits_of(y), a = u & 0x7FFFFFFFu, smallest = static_cast<uint32_t>(127 + form.least) << 23;
  const int m = form.mantissa;
  uint32_t magnitude;
  if (stochastic) {
    const uint32_t digits = float_is_wide(form) ? a : bits_of(float_of(a) + float_of(a > smallest ? a : smallest));
    magnitude = (digits - float_base(form) + (random & ((1u << (23 - m)) - 1))) >> (23 - m);
  } else {
    const uint32_t field = u & FLOAT_INFINITY, p = field > smallest ? field : smallest;
    const float ratio = float_of(a) * float_of((255u << 23) - p);  // 2 |y| / P
    magnitude = static_cast<uint32_t>(round_to_int(ratio * power_of_two(m - 1))) + ((p - smallest) >> (23 - m));
  }
  return (magnitude < form.largest ? magnitude : form.largest) | u >> 31 << (form.bits - 1);
}

// The value of a code with the sign bit taken off, no special one.
COMMPRESS_HD float float_magnitude(uint32_t magnitude, const FloatForm& form) {
  const int m = form.mantissa;
  if (magnitude < 1u << m) return static_cast<float>(static_cast<int32_t>(magnitude)) * power_of_two(form.least - m);
  return float_of((magnitude << (23 - m)) + (static_cast<uint32_t>(form.least + 126) << 23));
}

// The value of any code. A magnitude that no encoder writes counts as the largest, or, without a scale, is special.
COMMPRESS_HD float float_value(uint32_t code, const FloatForm& form, bool scaled) {
  const uint32_t sign = code << (32 - form.bits) & 0x80000000u, all = code & ((1u << (form.bits - 1)) - 1);
  if (!scaled && all > form.largest)
    return float_of(sign | all << (23 - form.mantissa) | (form.infinity == form.nan ? FLOAT_NAN : FLOAT_INFINITY));
  return float_of(sign | bits_of(float_magnitude(all < form.largest ? all : form.largest, form)));
}

// What a scale on the wire makes of the values of codes; NaN if it says so.
COMMPRESS_HD float float_step(uint32_t scale, float gain) {
  return scale == SCALE8_NON_FINITE ? float_of(FLOAT_NAN) : gain * power_of_two(static_cast<int>(scale) - 127);
}

// A code where there is no scale: also infinities and NaN.
COMMPRESS_HD uint32_t special_code(float x, const FloatForm& form) {
  const uint32_t u = bits_of(x), a = u & 0x7FFFFFFFu;
  return (a > FLOAT_INFINITY ? form.nan : form.infinity) | u >> 31 << (form.bits - 1);
}

// ---- nvfp4: a float for each 4096 coordinates, an e4m3 for each 16, e2m1 codes ----

constexpr float NVFP4_RANGE = 2688.0f, NVFP4_LARGEST = 0x1p116f;  // 6 * 448; the largest outer scale
constexpr uint32_t E4M3_LARGEST = 0x7E, E4M3_NAN = 0x7F;
COMMPRESS_HD FloatForm e4m3_form() { return float_form({FLOAT, 4, 3, 0, 0, false, false, false, false}); }

struct Nvfp4Outer {
  float wire, local;  // with and without the power of two that was taken off the values
  float inverse;      // of a block's largest magnitude, on the way to its e4m3
};

// most: the largest magnitude, after multiplication by 2^-exponent.
COMMPRESS_HD Nvfp4Outer nvfp4_outer(float most, int exponent) {
  float wire = scale_by_power(divide(most, NVFP4_RANGE), exponent);
  if (!(wire < NVFP4_LARGEST)) wire = NVFP4_LARGEST;
  const float local = scale_by_power(wire, -exponent);
  return {wire, local, local == 0.0f ? 0.0f : divide(1.0f, 6.0f * local)};
}

// The e4m3 of a block. Rounded up where rounding of codes is to be without bias: then none has to exceed the largest.
COMMPRESS_HD uint32_t nvfp4_scale(float largest, const Nvfp4Outer& outer, const FloatForm& e4m3, bool stochastic) {
  const uint32_t code = float_code(largest * outer.inverse, e4m3, stochastic, ~0u);
  return stochastic && outer.local != 0.0f && code == 0 && largest > 0.0f ? 1 : code;
}

COMMPRESS_HD float nvfp4_multiplier(uint32_t scale, const Nvfp4Outer& outer, const FloatForm& e4m3) {
  return scale == 0 ? 0.0f : divide(1.0f, float_magnitude(scale, e4m3) * outer.local);
}

// The step of a block's values; outer includes the gain.
COMMPRESS_HD float nvfp4_step(uint32_t scale, float outer, const FloatForm& e4m3) {
  return (scale & 0x7F) == E4M3_NAN ? float_of(FLOAT_NAN) : float_magnitude(scale & 0x7F, e4m3) * outer;
}

COMMPRESS_HD bool nvfp4_outer_valid(uint32_t bits) { return bits <= bits_of(NVFP4_LARGEST); }

// ---- levels, signs ----

// Magnitudes for which sums of squares, quotients and products stay in range. Zero needs no care either.
COMMPRESS_HD bool plain_magnitude(float a) { return a == 0.0f || (a >= 0x1p-60f && a <= 0x1p56f); }

// The largest step whose multiples are finite up to `levels`.
COMMPRESS_HD float largest_step(int levels) {
  const float s = static_cast<float>(levels);
  float step = divide(float_of(FLOAT_LARGEST), s);
  while (bits_of(step * s) >= FLOAT_INFINITY) step = float_of(bits_of(step) - 1);
  return step;
}

struct LevelScale {
  float step;        // on the wire
  float multiplier;  // of a coordinate, on the way to levels
};

// norm >= largest (give or take a rounding) are of the block after multiplication by 2^-exponent.
COMMPRESS_HD LevelScale level_scale(float largest, float norm, int exponent, int levels) {
  if (!(largest > 0.0f)) return {0.0f, 0.0f};
  const float s = static_cast<float>(levels), most = largest_step(levels);
  float step = scale_by_power(divide(norm, s), exponent);
  if (!(step < most)) step = most;
  if (step == 0.0f) return {0.0f, 0.0f};
  float inverse = divide(s, norm);
  while (largest * inverse > s) inverse = float_of(bits_of(inverse) - 1);
  return {step, inverse};
}

// Binary digits behind the point of the fixed-point number that is rounded stochastically.
COMMPRESS_HD int level_digits(const Format& f) { return 31 - code_bits(f); }

// What a multiplier of LEVELS includes.
COMMPRESS_HD float level_unit(const Format& f) {
  return f.stochastic ? static_cast<float>(1u << level_digits(f)) : 1.0f;
}

// digits: level_digits(), or 0 for rounding to nearest.
COMMPRESS_HD uint32_t level_code(float y, float multiplier, int levels, int digits, uint32_t random) {
  const uint32_t fixed =
      static_cast<uint32_t>(round_to_int(y * multiplier)) + (static_cast<uint32_t>(levels) << digits);
  return (fixed + (random & ((1u << digits) - 1))) >> digits;
}

COMMPRESS_HD float level_value(uint32_t code, int levels, float step) {
  const uint32_t most = 2 * static_cast<uint32_t>(levels), c = code < most ? code : most;
  return static_cast<float>(static_cast<int32_t>(c) - levels) * step;
}

// A scale of LEVELS or SIGN on the wire; of TWO_MEANS the first or, times -1, the second.
COMMPRESS_HD bool step_valid(uint32_t bits, float most) { return bits == SCALE32_NON_FINITE || bits <= bits_of(most); }

// A scale on the wire as what multiplies values; NaN if something is not finite.
COMMPRESS_HD float scale_step(uint32_t bits, float gain) {
  return bits == SCALE32_NON_FINITE ? float_of(FLOAT_NAN) : float_of(bits) * gain;
}

// A mean of the values, as a scale.
COMMPRESS_HD float mean_scale(float sum, int64_t count, int exponent) {
  const float mean = count ? scale_by_power(divide(sum, static_cast<float>(count)), exponent) : 0.0f;
  return mean < float_of(FLOAT_LARGEST) ? mean : float_of(FLOAT_LARGEST);
}

// ---- ternary: five codes of 0, 1 or 2 in a byte ----

constexpr uint32_t TRITS_LARGEST = 242;

COMMPRESS_HD uint32_t trits_third(uint32_t byte) { return byte * 171u >> 9; }  // exact for a byte

}  // namespace commpress
