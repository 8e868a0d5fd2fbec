// Number formats, encoded: statistics of scale blocks -> scales -> codes, which go through shared memory, where words
// are put together from them. One way serves every width, size and dtype.
#pragma once
#include "cuda_formats.h"
#include "cuda_launch.h"

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

// ---- values ----

// gain * value, or what the work goes on with where a block is not finite, tiny or huge.
COMMPRESS_DEVICE void prepare(float (&values)[4][8], const FormatSpace& s, const Spot& at, const Shape& shape,
                              float gain, bool care) {
  if (!care) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) {
      COMMPRESS_UNROLL_ALL
      for (int lane = 0; lane < 4; ++lane) values[lane][row] *= gain;
    }
    return;
  }
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    const int b = (first_row(at) + row) >> shape.shift, exponent = b < shape.scales ? s.exponent[b] : NOT_FINITE;
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane)
      values[lane][row] =
          exponent == NOT_FINITE ? 0.0f : scale_by_power(clamped_product(values[lane][row], gain), -exponent);
  }
}

COMMPRESS_DEVICE uint4* four_of(uint32_t* codes, int row, int quad) {
  return reinterpret_cast<uint4*>(codes + 16 * row + 4 * quad);
}
COMMPRESS_DEVICE const uint4* four_of(const uint32_t* codes, int row, int quad) {
  return reinterpret_cast<const uint4*>(codes + 16 * row + 4 * quad);
}

// Values to where sums are taken of them. A barrier must follow.
COMMPRESS_DEVICE void show_values(const float (&values)[4][8], const Spot& at, uint32_t* codes) {
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row)
    *four_of(codes, first_row(at) + row, at.quad) =
        make_uint4(bits_of(values[0][row]), bits_of(values[1][row]), bits_of(values[2][row]), bits_of(values[3][row]));
}

// code(value, multiplier, random word) of all values; random words only if RANDOM, multipliers only if SCALED. A
// barrier must follow.
template <bool RANDOM, bool SCALED, class F>
COMMPRESS_DEVICE void code_values(const float (&values)[4][8], FormatSpace& s, const Place& place, const Spot& at,
                                  const Shape& shape, const F& code) {
  const uint32_t counter =
      static_cast<uint32_t>(place.index / 16) + static_cast<uint32_t>(32 * at.group + 8 * at.chunk + 2 * at.quad);
  Words4 noise[2] = {};
  if (RANDOM) {
    noise[0] = philox(place.key, ROUND, counter);
    noise[1] = philox(place.key, ROUND, counter + 1);
  }
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    const int b = (first_row(at) + row) >> shape.shift;
    const float multiplier = SCALED && b < shape.scales ? s.multiplier[b] : 0.0f;
    uint32_t four[4];
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane)
      four[lane] = code(values[lane][row], multiplier,
                        RANDOM ? rotate_left(noise[lane / 2].w[lane % 2 + 2 * (row / 4)], 8 * (row % 4)) : 0u);
    *four_of(s.codes, first_row(at) + row, at.quad) = gathered(four);
  }
}

template <bool STOCHASTIC>
COMMPRESS_DEVICE void code_floats(const float (&values)[4][8], FormatSpace& s, const Place& place, const Spot& at,
                                  const Shape& shape, float gain) {
  if (shape.scaled())
    code_values<STOCHASTIC, true>(values, s, place, at, shape, [&](float y, float multiplier, uint32_t random) {
      return float_code(y * multiplier, shape.form, STOCHASTIC, random);
    });
  else
    code_values<STOCHASTIC, false>(values, s, place, at, shape, [&](float x, float, uint32_t random) {
      return magnitude(x) < FLOAT_INFINITY ? float_code(clamped_product(x, gain), shape.form, STOCHASTIC, random)
                                           : special_code(x, shape.form);
    });
}

COMMPRESS_DEVICE void code_any(const float (&values)[4][8], FormatSpace& s, const Place& place, const Spot& at,
                               const Shape& shape, float gain) {
  const Format& f = shape.format;
  if (f.scheme == SIGN || f.scheme == TWO_MEANS) {
    code_values<false, false>(values, s, place, at, shape, [](float y, float, uint32_t) { return bits_of(y) >> 31; });
  } else if (f.scheme == LEVELS) {
    const int levels = f.levels, digits = f.stochastic ? level_digits(f) : 0;
    const auto code = [=](float y, float multiplier, uint32_t random) {
      return level_code(y, multiplier, levels, digits, random);
    };
    if (f.stochastic)
      code_values<true, true>(values, s, place, at, shape, code);
    else
      code_values<false, true>(values, s, place, at, shape, code);
  } else if (f.stochastic) {
    code_floats<true>(values, s, place, at, shape, gain);
  } else {
    code_floats<false>(values, s, place, at, shape, gain);
  }
}

// ---- bytes ----

// Codes of whole groups, sixteen bytes at a time, and of a short run byte by byte.
COMMPRESS_DEVICE void pack_groups(const uint32_t* codes, int n, int bits, uint8_t* out) {
  const int whole = n / static_cast<int>(GROUP), group = thread() / 16;
  if (group < whole) {
    const uint32_t reciprocal = (65535u + static_cast<uint32_t>(bits)) / static_cast<uint32_t>(bits);
    for (int item = thread() % 16; item < 4 * bits; item += 16) {
      const int bit = item / 4 * 32, quad = item % 4;
      uint32_t words[4] = {0, 0, 0, 0};
      int row = static_cast<int>(static_cast<uint32_t>(bit) * reciprocal >> 16);  // bit / bits
      for (int at = row * bits - bit; at < 32; at += bits, ++row) {
        uint32_t four[4];
        spread(*four_of(codes, 32 * group + row, quad), four);
        COMMPRESS_UNROLL_ALL
        for (int lane = 0; lane < 4; ++lane) words[lane] |= at < 0 ? four[lane] >> -at : four[lane] << at;
      }
      store_four(gathered(words), out + 64 * bits * group + 16 * item);
    }
  }
  const int rest = n % static_cast<int>(GROUP), nbytes = (rest * bits + 7) / 8;
  const uint32_t* const last = codes + (n - rest);
  for (int byte = thread(); byte < nbytes; byte += threads()) {
    uint32_t value = 0;
    for (int i = 8 * byte / bits; i < rest && i * bits < 8 * byte + 8; ++i) {
      const int at = i * bits - 8 * byte;
      value |= at < 0 ? last[i] >> -at : last[i] << at;
    }
    out[64 * bits * whole + byte] = static_cast<uint8_t>(value);
  }
}

// Where the code is that is byte p when codes of a block of n have eight bits each.
COMMPRESS_DEVICE int place_of_byte(int p, int n) {
  const int in_group = p % static_cast<int>(GROUP);
  if (p - in_group + static_cast<int>(GROUP) > n) return p;
  return p - in_group + 16 * (in_group / 64 * 4 + in_group % 4) + in_group % 64 / 4;
}

// Five codes to a byte. Ends in step.
COMMPRESS_DEVICE void pack_trits(FormatSpace& s, int n, uint8_t* out) {
  const int nbytes = (n + 4) / 5;
  uint8_t* const staged = bytes_of(s.largest);
  for (int i = thread(); i < nbytes; i += threads()) {
    uint32_t sum = 0;
    for (int p = i + 4 * nbytes; p >= 0; p -= nbytes) sum = 3 * sum + (p < n ? s.codes[place_of_byte(p, n)] : 1u);
    staged[i] = static_cast<uint8_t>(sum);
  }
  __syncthreads();
  store_bytes(s.largest, nbytes, out, thread(), threads());
  __syncthreads();
}

// One block. Two barriers come before anything that the block before may still read is written again, but for
// `largest`.
COMMPRESS_DEVICE void format_encode(FormatSpace& s, const Values& x, const Place& at, float gain, uint8_t* out) {
  const Shape shape(unpacked_format(at.codec.rate), at.n);
  const Format& f = shape.format;
  const Spot spot = spot_of_thread();
  float values[4][8];
  load_values(x, spot, at.n, values);
  const bool blocks = f.scheme != FLOAT || shape.scaled();
  bool care = false;
  if (blocks) note_largest(values, spot, shape, s.largest);
  __syncthreads();
  if (f.scheme == NVFP4)
    care = nvfp4_scales(s, shape, gain, out);
  else if (f.scheme != FLOAT)
    care = take_exponents(s, shape, gain);
  else if (blocks)
    care = float_scales(s, shape, gain, out);
  care = __syncthreads_or(care) != 0;
  if (blocks) prepare(values, s, spot, shape, gain, care);
  if (f.scheme == LEVELS && !f.euclidean) {
    for (int b = thread(); b < shape.scales; b += threads()) put_level_scale(s, shape, b, s.multiplier[b], out);
    __syncthreads();
  } else if (f.scheme == SIGN && !shape.scaled()) {
    if (thread() == 0)
      *out = static_cast<uint8_t>(s.exponent[0] == NOT_FINITE ? SCALE8_NON_FINITE
                                  : s.multiplier[0] == 0.0f   ? SCALE8_ZERO
                                                              : SCALE8_ONE);
  } else if (f.scheme >= LEVELS) {
    show_values(values, spot, s.codes);
    __syncthreads();
    if (f.scheme == LEVELS)
      sum_scale_blocks(
          s, shape, [](float v) { return v * v; },
          [&](int b, float sum) { put_level_scale(s, shape, b, square_root(sum), out); });
    else
      sign_scales(s, shape, at.n, out);
  }
  code_any(values, s, at, spot, shape, gain);
  __syncthreads();
  if (f.trits)
    pack_trits(s, at.n, out + shape.scales_nbytes);
  else
    pack_groups(s.codes, at.n, shape.bits, out + shape.scales_nbytes);
}

static __global__ void __launch_bounds__(BLOCK_THREADS, FORMAT_ENCODERS)
    encode_format_kernel(const __grid_constant__ Job job, const __grid_constant__ Values x, float gain, uint8_t* out) {
  COMMPRESS_SHARED(FormatSpace, shared, 1);
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const Place at = place_of(job, unit);
    if (at.codec.family == FORMAT) format_encode(shared[0], x.from(at.first), at, gain, out + at.byte);
  }
}

inline void launch_encode_formats(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue) {
  const Values values{x.data, x.input};
  COMMPRESS_LAUNCH(encode_format_kernel, grid_of(job.units, queue), BLOCK_THREADS,
                   static_cast<cudaStream_t>(queue.stream), job, values, gain, out);
}

}  // namespace cuda
}  // namespace commpress
