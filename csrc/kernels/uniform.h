// The `uniform` family: block maximum, stochastic rounding, packing; and back. Include after a lanes_*.h.
#pragma once
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Largest |x| as the bits of a float: integers order as floats do, with infinities and NaN on top, and the order of the
// comparisons doesn't matter.
static uint32_t largest_bits(const float* x, int64_t n) {
  Ints m = all(0u);
  const Ints mask = all(0x7FFFFFFFu);
  const int64_t rows = n / 16;
  for (int64_t row = 0; row < rows; ++row) m = larger(m, bits(load(x + 16 * row)) & mask);
  uint32_t best = largest_lane(m);
  for (int64_t i = 16 * rows; i < n; ++i) {
    const uint32_t a = bits_of(x[i]) & 0x7FFFFFFFu;
    best = a > best ? a : best;
  }
  return best;
}

// The top bit of every code of word `k`: adding half the code's range to a sum is the same as flipping it afterwards.
constexpr uint32_t top_bits(int bits, int k) {
  uint32_t word = 0;
  for (int i = 0; i < 32; ++i) word |= static_cast<uint32_t>((32 * k + i) % bits == bits - 1) << i;
  return word;
}

template <int B>
static void uniform_encode_group(const float* x, const Philox& random, uint32_t counter, float multiplier,
                                 uint8_t* out) {
  const Floats m = all(multiplier);
  const Ints mask = kept(all(uniform_noise_mask(B)));
  Ints words[B];
  Ints noise[8];
  random.fill<4>(counter, noise);
  each<32>([&](auto row) __attribute__((always_inline)) {
    prefetch_line(x + 16 * row + 4 * GROUP);
    Ints sum = rounded(load(x + 16 * row) * m) + (rotate_bytes(noise[row / 4], row) & mask);
    if constexpr (B == 1) sum = sum + all(uniform_half(1));
    put_top<B>(words, row, sum);
  });
  for (int k = 0; k < B; ++k) store(out + 64 * k, B == 1 ? words[k] : words[k] ^ all(top_bits(B, k)));
}

// Whether more than four of eight coordinates, evenly spaced, are not zero.
static COMMPRESS_INLINE bool uniform_dense(const float* x, int64_t n) {
  int seen = 0;
  for (int64_t i = 0; i < n; i += GROUP / 8) seen += (bits_of(x[i]) << 1) != 0;
  return seen > 4;
}

// Whether the values that are not zero fit, listed, into the bytes of the codes; if so, lists gain times them. Dense
// groups are told by eight of their coordinates, for speed; the rule is part of the wire format.
static bool uniform_encode_list(const float* x, int64_t n, int64_t nbytes, float gain, uint8_t* out) {
  if (uniform_dense(x, n)) return false;
  const int64_t capacity = nbytes / LIST_ENTRY_NBYTES;
  uint16_t count = 0;
  uint8_t list[GROUP];
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i] * gain;
    if (value == 0.0f) continue;
    if (count == capacity || bits_of(value * 0.0f) << 1 != 0) return false;  // full, or not finite
    const uint16_t position = static_cast<uint16_t>(i);
    memcpy(list + LIST_ENTRY_NBYTES * count, &position, 2);
    memcpy(list + LIST_ENTRY_NBYTES * count + 2, &value, 4);
    ++count;
  }
  if (count == 0) return false;
  const uint16_t scale = SCALE16_LIST + count;
  memcpy(out, &scale, 2);
  memcpy(out + 2, list, LIST_ENTRY_NBYTES * count);
  memset(out + 2 + LIST_ENTRY_NBYTES * count, 0, nbytes - LIST_ENTRY_NBYTES * count);
  return true;
}

// Entries that a decoder should refuse are skipped: no byte of a payload can make it write elsewhere.
static void uniform_decode_list(const uint8_t* in, int64_t count, int64_t n, float* out, const Sink& sink) {
  float values[GROUP];
  memset(values, 0, 4 * n);
  for (int64_t e = 0; e < count; ++e, in += LIST_ENTRY_NBYTES) {
    uint16_t position;
    memcpy(&position, in, 2);
    if (position < n) memcpy(values + position, in + 2, 4);
  }
  for (int64_t i = 0; i < n; ++i) deliver(out + i, values[i] * sink.gain, sink);
}

// n <= 512 coordinates whose first has index `index`, all in one group. Returns the bytes written.
static int64_t uniform_encode_run(const float* x, int64_t n, int bits, const Key& key, uint64_t index, float gain,
                                  uint8_t* out) {
  const int64_t nbytes = packed_nbytes(n, bits);
  if (uniform_encode_list(x, n, nbytes, gain, out)) return 2 + nbytes;
  const uint32_t top = largest_bits(x, n);
  float scaled[GROUP], largest = float_of(top);
  UniformScale scale{0, 0.0f};
  if (top >= SCALE32_INFINITY) {
    scale.code = SCALE16_NON_FINITE;
  } else if (top != 0) {
    int exponent = 0;
    if (!ordinary(largest)) {
      exponent = exponent_of(largest);
      for (int64_t i = 0; i < n; ++i) scaled[i] = scale_by_power(x[i], -exponent);
      x = scaled;
      largest = scale_by_power(largest, -exponent);
    }
    scale = uniform_scale(largest, exponent, bits, gain);
  }
  memcpy(out, &scale.code, 2);
  out += 2;
  if (scale.multiplier == 0.0f) {
    memset(out, 0, nbytes);
  } else if (n == GROUP) {
    const Philox random(key, ROUND);
    with_bits(bits, [&](auto b) {
      uniform_encode_group<b>(x, random, static_cast<uint32_t>(index / 16), scale.multiplier, out);
    });
  } else {
    uint32_t codes[GROUP], words[GROUP];
    const Philox random(key, ROUND);
    const uint64_t place = index % GROUP;  // of the first coordinate in its group
    for (uint32_t quarter = 0; quarter < 4; ++quarter) {
      if (128 * (quarter + 1) <= place || 128 * quarter >= place + n) continue;
      Ints both[2];
      random.fill<1>(static_cast<uint32_t>((index - place) / 16) + 8 * quarter, both);
      store(words + 32 * quarter, both[0]);
      store(words + 32 * quarter + 16, both[1]);
    }
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t p = place + i, row = p / 16;
      codes[i] = uniform_code(x[i], scale.multiplier, bits, rotate_left(words[row / 4 * 16 + p % 16], 8 * (row % 4)));
    }
    pack_string(codes, n, bits, out);
  }
  return 2 + nbytes;
}

template <int B, Delivery DELIVERY>
static void uniform_decode_group(const uint8_t* in, float step, float* out, float beta) {
  Ints words[B];
  for (int k = 0; k < B; ++k) words[k] = load_bytes(in + 64 * k);
  const Floats b = all(beta);
  if constexpr ((B == 2 || B == 4) && B > TABLE_BITS) {
    // A longer look-up than one instruction takes longer than the arithmetic: a code with its top bit flipped is the
    // level as a signed number.
    for (int k = 0; k < B; ++k) words[k] = words[k] ^ all(top_bits(B, k));
    const Floats s = all(step);
    each<32>([&](auto row) __attribute__((always_inline)) {
      deliver<DELIVERY>(out + 16 * row, to_float(get_signed<B>(words, row)) * s, b);
    });
  } else if constexpr (B <= 4) {
    float values[1 << B];
    for (uint32_t c = 0; c < 1u << B; ++c) values[c] = uniform_value(c, B, step);
    const Table<1 << B> table(values);
    each<32>([&](auto row)
                 __attribute__((always_inline)) { deliver<DELIVERY>(out + 16 * row, table[get<B>(words, row)], b); });
  } else {
    const Floats s = all(step), half = all(static_cast<float>(1 << (B - 1)));
    const Ints mask = all((1u << B) - 1);
    each<32>([&](auto row) __attribute__((always_inline)) {
      deliver<DELIVERY>(out + 16 * row, (to_float(get<B>(words, row) & mask) - half) * s, b);
    });
  }
}

static int64_t uniform_decode_run(const uint8_t* in, int64_t n, int bits, float* out, const Sink& sink) {
  uint16_t code;
  memcpy(&code, in, 2);
  in += 2;
  const float step = from_bf16(code) * sink.gain;
  if (code == 0 || code == SCALE16_NON_FINITE) {
    deliver_constant(out, n, code ? float_of(0x7FC00000u) : 0.0f, sink);
  } else if (code & SCALE16_LIST) {
    const int64_t capacity = packed_nbytes(n, bits) / LIST_ENTRY_NBYTES, count = code - SCALE16_LIST;
    uniform_decode_list(in, count < capacity ? count : capacity, n, out, sink);
  } else if (n == GROUP) {
    with_bits(bits, [&](auto b) {
      with_delivery(sink.delivery, [&](auto delivery) { uniform_decode_group<b, delivery>(in, step, out, sink.beta); });
    });
  } else {
    uint32_t codes[GROUP];
    unpack_string(in, n, bits, codes);
    for (int64_t i = 0; i < n; ++i) deliver(out + i, uniform_value(codes[i], bits, step), sink);
  }
  return 2 + packed_nbytes(n, bits);
}

// The scale of a group whose values need no care: it is whole, dense, finite, neither huge nor tiny. Otherwise a
// multiplier of zero.
static COMMPRESS_INLINE UniformScale uniform_plain_scale(const float* x, int64_t n, int32_t rate, uint64_t index,
                                                         float gain) {
  if (n < GROUP) return {0, 0.0f};
  const float largest = float_of(largest_bits(x, GROUP));
  if (!ordinary(largest) || !uniform_dense(x, GROUP)) return {0, 0.0f};
  return uniform_scale(largest, 0, group_bits(rate, index), gain);
}

// Runs of up to 512 coordinates that make up n <= BLOCK coordinates from index `index` on.
static int64_t uniform_encode_runs(const float* x, int64_t n, int32_t rate, const Key& key, uint64_t index, float gain,
                                   uint8_t* out) {
  uint8_t* const begin = out;
  const Philox random(key, ROUND);
  UniformScale scale = uniform_plain_scale(x, n, rate, index, gain);
  for (int64_t i = 0; i < n; i += GROUP) {
    const int bits = group_bits(rate, index + i);
    if (scale.multiplier == 0.0f) {
      out += uniform_encode_run(x + i, n - i < GROUP ? n - i : GROUP, bits, key, index + i, gain, out);
      scale = uniform_plain_scale(x + i + GROUP, n - i - GROUP, rate, index + i + GROUP, gain);
      continue;
    }
    // One group ahead: the divisions in a scale take long.
    const UniformScale next = uniform_plain_scale(x + i + GROUP, n - i - GROUP, rate, index + i + GROUP, gain);
    memcpy(out, &scale.code, 2);
    with_bits(bits, [&](auto b) {
      uniform_encode_group<b>(x + i, random, static_cast<uint32_t>((index + i) / 16), scale.multiplier, out + 2);
    });
    out += 2 + 64 * bits;
    scale = next;
  }
  return out - begin;
}

static int64_t uniform_decode_runs(const uint8_t* in, int64_t n, int32_t rate, uint64_t index, float* out,
                                   const Sink& sink) {
  const uint8_t* const begin = in;
  for (int64_t i = 0; i < n; i += GROUP)
    in += uniform_decode_run(in, n - i < GROUP ? n - i : GROUP, group_bits(rate, index + i), out + i, sink);
  return in - begin;
}

static int64_t uniform_encode_block(const float* x, int64_t n, int32_t rate, const Key& key, uint64_t index, float gain,
                                    uint8_t* out) {
  if (!below_one_bit(rate)) return uniform_encode_runs(x, n, rate, key, index, gain, out);
  const int64_t k = selected(rate, index, n);
  float chosen[BLOCK];
  const bool finite = largest_bits(x, n) < SCALE32_INFINITY;
  for (int64_t j = 0; j < k; ++j) {
    const Window w = window(key, index, n, k, j);
    // One value that is not finite marks the whole block, selected or not.
    chosen[j] = finite ? window_value(x[w.chosen], w.length) : float_of(SCALE32_INFINITY);
  }
  return uniform_encode_runs(chosen, k, rate, key, index, gain, out);
}

static int64_t uniform_decode_block(const uint8_t* in, int64_t n, int32_t rate, const Key& key, uint64_t index,
                                    float* out, const Sink& sink) {
  if (!below_one_bit(rate)) return uniform_decode_runs(in, n, rate, index, out, sink);
  const int64_t k = selected(rate, index, n);
  float chosen[BLOCK], block[BLOCK];
  const int64_t nbytes = uniform_decode_runs(in, k, rate, index, chosen, {Delivery::WRITE, sink.gain, 1.0f});
  bool finite = true;
  for (int64_t j = 0; j < k; ++j) finite = finite && chosen[j] == chosen[j];
  if (!finite) {
    deliver_constant(out, n, float_of(0x7FC00000u), sink);
    return nbytes;
  }
  memset(block, 0, 4 * n);
  for (int64_t j = 0; j < k; ++j) block[window(key, index, n, k, j).chosen] = chosen[j];
  for (int64_t i = 0; i < n; ++i) deliver(out + i, block[i], sink);
  return nbytes;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
