// Rows of sixteen coordinates to codes and back, for every scheme of formats.h; and the stream of packed rows. Include
// after a lanes_*.h.
#pragma once
#include "formats.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// ---- packing: full groups as rows (docs/wire-format.md section 3) ----

// Rows come in order. BITS: the width, or 0 for one that is known at run time only.
template <unsigned BITS>
struct RowsOut {
  uint8_t* out;
  const unsigned width;
  Ints word = all(0u);
  COMMPRESS_INLINE void put(unsigned row, Ints code) {
    const unsigned bits = BITS ? BITS : width, k = row * bits / 32, shift = row * bits % 32;
    word = shift == 0 ? code : word | shift_left(code, static_cast<int>(shift));
    if (shift + bits >= 32) store(out + 64 * k, word);
    if (shift + bits > 32) word = shift_right(code, static_cast<int>(32 - shift));
  }
};

// Codes side by side, for what comes next to see them one by one.
struct CodesOut {
  uint32_t* out;
  COMMPRESS_INLINE void put(unsigned row, Ints code) { store(out + 16 * row, code); }
};

template <unsigned BITS>
struct RowsIn {
  const uint8_t* in;
  const unsigned width;
  const Ints mask;
  Ints word = all(0u);
  RowsIn(const uint8_t* p, unsigned w) : in(p), width(w), mask(all(~0u >> (32 - w))) {}
  COMMPRESS_INLINE Ints get(unsigned row) {
    const unsigned bits = BITS ? BITS : width, k = row * bits / 32, shift = row * bits % 32;
    if (shift == 0) word = load_bytes(in + 64 * k);
    Ints code = shift_right(word, static_cast<int>(shift));
    if (shift + bits > 32) {
      word = load_bytes(in + 64 * (k + 1));
      code = code | shift_left(word, static_cast<int>(32 - shift));
    }
    return code & mask;
  }
};

struct CodesIn {
  const uint32_t* in;
  COMMPRESS_INLINE Ints get(unsigned row) { return load(in + 16 * row); }
};

// Calls f(integral_constant<unsigned, bits>) for the common widths, which are unrolled, and with 0 for the others.
template <class F>
static COMMPRESS_INLINE void with_width(int bits, F&& f) {
  if (bits == 1) return f(std::integral_constant<unsigned, 1>{});
  if (bits == 2) return f(std::integral_constant<unsigned, 2>{});
  if (bits == 4) return f(std::integral_constant<unsigned, 4>{});
  if (bits == 8) return f(std::integral_constant<unsigned, 8>{});
  if (bits == 16) return f(std::integral_constant<unsigned, 16>{});
  return f(std::integral_constant<unsigned, 0>{});
}

static void pack_codes(const uint32_t* codes, int64_t n, int bits, uint8_t* out) {
  if (n == GROUP) {
    RowsOut<0> rows{out, static_cast<unsigned>(bits)};
    for (unsigned row = 0; row < 32; ++row) rows.put(row, load(codes + 16 * row));
  } else {
    pack_string(codes, n, bits, out);
  }
}

// ---- coders: a row of values and of random words to codes. `multiplier` is that of the row's scale block ----

// float_code() to nearest. With SCALED there are less than eight bits of exponent, so 2^30 / P is a binary32.
template <bool STOCHASTIC, bool SCALED>
struct FloatCoder {
  static constexpr bool RANDOM = false;
  Floats gain, last;
  Ints smallest, inverse, largest, rebase, field = all(FLOAT_INFINITY), magnitude = all(0x7FFFFFFFu);
  uint32_t sign_mask;
  int mantissa, sign_shift;
  FloatCoder(const FloatForm& form, float g)
      : gain(all(g)),
        last(all(scale_by_power(0.5f, form.mantissa))),
        smallest(all(static_cast<uint32_t>(127 + form.least) << 23)),
        inverse(all(static_cast<uint32_t>(SCALED ? 254 + form.mantissa : 255) << 23)),
        largest(all(form.largest)),
        rebase(all(static_cast<uint32_t>(127 + form.least) << form.mantissa)),
        sign_mask(1u << (form.bits - 1)),
        mantissa(form.mantissa),
        sign_shift(32 - form.bits) {}
  COMMPRESS_INLINE Ints operator()(Floats x, Ints, float multiplier) const {
    Floats y = x * gain;
    if constexpr (SCALED) y = y * all(multiplier);
    const Ints u = bits(y), p = larger(u & field, smallest);
    Floats ratio = floats(u & magnitude) * floats(inverse - p);
    if constexpr (!SCALED) ratio = ratio * last;
    const Ints code = rounded(ratio) + shift_right(p, 23 - mantissa) - rebase;
    return merge(smaller(code, largest), shift_right(u, sign_shift), sign_mask);
  }
};

// float_code() with stochastic rounding.
template <bool SCALED>
struct FloatCoder<true, SCALED> {
  static constexpr bool RANDOM = true;
  Floats gain, smallest;
  Ints largest, keep, base, magnitude = all(0x7FFFFFFFu);
  uint32_t noise, sign_mask;
  int shift, sign_shift;
  FloatCoder(const FloatForm& form, float g)
      : gain(all(g)),
        smallest(all(power_of_two(form.least))),
        largest(all(form.largest)),
        keep(all(float_is_wide(form) ? 0u : ~0u)),
        base(all(0u - float_base(form))),
        noise((1u << (23 - form.mantissa)) - 1),
        sign_mask(1u << (form.bits - 1)),
        shift(23 - form.mantissa),
        sign_shift(32 - form.bits) {}
  COMMPRESS_INLINE Ints operator()(Floats x, Ints random, float multiplier) const {
    Floats y = x * gain;
    if constexpr (SCALED) y = y * all(multiplier);
    const Ints u = bits(y);
    const Floats a = floats(u & magnitude);
    Floats more = larger(a, smallest);
    if constexpr (!SCALED) more = floats(bits(more) & keep);
    // The base has no bits where the noise has some: one `or` adds both.
    const Ints code = shift_right(bits(a + more) + merge(base, random, noise), shift);
    return merge(smaller(code, largest), shift_right(u, sign_shift), sign_mask);
  }
};

template <bool STOCHASTIC>
struct LevelCoder {
  static constexpr bool RANDOM = STOCHASTIC;
  Floats gain;
  Ints offset, noise;
  int digits;
  LevelCoder(const Format& f, float g)
      : gain(all(g)),
        offset(all(static_cast<uint32_t>(f.levels) << (STOCHASTIC ? level_digits(f) : 0))),
        noise(all((1u << level_digits(f)) - 1)),
        digits(level_digits(f)) {}
  COMMPRESS_INLINE Ints operator()(Floats x, Ints random, float multiplier) const {
    const Ints level = rounded(x * gain * all(multiplier)) + offset;
    return STOCHASTIC ? shift_right(level + (random & noise), digits) : level;
  }
};

struct SignCoder {
  static constexpr bool RANDOM = false;
  COMMPRESS_INLINE Ints operator()(Floats x, Ints, float) const { return shift_right(bits(x), 31); }
};

// One group: 32 rows from x on, with a multiplier each.
template <class Coder, class Out>
static COMMPRESS_INLINE void code_group(const Coder& coder, const float* x, const float* multiplier,
                                        const Philox& random, uint32_t counter, Out out) {
  Ints every[8] = {};
  if constexpr (Coder::RANDOM) random.fill<4>(counter, every);
  for (unsigned quarter = 0; quarter < 4; ++quarter) {
    const Ints* const words = every + 2 * quarter;
    each<8>([&](auto i) __attribute__((always_inline)) {
      const unsigned row = 8 * quarter + i;
      prefetch_line(x + 16 * row + BLOCK);  // the next block's statistic comes first
      out.put(row, coder(load(x + 16 * row), rotate_bytes(words[i / 4], i), multiplier[row]));
    });
  }
}

// ---- values of a row of codes. `step` points to that of the row's scale block, or to the gain where there is none
// ----

// float_magnitude() with the sign. A magnitude that no encoder writes counts as the largest, or is special.
template <bool SCALED>
struct FloatValues {
  Ints magnitude_mask, sign_mask, largest, base, normal, special;
  Floats tiny;
  int mantissa, sign_shift;
  explicit FloatValues(const FloatForm& form)
      : magnitude_mask(all((1u << (form.bits - 1)) - 1)),
        sign_mask(all(0x80000000u)),
        largest(all(SCALED ? form.largest : form.largest + 1)),
        base(all(static_cast<uint32_t>(form.least + 126) << 23)),
        normal(all(1u << form.mantissa)),
        special(all(form.infinity == form.nan ? FLOAT_NAN : FLOAT_INFINITY)),
        tiny(all(scale_by_power(1.0f, form.least - form.mantissa))),
        mantissa(form.mantissa),
        sign_shift(32 - form.bits) {}
  COMMPRESS_INLINE Floats operator()(Ints code, const float* step) const {
    Ints m = code & magnitude_mask;
    if constexpr (SCALED) m = smaller(m, largest);
    const Ints shifted = shift_left(m, 23 - mantissa);
    Ints value = where_less(m, normal, bits(to_float(m) * tiny), shifted + base);
    if constexpr (!SCALED) value = where_less(m, largest, value, shifted | special);
    return floats(value | (shift_left(code, sign_shift) & sign_mask)) * all(*step);
  }
};

// The same for codes of four bits: a table of all magnitudes.
struct SmallFloatValues {
  float magnitudes[8];
  Table<8> table;
  explicit SmallFloatValues(const FloatForm& form) : table(filled(form)) {}
  SmallFloatValues(const SmallFloatValues&) = delete;  // the table may point to the magnitudes
  COMMPRESS_INLINE Floats operator()(Ints code, const float* step) const {
    return floats(bits(table[code]) | (shift_left(code, 28) & all(0x80000000u))) * all(*step);
  }

 private:
  const float* filled(const FloatForm& form) {
    for (uint32_t m = 0; m < 8; ++m) magnitudes[m] = float_magnitude(m < form.largest ? m : form.largest, form);
    return magnitudes;
  }
};

struct LevelValues {
  Ints most;
  Floats offset;
  explicit LevelValues(int levels)
      : most(all(2 * static_cast<uint32_t>(levels))), offset(all(static_cast<float>(levels))) {}
  COMMPRESS_INLINE Floats operator()(Ints code, const float* step) const {
    return (to_float(smaller(code, most)) - offset) * all(*step);
  }
};

struct SignValues {
  COMMPRESS_INLINE Floats operator()(Ints code, const float* step) const {
    return floats(shift_left(code, 31) ^ bits(all(*step)));
  }
};

// The step of coordinates without a sign bit; that of those with one lies MAX_SCALES behind.
struct MeanValues {
  COMMPRESS_INLINE Floats operator()(Ints code, const float* step) const {
    return floats(where_less(code, all(1u), bits(all(*step)), bits(all(step[MAX_SCALES]))));
  }
};

// `rows` rows, a multiple of eight, with a step each.
template <Delivery DELIVERY, class Values, class In>
static COMMPRESS_INLINE void value_rows(const Values& values, In in, const float* step, unsigned rows, float* out,
                                        Floats beta) {
  for (unsigned first = 0; first < rows; first += 8)
    each<8>([&](auto i) __attribute__((always_inline)) {
      const unsigned row = first + i;
      deliver<DELIVERY>(out + 16 * row, values(in.get(row), step + row), beta);
    });
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
