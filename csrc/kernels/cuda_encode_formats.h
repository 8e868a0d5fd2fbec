// Number formats, encoded: scales -> codes, which go through shared memory, where words are put together from them. One
// way serves every width, size and dtype.
#pragma once
#include "cuda_formats_scales.h"
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

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
