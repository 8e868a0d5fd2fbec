// The `lloyd` and `hadamard+lloyd` families on the device, the careful way: any number of coordinates, any magnitudes.
#pragma once
#include "cuda_lloyd_tables.h"
#include "cuda_uniform.h"

namespace commpress {
namespace cuda {

struct Rate {
  int32_t value;
  bool centroid;
};

// ---- codes ----

COMMPRESS_DEVICE float level_of(int bits, uint32_t code) {
  float level = 0.0f;
  with_bits(bits, [&](auto b) { level = LLOYD_TABLES<b.value>.level[code]; });
  return level;
}

// Codes of the first `sent` of y's n values, times `inverse`, go to `codes`; y becomes what is summed for P. Returns P
// and, if wanted, Q. With `part`, P is that of all n values at one bit.
struct Products {
  float p, q;
};
COMMPRESS_DEVICE Products careful_codes(const Workspace& w, int n, int sent, Rate rate, int64_t index, float inverse,
                                        bool part) {
  for (int i = thread(); i < n; i += threads()) {
    const int bits = group_bits(rate.value, index + i / static_cast<int>(GROUP) * GROUP);
    float product = 0.0f;
    with_bits(bits, [&](auto b) {
      const auto& tables = LLOYD_TABLES<b.value>;
      const float v = w.y[i] * (LloydMax<b.value>::PER_SIGMA * inverse);
      const Coded c = coded<b.value>(tables, v);
      if (i < sent) w.codes[i] = static_cast<uint8_t>(c.code4 / 4);
      product = c.product;
    });
    w.y[i] = product;
  }
  __syncthreads();
  Products products;
  products.p = sum_by_rows(w, part && !rate.centroid ? n : sent, [&](int i) { return w.y[i]; });
  products.q = 0.0f;
  if (rate.centroid)
    products.q = sum_by_rows(w, sent, [&](int i) {
      const float level = level_of(group_bits(rate.value, index + i / static_cast<int>(GROUP) * GROUP), w.codes[i]);
      return level * level;
    });
  return products;
}

// Writes the scale and the packed codes of a piece; where the scale says that all is zero or not finite, zeros.
COMMPRESS_DEVICE int write_piece(const Workspace& w, uint32_t scale, int sent, int32_t rate, int64_t index,
                                 uint8_t* out) {
  const int nbytes = 4 + static_cast<int>(run_nbytes(rate, index, sent, 0));
  const bool clear = scale == 0 || scale == SCALE32_NON_FINITE;
  if (thread() == 0) w.staged[0] = scale;
  int byte = 4;
  for (int i = 0; i < sent; i += static_cast<int>(GROUP)) {
    const int m = smaller(sent - i, static_cast<int>(GROUP)), bits = group_bits(rate, index + i);
    const int code_nbytes = static_cast<int>(packed_nbytes(m, bits));
    if (clear)
      for (int k = thread(); k < code_nbytes; k += threads()) bytes_of(w.staged)[byte + k] = 0;
    else
      pack_run(w.codes + i, m, bits, w.staged, byte, thread(), threads());
    byte += code_nbytes;
  }
  __syncthreads();
  store_bytes(w.staged, nbytes, out, thread(), threads());
  __syncthreads();
  return nbytes;
}

// Brings n values in `y` into range. False if there is nothing to send but `scale`; `energy`, `largest` and `exponent`
// are of what `y` then holds.
struct Magnitudes {
  float energy, largest;
  int exponent;
  uint32_t scale;
};
COMMPRESS_DEVICE bool examine(const Workspace& w, int n, Magnitudes& m) {
  const uint32_t top = careful_largest(w, n);
  m.largest = float_of(top);
  m.exponent = 0;
  m.scale = 0;
  m.energy = careful_energy(w, n);
  if (ordinary(m.energy)) return true;
  if (top == 0) return false;
  if (top >= SCALE32_INFINITY) {
    m.scale = SCALE32_NON_FINITE;
    return false;
  }
  m.exponent = exponent_of(m.largest);
  careful_scale(w, n, -m.exponent);
  m.largest = scale_by_power(m.largest, -m.exponent);
  m.energy = careful_energy(w, n);
  return true;
}

// ---- hadamard+lloyd: n = 128, 256, ... 4096 ----

// `staged` may share its place with `y`. Returns the bytes written.
COMMPRESS_SELDOM int rotated_encode_careful(Workspace w, Values x, int n, Rate rate, Key key, int64_t index, float gain,
                                            uint8_t* out) {
  for (int i = thread(); i < n; i += threads()) w.y[i] = x[i];
  __syncthreads();
  const bool part = below_one_bit(rate.value);
  const int sent = part ? static_cast<int>(selected(rate.value, index, n)) : n;
  Magnitudes m;
  if (!examine(w, n, m)) return write_piece(w, m.scale, sent, rate.value, index, out);
  const bool twice = m.largest * m.largest * 32.0f > m.energy;
  careful_rotate(w, key, ROTATE_FIRST, index, n);
  if (twice) careful_rotate(w, key, ROTATE_SECOND, index, n);
  const float size = static_cast<float>(n);
  const float deviation = square_root(twice ? m.energy * size : m.energy), inverse = divide(1.0f, deviation);
  Products products = careful_codes(w, n, sent, rate, index, inverse, part);
  if (part && !rate.centroid) products.p = products.p * divide(static_cast<float>(sent), size);
  const uint32_t scale = lloyd_scale(m.energy, deviation, products.p, products.q, twice ? size * size : size,
                                     rate.centroid, m.exponent, gain);
  return write_piece(w, scale && twice ? scale | SCALE32_TWO_ROTATIONS : scale, sent, rate.value, index, out);
}

// Levels of the first `sent` codes to y, zeros to the rest of n. Returns the scale.
COMMPRESS_DEVICE uint32_t read_piece(const Workspace& w, const uint8_t* in, int n, int sent, int32_t rate,
                                     int64_t index) {
  load_bytes(in, 4 + static_cast<int>(run_nbytes(rate, index, sent, 0)), w.staged, thread(), threads());
  __syncthreads();
  const uint32_t scale = w.staged[0];
  int byte = 4;
  for (int i = 0; i < sent; i += static_cast<int>(GROUP)) {
    const int m = smaller(sent - i, static_cast<int>(GROUP)), bits = group_bits(rate, index + i);
    for (int k = thread(); k < m; k += threads())
      w.codes[i + k] = static_cast<uint8_t>(packed_code(w.staged, byte, m, bits, k));
    byte += static_cast<int>(packed_nbytes(m, bits));
  }
  __syncthreads();  // the bytes may lie where the levels go
  for (int i = thread(); i < n; i += threads())
    w.y[i] = i < sent ? level_of(group_bits(rate, index + i / static_cast<int>(GROUP) * GROUP), w.codes[i]) : 0.0f;
  __syncthreads();
  return scale;
}

COMMPRESS_DEVICE void deliver_product(const Workspace& w, int n, float factor, float* out, const Sink& sink) {
  for (int i = thread(); i < n; i += threads())
    deliver(out + i, factor <= LARGE_FACTOR ? w.y[i] * factor : finite_product(w.y[i], factor), sink);
  __syncthreads();
}

// Returns the bytes read, or -1 for a payload that no encoder writes.
COMMPRESS_SELDOM int rotated_decode_careful(Workspace w, const uint8_t* in, int n, Rate rate, Key key, int64_t index,
                                            float* out, Sink sink) {
  const int sent = below_one_bit(rate.value) ? static_cast<int>(selected(rate.value, index, n)) : n;
  const uint32_t scale = read_piece(w, in, n, sent, rate.value, index);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(n, scale ? float_of(QUIET_NAN) : 0.0f, out, sink);
  } else {
    if (scale & SCALE32_TWO_ROTATIONS) careful_unrotate(w, key, ROTATE_SECOND, index, n);
    careful_unrotate(w, key, ROTATE_FIRST, index, n);
    deliver_product(w, n, float_of(scale & ~SCALE32_TWO_ROTATIONS) * sink.gain, out, sink);
  }
  return scale32_valid(scale) ? 4 + static_cast<int>(run_nbytes(rate.value, index, sent, 0)) : -1;
}

// ---- lloyd: no rotation, least-squares scale ----

COMMPRESS_SELDOM int lloyd_encode_careful(Workspace w, Values x, int n, int32_t rate, Key key, int64_t index,
                                          float gain, uint8_t* out) {
  const int sent = below_one_bit(rate) ? static_cast<int>(selected(rate, index, n)) : n;
  if (sent < n) {
    uint32_t most = 0;
    for (int i = thread(); i < n; i += threads()) most = larger(most, magnitude(x[i]));
    if (block_largest(most, w.scratch) >= SCALE32_INFINITY)
      return write_piece(w, SCALE32_NON_FINITE, sent, rate, index, out);  // though it may not be among the chosen
  }
  for (int j = thread(); j < sent; j += threads())
    w.y[j] = x[sent < n ? static_cast<int>(window(key, static_cast<uint64_t>(index), n, sent, j).chosen) : j];
  __syncthreads();
  Magnitudes m;
  if (!examine(w, sent, m)) return write_piece(w, m.scale, sent, rate, index, out);
  const float deviation = square_root(divide(m.energy, static_cast<float>(sent)));
  const Products products = careful_codes(w, sent, sent, {rate, true}, index, divide(1.0f, deviation), false);
  const uint32_t scale = lloyd_scale(m.energy, deviation, products.p, products.q, 1.0f, true, m.exponent, gain);
  return write_piece(w, scale, sent, rate, index, out);
}

COMMPRESS_SELDOM int lloyd_decode_careful(Workspace w, const uint8_t* in, int n, int32_t rate, Key key, int64_t index,
                                          float* out, Sink sink) {
  const bool part = below_one_bit(rate);
  const int sent = part ? static_cast<int>(selected(rate, index, n)) : n;
  const uint32_t scale = read_piece(w, in, sent, sent, rate, index);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(n, scale ? float_of(QUIET_NAN) : 0.0f, out, sink);
  } else if (!part) {
    deliver_product(w, n, float_of(scale) * sink.gain, out, sink);
  } else {
    const float factor = float_of(scale) * sink.gain;
    for (int i = thread(); i < n; i += threads()) w.codes[i] = 0;
    __syncthreads();
    for (int j = thread(); j < sent; j += threads()) {
      const int chosen = static_cast<int>(window(key, static_cast<uint64_t>(index), n, sent, j).chosen);
      w.codes[chosen] = 1;
      deliver(out + chosen, factor <= LARGE_FACTOR ? w.y[j] * factor : finite_product(w.y[j], factor), sink);
    }
    __syncthreads();
    for (int i = thread(); i < n; i += threads())
      if (!w.codes[i]) deliver(out + i, factor <= LARGE_FACTOR ? 0.0f * factor : 0.0f, sink);
    __syncthreads();
  }
  const bool valid = scale32_valid(scale) && (scale == SCALE32_NON_FINITE || !(scale & SCALE32_TWO_ROTATIONS));
  return valid ? 4 + static_cast<int>(run_nbytes(rate, index, sent, 0)) : -1;
}

// ---- hadamard+lloyd: a block of any size, whole or cut into powers of two and a rest ----

COMMPRESS_DEVICE void rotated_encode_any(const Workspace& w, Values x, int n, Rate rate, const Key& key, int64_t index,
                                         float gain, uint8_t* out) {
  if (n == BLOCK) {
    rotated_encode_careful(w, x, n, rate, key, index, gain, out);
    return;
  }
  for (int size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    out += rotated_encode_careful(w, x, size, rate, key, index, gain, out);
    x = x.from(size);
    index += size;
  }
  const int rest = n % static_cast<int>(SMALLEST_ROTATION);
  if (rest == 0) return;
  if (rate.centroid)
    lloyd_encode_careful(w, x, rest, rate.value, key, index, gain, out);
  else
    uniform_encode_careful(w, x, rest, rate.value, key, index, gain, out);
}

// Whether the payload is valid.
COMMPRESS_DEVICE bool rotated_decode_any(const Workspace& w, const uint8_t* in, int n, Rate rate, const Key& key,
                                         int64_t index, float* out, const Sink& sink) {
  if (n == BLOCK) return rotated_decode_careful(w, in, n, rate, key, index, out, sink) >= 0;
  bool valid = true;
  for (int size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    valid = rotated_decode_careful(w, in, size, rate, key, index, out, sink) >= 0 && valid;
    const int64_t sent = below_one_bit(rate.value) ? selected(rate.value, index, size) : size;
    in += 4 + run_nbytes(rate.value, index, sent, 0);
    out += size;
    index += size;
  }
  const int rest = n % static_cast<int>(SMALLEST_ROTATION);
  if (rest == 0) return valid;
  const int read = rate.centroid ? lloyd_decode_careful(w, in, rest, rate.value, key, index, out, sink)
                                 : uniform_decode_careful(w, in, rest, rate.value, key, index, out, sink);
  return read >= 0 && valid;
}

}  // namespace cuda
}  // namespace commpress
