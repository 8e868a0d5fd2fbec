// `homomorphic`, one code path: scales, codes, their sums, and back. A homomorphic_*.cpp names the path with
// COMMPRESS_ISA and includes the lanes, then this.
#pragma once
#include "dithered_loops.h"
#include "homomorphic.h"

namespace commpress {
namespace COMMPRESS_ISA {

void grid_scales(const Grid& g, const float* x, int64_t numel, uint8_t* out) {
  for (int64_t i = 0; i < numel; i += g.block, out += 2) {
    const uint16_t scale = grid_scale(largest_magnitude(x + i, numel - i < g.block ? numel - i : g.block));
    memcpy(out, &scale, 2);
  }
}

static void encode_group(const float* x, const uint32_t* first, const uint32_t* stride, uint32_t worker, int width,
                         float multiplier, uint32_t* codes) {
  uint32_t words[GROUP];
  for (int64_t i = 0; i < GROUP; ++i) words[i] = worker_word(first[i], stride[i], worker);
  const Floats m = all(multiplier);
  const Ints half = all(grid_half(width)), mask = all((1u << width) - 1);
  for (int64_t i = 0; i < GROUP; i += 16) {
    const Ints sum = rounded(load(x + i) * m) + half + shift_right(load(words + i), 32 - DITHER_BITS);
    store(codes + i, shift_right(sum, DITHER_BITS) & mask);
  }
}

void grid_encode(const Grid& g, const Key& key, uint32_t worker, int64_t offset, const float* x, int64_t numel,
                 const uint8_t* scales, uint8_t* out) {
  const Philox random(key, DITHER), strides(key, DITHER_STRIDE);
  for (int64_t i = 0; i < numel; i += GROUP) {
    const int64_t n = numel - i < GROUP ? numel - i : GROUP, nbytes = packed_nbytes(n, g.bits);
    uint16_t scale;
    memcpy(&scale, scales + 2 * (i / g.block), 2);
    if (scale == 0 || !grid_scale_valid(scale) || scale == GRID_NON_FINITE) {
      memset(out, 0, nbytes);
    } else {
      float own[GROUP];
      const float* from = x + i;
      const int exponent = grid_exponent(scale);
      if (n < GROUP || exponent) {
        memset(own, 0, sizeof own);
        for (int64_t j = 0; j < n; ++j) own[j] = scale_by_power(from[j], exponent);
        from = own;
      }
      uint32_t first[GROUP], stride[GROUP], codes[GROUP];
      group_words(random, static_cast<uint64_t>(offset + i), first);
      group_words(strides, static_cast<uint64_t>(offset + i), stride);
      encode_group(from, first, stride, worker, g.bits, grid_multiplier(grid_range(scale), g.bits), codes);
      pack_codes(codes, n, g.bits, out);
    }
    out += nbytes;
  }
}

void grid_add(int bits, const uint8_t* const* in, int64_t workers, int64_t numel, uint8_t* out) {
  const int width = sum_width(bits, workers);
  for (int64_t i = 0; i < numel; i += GROUP) {
    const int64_t n = numel - i < GROUP ? numel - i : GROUP, at = i / GROUP * (GROUP / 8) * bits;
    uint32_t sum[GROUP], codes[GROUP];
    unpack_codes(in[0] + at, n, bits, sum);
    for (int64_t k = 1; k < workers; ++k) {
      unpack_codes(in[k] + at, n, bits, codes);
      if (n == GROUP)
        for (int64_t j = 0; j < GROUP; j += 16) store(sum + j, load(sum + j) + load(codes + j));
      else
        for (int64_t j = 0; j < n; ++j) sum[j] += codes[j];
    }
    pack_codes(sum, n, width, out);
    out += packed_nbytes(n, width);
  }
}

// The sum of the workers' dithers.
static void dither_sums(const uint32_t* first, const uint32_t* stride, uint32_t worker, int64_t workers,
                        uint32_t* sums) {
  uint32_t words[GROUP];
  for (int64_t i = 0; i < GROUP; ++i) words[i] = worker_word(first[i], stride[i], worker);
  for (int64_t i = 0; i < GROUP; i += 16) {
    Ints word = load(words + i), sum = all(0u);
    const Ints step = load(stride + i);
    for (int64_t k = 0; k < workers; ++k) {
      sum = sum + shift_right(word, 32 - DITHER_BITS);
      word = word + step;
    }
    store(sums + i, sum);
  }
}

static void decode_group(const uint32_t* codes, const uint32_t* dithers, int bits, int64_t workers, bool subtract,
                         float half_step, float* values) {
  const Floats h = all(half_step), fine = all(1.0f / DITHER_ONE);
  const Ints middle = all(static_cast<uint32_t>(workers) * ((1u << bits) - 1)),
             mean = all(static_cast<uint32_t>(workers) * (DITHER_ONE - 1));
  for (int64_t i = 0; i < GROUP; i += 16) {
    Floats level = to_float(shift_left(load(codes + i), 1) - middle);
    if (subtract) level = level - to_float(shift_left(load(dithers + i), 1) - mean) * fine;
    store(values + i, level * h);
  }
}

void grid_decode(const Grid& g, const Key& key, uint32_t worker, int64_t workers, int64_t offset, const uint8_t* in,
                 const uint8_t* scales, int64_t numel, float* out, bool accumulate, float gain, float beta) {
  const int width = sum_width(g.bits, workers);
  const Philox random(key, DITHER), strides(key, DITHER_STRIDE);
  const Sink sink{delivery_of(accumulate, false, beta), gain, beta};
  for (int64_t i = 0; i < numel; i += GROUP) {
    const int64_t n = numel - i < GROUP ? numel - i : GROUP;
    uint16_t scale;
    memcpy(&scale, scales + 2 * (i / g.block), 2);
    if (scale == 0 || !grid_scale_valid(scale) || scale == GRID_NON_FINITE) {
      deliver_constant(out + i, n, scale ? float_of(0x7FC00000u) : 0.0f, sink);
    } else {
      uint32_t codes[GROUP], dithers[GROUP];
      float values[GROUP];
      if (n < GROUP) memset(codes, 0, sizeof codes);
      unpack_codes(in, n, width, codes);
      if (g.subtract) {
        uint32_t first[GROUP], stride[GROUP];
        group_words(random, static_cast<uint64_t>(offset + i), first);
        group_words(strides, static_cast<uint64_t>(offset + i), stride);
        dither_sums(first, stride, worker, workers, dithers);
      }
      const float half_step = grid_half_step(grid_range(scale), g.bits) * gain;
      decode_group(codes, dithers, g.bits, workers, g.subtract, half_step, values);
      if (const int exponent = grid_exponent(scale)) {
        const float most = float_of(SCALE32_INFINITY - 1);
        for (int64_t j = 0; j < n; ++j) {
          const float value = scale_by_power(values[j], -exponent);
          values[j] = value > most ? most : value < -most ? -most : value;
        }
      }
      for (int64_t j = 0; j < n; ++j) deliver(out + i + j, values[j], sink);
    }
    in += packed_nbytes(n, width);
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
