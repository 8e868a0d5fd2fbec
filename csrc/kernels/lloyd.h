// The `lloyd` and `hadamard+lloyd` families: statistics, rotation, Lloyd-Max codes, packing; and back.
#pragma once
#include "hadamard.h"
#include "lloyd_rows.h"
#include "uniform.h"

namespace commpress {
namespace COMMPRESS_ISA {

// P and Q of docs/wire-format.md 4.3. Q is needed for the centroid scale only.
struct Products {
  Floats p[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  Floats q[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
};

enum class Rotate { NO, YES };

// One full group. With Rotate::YES `y` has been through rotate_far() only, and the rest of the transform happens here,
// in registers. `ahead` is input that will be wanted soon: twenty lines of it are fetched along the way.
template <int B, Rotate ROTATE, bool CENTROID>
static void lloyd_encode_group(const float* y, const float* ahead, float inverse, Products& products, uint8_t* out) {
  const Floats scale = all(LloydMax<B>::PER_SIGMA * inverse);
  Quantiser<B> quantiser;
  Products sums = products;  // local, so that it can live in registers
  each<2>([&](auto half) __attribute__((always_inline)) {
    Floats r[16];
    each<16>([&](auto i) __attribute__((always_inline)) { r[i] = load(y + 256 * half + 16 * i); });
    if constexpr (ROTATE == Rotate::YES) {
      butterflies16(r);
      each<16>([&](auto i) __attribute__((always_inline)) { r[i] = hadamard16(r[i]); });
    }
    each<16>([&](auto i) __attribute__((always_inline)) {
      if (i < 10) prefetch_line(ahead + 160 * half + 16 * i);
      quantiser.template row<CENTROID>(16 * half + i, r[i] * scale, sums.p[i % 4], sums.q[i % 4]);
    });
  });
  products = sums;
  quantiser.finish(out);
}

// A run of fewer than 512 coordinates, already rotated.
template <int B>
static void lloyd_encode_string(const float* y, int64_t n, float inverse, bool centroid, Products& products,
                                uint8_t* out) {
  using L = LloydMax<B>;
  const float scale = L::PER_SIGMA * inverse;
  uint32_t codes[GROUP];
  for (int64_t first = 0; first < n; first += 16) {
    float p[16] = {}, q[16] = {};
    for (int64_t i = first; i < n && i < first + 16; ++i) {
      const float v = y[i] * scale;
      const int32_t code = lloyd_code<B>(v);
      p[i - first] = v * L::PRODUCT_LEVEL[code];
      q[i - first] = L::LEVEL[code] * L::LEVEL[code];
      codes[i] = static_cast<uint32_t>(code);
    }
    Floats &sum = products.p[first / 16 % 4], &square = products.q[first / 16 % 4];
    sum = sum + load(p);
    if (centroid) square = square + load(q);
  }
  pack_string(codes, n, B, out);
}

template <Rotate ROTATE, bool CENTROID>
static int64_t lloyd_encode_run(const float* y, const float* ahead, int64_t n, int bits, float inverse,
                                Products& products, uint8_t* out) {
  with_bits(bits, [&](auto b) {
    if (n == GROUP)
      lloyd_encode_group<b, ROTATE, CENTROID>(y, ahead, inverse, products, out);
    else
      lloyd_encode_string<b>(y, n, inverse, CENTROID, products, out);
  });
  return packed_nbytes(n, bits);
}

template <Rotate ROTATE>
static int64_t lloyd_encode_runs(const float* y, const float* ahead, int64_t n, int32_t rate, uint64_t index,
                                 float inverse, bool centroid, Products& products, uint8_t* out) {
  uint8_t* const begin = out;
  for (int64_t i = 0; i < n; i += GROUP) {
    const int64_t run = n - i < GROUP ? n - i : GROUP;
    const int bits = group_bits(rate, index + i);
    out += centroid ? lloyd_encode_run<ROTATE, true>(y + i, ahead + i * 5 / 8, run, bits, inverse, products, out)
                    : lloyd_encode_run<ROTATE, false>(y + i, ahead + i * 5 / 8, run, bits, inverse, products, out);
  }
  return out - begin;
}

// A row of which only `n` coordinates exist, the rest zero.
static COMMPRESS_INLINE Floats load_part(const float* x, int64_t n) {
  if (n >= 16) return load(x);
  float padded[16] = {};
  memcpy(padded, x, 4 * n);
  return load(padded);
}

// Sum of squares of any number of coordinates.
static float energy_of(const float* x, int64_t n) {
  Squares squares;
  for (int64_t j = 0; j < 16; ++j)
    for (int64_t k = 0; 16 * (16 * k + j) < n; ++k) {
      const int64_t first = 16 * (16 * k + j);
      const Floats v = load_part(x + first, n - first);
      squares.sum[k % 4] = squares.sum[k % 4] + v * v;
    }
  return fold(squares.sum);
}

// What to do with a block whose sum of squares is out of range: nothing to send (0), not finite, or send it multiplied
// by 2^-exponent.
struct Unusual {
  uint32_t scale;
  bool send;
  int exponent;
};
static Unusual examine(const float* x, int64_t n, float* scaled) {
  const uint32_t top = largest_bits(x, n);
  if (top == 0) return {0, false, 0};
  if (top >= SCALE32_INFINITY) return {SCALE32_NON_FINITE, false, 0};
  const int exponent = exponent_of(float_of(top));
  for (int64_t i = 0; i < n; ++i) scaled[i] = scale_by_power(x[i], -exponent);
  return {0, true, exponent};
}

// Writes the scale in front of a block whose codes have been written, or clears the codes of one that is zero or not
// finite.
static int64_t finish_block(uint32_t scale, int64_t code_nbytes, uint8_t* out) {
  memcpy(out, &scale, 4);
  if (scale == 0 || scale == SCALE32_NON_FINITE) memset(out + 4, 0, code_nbytes);
  return 4 + code_nbytes;
}

// P of all n coordinates at one bit: what the unbiased scale rests on when only some of them are sent. Over those alone
// it could be zero.
static float one_bit_product(const float* y, int64_t n, float inverse) {
  using L = LloydMax<1>;
  Products products;
  const Floats scale = all(L::PER_SIGMA * inverse), level = all(L::PRODUCT_LEVEL[1]);
  for (int64_t row = 0; row < n / 16; ++row)
    products.p[row % 4] = products.p[row % 4] + absolute(load(y + 16 * row) * scale) * level;
  return fold(products.p);
}

struct Rate {
  int32_t value;
  bool centroid;
};

// ---- hadamard+lloyd: blocks of 128, 256, ... 4096 coordinates ----

static int64_t rotated_encode_block(const float* x, int64_t n, Rate rate, const Key& key, uint64_t index, float gain,
                                    uint8_t* out) {
  const int rows = static_cast<int>(n / 16);
  const bool part = below_one_bit(rate.value);
  const int64_t sent = part ? selected(rate.value, index, n) : n, code_nbytes = run_nbytes(rate.value, index, sent, 0);
  alignas(64) float y[BLOCK];
  float scaled[BLOCK];
  const Signs signs(key, ROTATE_FIRST, index, n);
  Unusual unusual{0, true, 0};
  Squares squares;
  rotate_far<Measure::YES>(x, rows, signs, y, squares);
  float energy = fold(squares.sum);
  if (!ordinary(energy)) {
    unusual = examine(x, n, scaled);
    if (!unusual.send) return finish_block(unusual.scale, code_nbytes, out);
    squares = Squares();
    rotate_far<Measure::YES>(scaled, rows, signs, y, squares);
    energy = fold(squares.sum);
  }
  const bool twice = largest_lane(squares.most) * 32.0f > energy;
  const float size = static_cast<float>(n);
  if (twice) {
    rotate_near(y, rows);
    rotate_far<Measure::NO>(y, rows, Signs(key, ROTATE_SECOND, index, n), y, squares);
  }
  const float deviation = square_root(twice ? energy * size : energy), inverse = divide(1.0f, deviation);
  Products products;
  if (n == BLOCK && !part) {
    lloyd_encode_runs<Rotate::YES>(y, x + BLOCK + 16 * FAR_LINES, n, rate.value, index, inverse, rate.centroid,
                                   products, out + 4);
  } else {
    rotate_near(y, rows);
    lloyd_encode_runs<Rotate::NO>(y, x + n, sent, rate.value, index, inverse, rate.centroid, products, out + 4);
  }
  float product = fold(products.p);
  if (part && !rate.centroid) product = one_bit_product(y, n, inverse) * divide(static_cast<float>(sent), size);
  const uint32_t scale = lloyd_scale(energy, deviation, product, fold(products.q), twice ? size * size : size,
                                     rate.centroid, unusual.exponent, gain);
  return finish_block(scale && twice ? scale | SCALE32_TWO_ROTATIONS : scale, code_nbytes, out);
}

// Levels of one full group; with Rotate::YES taken through the near half of the transform as well. The lines of `out`,
// if given, will be wanted soon.
template <int B, Rotate ROTATE>
static void lloyd_decode_group(const uint8_t* in, float* z, const float* out) {
  Ints words[B];
  for (int k = 0; k < B; ++k) words[k] = load_bytes(in + 64 * k);
  // As many rows at a time as one look-up takes: it does their butterflies as well.
  constexpr int ROWS = ROTATE == Rotate::NO ? 1 : 4 * B <= TABLE_BITS ? 4 : 2 * B <= TABLE_BITS ? 2 : 1;
  const LevelTables<B, ROWS> level{std::make_integer_sequence<int, ROWS>()};
  each<2>([&](auto half) __attribute__((always_inline)) {
    Floats r[16];
    if constexpr (ROWS == 1) {  // written out: GCC makes the general form a tenth slower in AVX2
      each<16>([&](auto i) __attribute__((always_inline)) { r[i] = level.row[0][get<B>(words, 16 * half + i)]; });
    } else {
      each<16 / ROWS>([&](auto i) __attribute__((always_inline)) {
        const Ints codes = get<B>(words, 16 * half + ROWS * i);
        each<ROWS>([&](auto j) __attribute__((always_inline)) { r[ROWS * i + j] = level.row[j][codes]; });
      });
    }
    if constexpr (ROTATE == Rotate::YES) {
      butterflies16<ROWS>(r);
      each<16>([&](auto i) __attribute__((always_inline)) { r[i] = hadamard16(r[i]); });
    }
    each<16>([&](auto i) __attribute__((always_inline)) {
      if (out) prefetch_line_to_write(out + 256 * half + 16 * i);
      store(z + 256 * half + 16 * i, r[i]);
    });
  });
}

template <Rotate ROTATE>
static int64_t lloyd_decode_runs(const uint8_t* in, int64_t n, int32_t rate, uint64_t index, float* z,
                                 const float* out) {
  const uint8_t* const begin = in;
  for (int64_t i = 0; i < n; i += GROUP) {
    const int64_t run = n - i < GROUP ? n - i : GROUP;
    const int bits = group_bits(rate, index + i);
    with_bits(bits, [&](auto b) {
      if (run == GROUP) return lloyd_decode_group<b, ROTATE>(in, z + i, out ? out + i : nullptr);
      uint32_t codes[GROUP];
      unpack_string(in, run, b, codes);
      for (int64_t c = 0; c < run; ++c) z[i + c] = LloydMax<b>::LEVEL[codes[c]];
    });
    in += packed_nbytes(run, bits);
  }
  return in - begin;
}

static int64_t rotated_decode_block(const uint8_t* in, int64_t n, Rate rate, const Key& key, uint64_t index, float* out,
                                    const Sink& sink) {
  const int rows = static_cast<int>(n / 16);
  const bool part = below_one_bit(rate.value);
  const int64_t sent = part ? selected(rate.value, index, n) : n, nbytes = 4 + run_nbytes(rate.value, index, sent, 0);
  uint32_t scale;
  memcpy(&scale, in, 4);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(out, n, scale ? float_of(0x7FC00000u) : 0.0f, sink);
    return nbytes;
  }
  alignas(64) float z[BLOCK];
  if (n == BLOCK && !part) {
    lloyd_decode_runs<Rotate::YES>(in + 4, n, rate.value, index, z, sink.delivery == Delivery::STREAM ? nullptr : out);
  } else {
    if (sent < n) memset(z + sent, 0, 4 * (n - sent));
    lloyd_decode_runs<Rotate::NO>(in + 4, sent, rate.value, index, z, nullptr);
    rotate_near(z, rows);
  }
  if (scale & SCALE32_TWO_ROTATIONS) {
    unrotate_far(z, rows, Signs(key, ROTATE_SECOND, index, n),
                 [&](int row, Floats v) __attribute__((always_inline)) { store(z + 16 * row, v); });
    rotate_near(z, rows);
  }
  const float scalar = float_of(scale & ~SCALE32_TWO_ROTATIONS) * sink.gain;
  const Floats factor = all(scalar), beta = all(sink.beta);
  const Signs signs(key, ROTATE_FIRST, index, n);
  if (!(scalar <= LARGE_FACTOR)) {
    unrotate_far(z, rows, signs, [&](int row, Floats v) __attribute__((always_inline)) { store(z + 16 * row, v); });
    for (int64_t i = 0; i < n; ++i) deliver(out + i, finite_product(z[i], scalar), sink);
  } else {
    with_delivery(sink.delivery, [&](auto delivery) {
      unrotate_far(z, rows, signs, [&](int row, Floats v) __attribute__((always_inline)) {
        deliver<delivery>(out + 16 * row, v * factor, beta);
      });
    });
  }
  return nbytes;
}

// ---- lloyd: no rotation, least-squares scale ----

static int64_t lloyd_encode_block(const float* x, int64_t n, int32_t rate, const Key& key, uint64_t index, float gain,
                                  uint8_t* out) {
  float chosen[BLOCK], scaled[BLOCK];
  const int64_t k = below_one_bit(rate) ? selected(rate, index, n) : n, code_nbytes = run_nbytes(rate, index, k, 0);
  if (k < n) {
    if (largest_bits(x, n) >= SCALE32_INFINITY)
      return finish_block(SCALE32_NON_FINITE, code_nbytes, out);  // though it may not be among the chosen
    for (int64_t j = 0; j < k; ++j) chosen[j] = x[window(key, index, n, k, j).chosen];
    x = chosen;
    n = k;
  }
  Unusual unusual{0, true, 0};
  float energy = energy_of(x, n);
  if (!ordinary(energy)) {
    unusual = examine(x, n, scaled);
    if (!unusual.send) return finish_block(unusual.scale, code_nbytes, out);
    x = scaled;
    energy = energy_of(x, n);
  }
  const float deviation = square_root(divide(energy, static_cast<float>(n)));
  Products products;
  lloyd_encode_runs<Rotate::NO>(x, x + n, n, rate, index, divide(1.0f, deviation), true, products, out + 4);
  return finish_block(
      lloyd_scale(energy, deviation, fold(products.p), fold(products.q), 1.0f, true, unusual.exponent, gain),
      code_nbytes, out);
}

static int64_t lloyd_decode_block(const uint8_t* in, int64_t n, int32_t rate, const Key& key, uint64_t index,
                                  float* out, const Sink& sink) {
  const bool part = below_one_bit(rate);
  const int64_t k = part ? selected(rate, index, n) : n, nbytes = 4 + run_nbytes(rate, index, k, 0);
  uint32_t scale;
  memcpy(&scale, in, 4);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(out, n, scale ? float_of(0x7FC00000u) : 0.0f, sink);
    return nbytes;
  }
  const float factor = float_of(scale) * sink.gain;
  float z[BLOCK], block[BLOCK];
  lloyd_decode_runs<Rotate::NO>(in + 4, k, rate, index, z, nullptr);
  const float* values = z;
  if (part) {
    memset(block, 0, 4 * n);
    for (int64_t j = 0; j < k; ++j) block[window(key, index, n, k, j).chosen] = z[j];
    values = block;
  }
  int64_t i = 0;
  if (factor <= LARGE_FACTOR) {
    const Floats f = all(factor), beta = all(sink.beta);
    with_delivery(sink.delivery, [&](auto delivery) {
      for (; i + 16 <= n; i += 16) deliver<delivery>(out + i, load(values + i) * f, beta);
    });
  }
  for (; i < n; ++i) deliver(out + i, finite_product(values[i], factor), sink);
  return nbytes;
}

// ---- hadamard+lloyd: any number of coordinates ----

// A block of any size: whole, or cut into powers of two and a rest for which no rotation is Gaussian enough. The rest
// is rounded stochastically, which is unbiased; or with the centroid scale coded without rotation, since feedback needs
// an error below the value itself.
static int64_t rotated_encode_any(const float* x, int64_t n, Rate rate, const Key& key, uint64_t index, float gain,
                                  uint8_t* out) {
  if (n == BLOCK) return rotated_encode_block(x, n, rate, key, index, gain, out);
  uint8_t* const begin = out;
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    out += rotated_encode_block(x, size, rate, key, index, gain, out);
    x += size;
    index += size;
  }
  const int64_t rest = n % SMALLEST_ROTATION;
  if (rest)
    out += rate.centroid ? lloyd_encode_block(x, rest, rate.value, key, index, gain, out)
                         : uniform_encode_block(x, rest, rate.value, key, index, gain, out);
  return out - begin;
}

static int64_t rotated_decode_any(const uint8_t* in, int64_t n, Rate rate, const Key& key, uint64_t index, float* out,
                                  const Sink& sink) {
  if (n == BLOCK) return rotated_decode_block(in, n, rate, key, index, out, sink);
  const uint8_t* const begin = in;
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    in += rotated_decode_block(in, size, rate, key, index, out, sink);
    out += size;
    index += size;
  }
  const int64_t rest = n % SMALLEST_ROTATION;
  if (rest)
    in += rate.centroid ? lloyd_decode_block(in, rest, rate.value, key, index, out, sink)
                        : uniform_decode_block(in, rest, rate.value, key, index, out, sink);
  return in - begin;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
