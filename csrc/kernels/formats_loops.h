// encode() and decode() of formats.h in one code path: block by block, a statistic of each scale block -> scale ->
// codes
// -> packing. A formats_*.cpp names the path with COMMPRESS_ISA and includes the lanes, then this.
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

static COMMPRESS_INLINE float finite_product(float x, float gain) {
  const float p = x * gain, most = float_of(FLOAT_LARGEST);
  return p > most ? most : p < -most ? -most : p;
}

// Which blocks have their exponents taken off: none, those that are tiny or huge, or all alike if the largest is.
enum class Care { NONE, EACH, ALL };

// The bits of the largest magnitude of each scale block, sixteen blocks at a time, and gain times it.
static void scan(const float* x, int shift, Source& s, uint32_t* largest) {
  const Ints magnitude = all(0x7FFFFFFFu);
  const Floats gain = all(s.gain);
  const int64_t rows = int64_t{1} << shift;
  Ints most = all(0u);
  for (int64_t first = 0; first < s.scales; first += 16) {
    Ints m[16];
    for (int64_t b = 0; b < 16; ++b) {
      m[b] = all(0u);
      if (first + b >= s.scales) continue;
      const float* const from = x + (first + b) * 16 * rows;
      if (rows >= 4) {
        Ints four[4] = {m[b], m[b], m[b], m[b]};
        for (int64_t row = 0; row < rows; row += 4)
          for (int k = 0; k < 4; ++k) four[k] = larger(four[k], bits(load(from + 16 * (row + k))) & magnitude);
        m[b] = larger(larger(four[0], four[1]), larger(four[2], four[3]));
      } else {
        for (int64_t row = 0; row < rows; ++row) m[b] = larger(m[b], bits(load(from + 16 * row)) & magnitude);
      }
    }
    const Ints a = largest_lanes(m);
    const Floats product = floats(a) * gain;
    store(largest + first, a);
    store(s.largest + first, product);
    most = larger(most, bits(product) & magnitude);
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
  scan(s.values, shift_of(block), s, largest);
  s.prepared = s.prepared || !(s.most <= float_of(FLOAT_LARGEST)) || (care == Care::ALL && !plain_magnitude(s.most));
  if (care == Care::EACH)
    for (int64_t b = 0; b < s.scales; ++b) s.prepared = s.prepared || !plain_magnitude(s.largest[b]);
  if (!s.prepared) return;
  s.most = 0.0f;
  for (int64_t b = 0; b < s.scales; ++b) {
    s.finite[b] = largest[b] < FLOAT_INFINITY;
    s.largest[b] = s.finite[b] ? finite_product(float_of(largest[b]), gain) : 0.0f;
    s.most = s.largest[b] > s.most ? s.largest[b] : s.most;
  }
  for (int64_t b = 0; b < s.scales; ++b) {
    const float a = care == Care::ALL ? s.most : s.largest[b];
    const int e = s.exponent[b] = care == Care::NONE || plain_magnitude(a) ? 0 : exponent_of(a);
    s.largest[b] = scale_by_power(s.largest[b], -e);
    for (int64_t i = b * block; i < (b + 1) * block; ++i)
      s.copy[i] = s.finite[b] ? scale_by_power(finite_product(s.values[i], gain), -e) : 0.0f;
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
  const FloatForm form = float_form(E4M3);
  const int exponent = s.prepared ? s.exponent[0] : 0;
  float outer = scale_by_power(divide(s.most, NVFP4_RANGE), exponent);
  if (!(outer < NVFP4_LARGEST)) outer = NVFP4_LARGEST;
  write(out, outer);
  const float local = scale_by_power(outer, -exponent);
  const bool zero = local == 0.0f;
  const float inverse = zero ? 0.0f : divide(1.0f, 6.0f * local);
  // Rounded up, so that no code has to exceed the largest, where rounding is to be without bias.
  const FloatCoder<true, false> up(form, 1.0f);
  const FloatCoder<false, false> nearest(form, 1.0f);
  const FloatValues<true> values(form);
  const float one = 1.0f;
  for (int64_t b = 0; b < s.scales; b += 16) {
    const Floats a = load(s.largest + b), q = a * all(inverse);
    Ints code = f.stochastic ? up(q, all(~0u), 1.0f) : nearest(q, all(0u), 1.0f);
    if (f.stochastic && !zero) code = larger(code, smaller(bits(a), all(1u)));
    const Floats scale = values(code, &one);
    store(s.multiplier + b, floats(where_less(code, all(1u), all(0u), bits(all(1.0f) / (scale * all(local))))));
    store_narrow(out + b, code, s.scales - b);
  }
  for (int64_t b = 0; s.prepared && b < s.scales; ++b)
    if (!s.finite[b]) out[b] = E4M3_NAN;
  return out + s.scales;
}

static uint8_t* level_scales(Source& s, const Format& f, uint8_t* out) {
  const float digits = f.stochastic ? static_cast<float>(1u << level_digits(f)) : 1.0f;
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
    s.multiplier[b] = scale.multiplier * digits;
  }
  return out;
}

static uint8_t* sign_scales(Source& s, const Format& f, int64_t n, uint8_t* out) {
  const float most = float_of(FLOAT_LARGEST);
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
      const float mean = scale_by_power(divide(sum, static_cast<float>(here)), exponent);
      write(out, mean < most ? mean : most);
    } else {
      const Floats zero = all(0.0f);
      const float above = sum_rows(x, s.gain, f.block / 16, [&](Floats v) { return larger(v, zero); }),
                  below = sum_rows(x, s.gain, f.block / 16, [&](Floats v) { return larger(zero - v, zero); });
      Ints signs = all(0u);
      for (int64_t row = 0; row < f.block / 16; ++row) signs = signs + shift_right(bits(load(x + 16 * row)), 31);
      // Padding is +0. A float holds the count exactly.
      const int64_t negative = static_cast<int64_t>(sum_lanes(to_float(signs))), positive = here - negative;
      const float up = positive ? scale_by_power(divide(above, static_cast<float>(positive)), exponent) : 0.0f,
                  down = negative ? scale_by_power(divide(below, static_cast<float>(negative)), exponent) : 0.0f;
      write(out, up < most ? up : most);
      write(out, down < most ? down : most);
    }
  }
  return out;
}

// ---- base three: byte i has the codes i, i + N, i + 2 N, i + 3 N, i + 4 N, where N bytes are written ----

constexpr int64_t TRITS_NBYTES = (BLOCK + 4) / 5, TRITS_ROOM = (TRITS_NBYTES + 63) / 64 * 64;

// Whole blocks are done with a constant number of steps, which compilers turn into vector code.
static void pack_trits(const uint8_t* codes, uint8_t* sums, int64_t count, int64_t steps) {
  const uint8_t *a = codes, *b = a + count, *c = b + count, *d = c + count, *e = d + count;
  for (int64_t i = 0; i < steps; ++i)
    sums[i] = static_cast<uint8_t>(a[i] + 3 * b[i] + 9 * c[i] + 27 * d[i] + 81 * e[i]);
}

// `codes` has room for 5 * TRITS_ROOM.
static uint8_t* pack_trits(uint8_t* codes, int64_t n, uint8_t* out) {
  const int64_t count = (n + 4) / 5;
  uint8_t sums[TRITS_ROOM];
  memset(codes + n, 1, 5 * TRITS_ROOM - n);  // zero's code
  if (n == BLOCK)
    pack_trits(codes, sums, TRITS_NBYTES, TRITS_ROOM);
  else
    pack_trits(codes, sums, count, count);
  memcpy(out, sums, count);
  return out + count;
}

static COMMPRESS_INLINE void take_trits(uint8_t* sums, uint8_t* codes, int64_t steps) {
  for (int64_t i = 0; i < steps; ++i) {
    const uint16_t third = static_cast<uint16_t>(static_cast<uint16_t>(sums[i] * 171u) >> 9);  // exact for a byte
    codes[i] = static_cast<uint8_t>(sums[i] - 3 * third);
    sums[i] = static_cast<uint8_t>(third);
  }
}

// `codes` has room for 5 * TRITS_ROOM; those behind the n-th mean nothing.
static void unpack_trits(const uint8_t* in, int64_t n, uint8_t* codes) {
  const int64_t count = (n + 4) / 5;
  uint8_t sums[TRITS_ROOM] = {};
  memcpy(sums, in, count);
  for (int64_t k = 0; k < 5; ++k)  // each may write beyond its part; the next comes after it
    if (n == BLOCK)
      take_trits(sums, codes + k * TRITS_NBYTES, TRITS_ROOM);
    else
      take_trits(sums, codes + k * count, count);
}

// ---- codes ----

template <class Coder>
static uint8_t* code_block(Source& s, const Coder& coder, const Format& f, const Key& key, uint64_t index, int64_t n,
                           uint8_t* out) {
  const Philox random(key, ROUND);
  const int width = f.trits ? 8 : code_bits(f);
  uint8_t bytes[5 * TRITS_ROOM];
  uint8_t* to = f.trits ? bytes : out;
  const float* of_row = s.multiplier;
  if (f.block > 16) {
    spread(s.multiplier, shift_of(f.block), BLOCK / 16, s.of_row);
    of_row = s.of_row;
  }
  int64_t i = 0;
  with_width(width, [&](auto bits) {
    for (; i + GROUP <= n; i += GROUP, to += GROUP / 8 * width)
      code_group(coder, s.values + i, of_row + i / 16, random, static_cast<uint32_t>((index + i) / 16),
                 RowsOut<bits>{to, static_cast<unsigned>(width)});
  });
  if (i < n) {
    alignas(64) uint32_t codes[GROUP];
    code_group(coder, s.values + i, of_row + i / 16, random, static_cast<uint32_t>((index + i) / 16), CodesOut{codes});
    pack_string(codes, n - i, width, to);
  }
  return f.trits ? pack_trits(bytes, n, out) : out + codes_nbytes(f, n);
}

// Where there is no scale, infinities and NaN have codes of their own: the groups that hold any are packed anew.
static void patch_specials(const Source& s, const FloatForm& form, const float* x, int64_t n, const Key& key,
                           uint64_t index, float gain, bool stochastic, uint8_t* out) {
  for (int64_t i = 0; i < n; i += GROUP) {
    const int64_t here = n - i < GROUP ? n - i : GROUP;
    if (!s.finite[i / GROUP]) {
      uint32_t codes[GROUP];
      for (int64_t k = 0; k < here; ++k) {
        const bool finite = (bits_of(x[i + k]) & 0x7FFFFFFFu) < FLOAT_INFINITY;
        codes[k] = finite
                       ? float_code(finite_product(x[i + k], gain), form, stochastic, rounding_word(key, index + i + k))
                       : special_code(x[i + k], form);
      }
      pack_codes(codes, here, form.bits, out);
    }
    out += packed_nbytes(here, form.bits);
  }
}

template <bool STOCHASTIC>
static uint8_t* encode_floats(Source& s, const Format& f, const Key& key, uint64_t index, const float* x, int64_t n,
                              float gain, uint8_t* out) {
  const FloatForm form = float_form(f);
  if (f.scheme == NVFP4) {
    prepare(s, x, n, f.block, gain, Care::ALL);
    out = nvfp4_scales(s, f, out);
  } else if (f.block) {
    prepare(s, x, n, f.block, gain, Care::NONE);
    out = float_scales(s, f, form, out);
  } else {
    prepare(s, x, n, GROUP, gain, Care::NONE);
    uint8_t* const end = code_block(s, FloatCoder<STOCHASTIC, false>(form, s.gain), f, key, index, n, out);
    if (s.prepared) patch_specials(s, form, x, n, key, index, gain, STOCHASTIC, out);
    return end;
  }
  return code_block(s, FloatCoder<STOCHASTIC, true>(form, s.gain), f, key, index, n, out);
}

static uint8_t* encode_block(Source& s, const Format& f, const Key& key, uint64_t index, const float* x, int64_t n,
                             float gain, uint8_t* out) {
  if (f.scheme == FLOAT || f.scheme == NVFP4)
    return f.stochastic ? encode_floats<true>(s, f, key, index, x, n, gain, out)
                        : encode_floats<false>(s, f, key, index, x, n, gain, out);
  prepare(s, x, n, f.block ? f.block : BLOCK, gain, Care::EACH);
  if (f.scheme != LEVELS) {
    out = sign_scales(s, f, n, out);
    return code_block(s, SignCoder{}, f, key, index, n, out);
  }
  out = level_scales(s, f, out);
  return f.stochastic ? code_block(s, LevelCoder<true>(f, s.gain), f, key, index, n, out)
                      : code_block(s, LevelCoder<false>(f, s.gain), f, key, index, n, out);
}

void encode(const Format& f, const Key& key, int64_t offset, const float* x, int64_t numel, float gain, uint8_t* out) {
  Source source;
  memset(&source, 0, sizeof source);  // what lies behind the last scale is read, and means nothing
  for (int64_t i = 0; i < numel; i += BLOCK)
    out = encode_block(source, f, key, static_cast<uint64_t>(offset + i), x + i, numel - i < BLOCK ? numel - i : BLOCK,
                       gain, out);
}

// ---- decoding ----

// steps: of each scale block, and of MEANS further ones MAX_SCALES behind.
template <class Values>
static void value_block(const Values& values, const uint8_t* in, const float* steps, const Format& f, int64_t n,
                        float* out, const Sink& sink) {
  const int width = f.trits ? 8 : code_bits(f), shift = shift_of(f.block ? f.block : BLOCK);
  alignas(64) float of_row[2 * MAX_SCALES] = {};
  spread(steps, shift, (n + 15) / 16, of_row);
  if (f.scheme == TWO_MEANS) spread(steps + MAX_SCALES, shift, (n + 15) / 16, of_row + MAX_SCALES);
  int64_t i = 0;
  with_width(width, [&](auto bits) {
    with_delivery(sink.delivery, [&](auto delivery) {
      for (; i + GROUP <= n; i += GROUP, in += GROUP / 8 * width)
        value_rows<delivery>(values, RowsIn<bits>(in, static_cast<unsigned>(width)), of_row + i / 16, 32, out + i,
                             all(sink.beta));
    });
  });
  if (i == n) return;
  alignas(64) uint32_t codes[GROUP] = {};
  alignas(64) float result[GROUP];
  unpack_string(in, n - i, width, codes);
  value_rows<Delivery::WRITE>(values, CodesIn{codes}, of_row + i / 16, 32, result, all(0.0f));
  for (int64_t k = 0; i + k < n; ++k) deliver(out + i + k, result[k], sink);
}

template <class T>
static COMMPRESS_INLINE T read(const uint8_t* in) {
  T value;
  memcpy(&value, in, sizeof value);
  return value;
}

// A scale on the wire as a step; one that is not finite is NaN.
static COMMPRESS_INLINE float step_of(const uint8_t* in, float gain) {
  const uint32_t u = read<uint32_t>(in);
  return u == SCALE32_NON_FINITE ? float_of(FLOAT_NAN) : float_of(u) * gain;
}

static const uint8_t* decode_block(const Format& f, const uint8_t* in, int64_t n, float* out, const Sink& sink) {
  float steps[2 * MAX_SCALES] = {};
  const int64_t scales = f.block ? (n + f.block - 1) / f.block : 1;
  const uint8_t* const codes = in + scales_nbytes(f, n);
  const float nan = float_of(FLOAT_NAN);
  switch (f.scheme) {
    case FLOAT: {
      const FloatForm form = float_form(f);
      steps[0] = sink.gain;
      for (int64_t b = 0; f.block && b < scales; ++b)
        steps[b] = in[b] == SCALE8_NON_FINITE   ? nan
                   : sink.gain == 1.0f && in[b] ? float_of(static_cast<uint32_t>(in[b]) << 23)
                                                : scale_by_power(sink.gain, static_cast<int>(in[b]) - 127);
      if (!f.block)
        value_block(FloatValues<false>(form), codes, steps, f, n, out, sink);
      else if (form.bits == 4)
        value_block(SmallFloatValues(form), codes, steps, f, n, out, sink);
      else
        value_block(FloatValues<true>(form), codes, steps, f, n, out, sink);
      break;
    }
    case NVFP4: {
      const FloatForm form = float_form(E4M3);
      const float outer = read<float>(in) * sink.gain;
      for (int64_t b = 0; b < scales; ++b) {
        const uint32_t scale = in[4 + b] & 0x7Fu;
        steps[b] = scale == E4M3_NAN ? nan : float_magnitude(scale, form) * outer;
      }
      value_block(SmallFloatValues(float_form(f)), codes, steps, f, n, out, sink);
      break;
    }
    case LEVELS: {
      for (int64_t b = 0; b < scales; ++b) steps[b] = step_of(in + 4 * b, sink.gain);
      if (f.trits) {
        uint8_t bytes[5 * TRITS_ROOM];
        unpack_trits(codes, n, bytes);
        value_block(LevelValues(f.levels), bytes, steps, f, n, out, sink);
      } else {
        value_block(LevelValues(f.levels), codes, steps, f, n, out, sink);
      }
      break;
    }
    case SIGN: {
      steps[0] = *in == SCALE8_NON_FINITE ? nan : *in == SCALE8_ZERO ? 0.0f : sink.gain;
      for (int64_t b = 0; f.block && b < scales; ++b) steps[b] = step_of(in + 4 * b, sink.gain);
      value_block(SignValues{}, codes, steps, f, n, out, sink);
      break;
    }
    default: {
      for (int64_t b = 0; b < scales; ++b) {
        steps[b] = step_of(in + 8 * b, sink.gain);
        steps[MAX_SCALES + b] = -step_of(in + 8 * b + 4, sink.gain);
      }
      value_block(MeanValues{}, codes, steps, f, n, out, sink);
    }
  }
  return codes + codes_nbytes(f, n);
}

void decode(const Format& f, const uint8_t* in, float* out, int64_t numel, bool accumulate, float gain, float beta) {
  constexpr int64_t STREAM_NUMEL = 1 << 20;
  const bool stream = !accumulate && numel >= STREAM_NUMEL && reinterpret_cast<uintptr_t>(out) % 64 == 0;
  const Sink sink{delivery_of(accumulate, stream, beta), gain, beta};
  for (int64_t i = 0; i < numel; i += BLOCK)
    in = decode_block(f, in, numel - i < BLOCK ? numel - i : BLOCK, out + i, sink);
  if (stream) finish_stores();
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
