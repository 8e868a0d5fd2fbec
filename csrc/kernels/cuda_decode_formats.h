// Number formats, decoded and added up from several senders: no shared memory, no barrier.
#pragma once
#include "cuda_formats.h"
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

// What one sender's scale makes of codes: step(b) turns to scale block b and tells whether an encoder may have written
// its scale; value(code) follows. `in` is where the scales begin.
struct FloatSteps {
  const uint8_t* in;
  const Shape& shape;
  float gain, now = 0.0f;
  COMMPRESS_DEVICE bool step(int b) {
    const uint8_t scale = __ldg(in + b);
    now = float_step(scale, gain);
    return float_scale_valid(scale, shape.form);
  }
  COMMPRESS_DEVICE float value(uint32_t code) const { return float_value(code, shape.form, true) * now; }
};

struct UnscaledSteps {
  const Shape& shape;
  float gain;
  COMMPRESS_DEVICE bool step(int) { return true; }
  COMMPRESS_DEVICE float value(uint32_t code) const { return float_value(code, shape.form, false) * gain; }
};

struct Nvfp4Steps {
  const uint8_t* in;
  const Shape& shape;
  FloatForm e4m3;
  float outer, now = 0.0f;
  COMMPRESS_DEVICE bool step(int b) {
    const uint32_t scale = __ldg(in + 4 + b);
    now = nvfp4_step(scale, outer, e4m3);
    return scale <= E4M3_NAN;
  }
  COMMPRESS_DEVICE float value(uint32_t code) const { return float_value(code, shape.form, true) * now; }
};

struct LevelSteps {
  const uint8_t* in;
  int levels;
  float gain, most, now = 0.0f;
  COMMPRESS_DEVICE bool step(int b) {
    const uint32_t scale = word_from(in + 4 * b);
    now = scale_step(scale, gain);
    return step_valid(scale, most);
  }
  COMMPRESS_DEVICE float value(uint32_t code) const { return level_value(code, levels, now); }
};

struct SignSteps {
  const uint8_t* in;
  bool scaled;
  float gain, now = 0.0f;
  COMMPRESS_DEVICE bool step(int b) {
    if (scaled) {
      const uint32_t scale = word_from(in + 4 * b);
      now = scale_step(scale, gain);
      return step_valid(scale, float_of(FLOAT_LARGEST));
    }
    const uint32_t scale = __ldg(in);
    now = scale == SCALE8_NON_FINITE ? float_of(FLOAT_NAN) : scale == SCALE8_ZERO ? 0.0f : gain;
    return scale == SCALE8_ZERO || scale == SCALE8_ONE || scale == SCALE8_NON_FINITE;
  }
  COMMPRESS_DEVICE float value(uint32_t code) const { return float_of(code << 31 ^ bits_of(now)); }
};

struct MeanSteps {
  const uint8_t* in;
  float gain, above = 0.0f, below = 0.0f;
  COMMPRESS_DEVICE bool step(int b) {
    const uint32_t up = word_from(in + 8 * b), down = word_from(in + 8 * b + 4);
    above = scale_step(up, gain);
    below = -scale_step(down, gain);
    return step_valid(up, float_of(FLOAT_LARGEST)) && step_valid(down, float_of(FLOAT_LARGEST)) &&
           (up == SCALE32_NON_FINITE) == (down == SCALE32_NON_FINITE);
  }
  COMMPRESS_DEVICE float value(uint32_t code) const { return code ? below : above; }
};

// Calls f(steps) for what `in` begins with; false if that is an outer scale that no encoder writes.
template <class F>
COMMPRESS_DEVICE bool with_steps(const Shape& shape, const uint8_t* in, float gain, F&& f) {
  const Format& format = shape.format;
  if (format.scheme == NVFP4) {
    const uint32_t outer = word_from(in);
    f(Nvfp4Steps{in, shape, e4m3_form(), float_of(outer) * gain});
    return nvfp4_outer_valid(outer);
  }
  if (format.scheme == FLOAT && shape.scaled())
    f(FloatSteps{in, shape, gain});
  else if (format.scheme == FLOAT)
    f(UnscaledSteps{shape, gain});
  else if (format.scheme == LEVELS)
    f(LevelSteps{in, format.levels, gain, largest_step(format.levels)});
  else if (format.scheme == SIGN)
    f(SignSteps{in, shape.scaled(), gain});
  else
    f(MeanSteps{in, gain});
  return true;
}

// ---- a thread's rows of a whole group ----

// Codes of up to eight bits: all of a thread's.
struct NarrowCodes {
  uint32_t low[4], high[4], mask;
  int bits;
  COMMPRESS_DEVICE NarrowCodes(const uint8_t* group, int width, const Spot& at) : mask((1u << width) - 1), bits(width) {
    with_bits(width, [&](auto b) { load_codes<decltype(b)::value>(group, at, low, high); });
  }
  COMMPRESS_DEVICE void row(int number, uint32_t (&codes)[4]) const {
    const int bit = number * bits;
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane)
      codes[lane] = (bit < 32 ? window_of(low[lane], high[lane], bit) : high[lane] >> (bit - 32)) & mask;
  }
};

// Wider ones: row by row.
struct WideCodes {
  const uint8_t* words;
  uint32_t mask;
  int bits, first;
  COMMPRESS_DEVICE WideCodes(const uint8_t* group, int width, const Spot& at)
      : words(group + 16 * at.quad), mask(~0u >> (32 - width)), bits(width), first(8 * at.chunk) {}
  COMMPRESS_DEVICE void row(int number, uint32_t (&codes)[4]) const {
    const int bit = (first + number) * bits, shift = bit % 32;
    const uint8_t* const word = words + 64 * (bit / 32);
    uint32_t low[4], high[4];
    spread(load_four(word), low);
    spread(shift + bits > 32 ? load_four(word + 64) : make_uint4(0, 0, 0, 0), high);
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane) codes[lane] = window_of(low[lane], high[lane], shift) & mask;
  }
};

// Adds a sender's values. False if a scale is one that no encoder writes.
template <class Steps, class Codes>
COMMPRESS_DEVICE bool add_rows(Steps steps, const Codes& codes, const Shape& shape, const Spot& at,
                               float (&sum)[8][4]) {
  bool valid = true;
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    if ((row & ((1 << shape.kept) - 1)) == 0) valid = steps.step((first_row(at) + row) >> shape.shift) && valid;
    uint32_t four[4];
    codes.row(row, four);
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane) sum[row][lane] += steps.value(four[lane]);
  }
  return valid;
}

// ---- any coordinates, one after the other ----

// Code number i of a bit string.
COMMPRESS_DEVICE uint32_t code_in_string(const uint8_t* in, int bits, int i) {
  const int first = i * bits / 8, last = (i * bits + bits - 1) / 8;
  uint64_t window = 0;
  for (int byte = first; byte <= last; ++byte)
    window |= static_cast<uint64_t>(__ldg(in + byte)) << (8 * (byte - first));
  return static_cast<uint32_t>(window >> (i * bits % 8)) & (~0u >> (32 - bits));
}

// Code number p, in the order of bytes, of five to a byte. Clears `valid` if the byte is one that no encoder writes.
COMMPRESS_DEVICE uint32_t trit(const uint8_t* in, int p, int nbytes, bool& valid) {
  int digit = 0;
  for (; p >= nbytes; p -= nbytes) ++digit;
  uint32_t sum = __ldg(in + p);
  valid = valid && sum <= TRITS_LARGEST;
  for (; digit; --digit) sum = trits_third(sum);
  return sum - 3 * trits_third(sum);
}

// Of short groups, and of codes that are packed five to a byte.
COMMPRESS_SELDOM void decode_one_by_one(const Sources& sources, int32_t packed, int n, int64_t byte, float* out,
                                        Delivery delivery, Report* report) {
  const Shape shape(unpacked_format(packed), n);
  const Spot at = spot_of_thread();
  const int group = static_cast<int>(GROUP) * at.group;
  bool finite = true;
  for (int sender = 0; sender < sources.count; ++sender) {
    const uint8_t* const in = sources.payload[sender] + byte;
    const uint8_t* const codes = in + shape.scales_nbytes;
    const Sink sink = sink_of(delivery, sender);
    bool valid = true;
    const bool outer = with_steps(shape, in, delivery.gain, [&](auto steps) {
      COMMPRESS_ROLLED
      for (int row = 0; row < 8; ++row) {
        const int first = 128 * at.chunk + 16 * row + 4 * at.quad;
        if (group + first >= n) break;
        valid = steps.step((group + first) / 16 >> shape.shift) && valid;
        COMMPRESS_ROLLED
        for (int i = first; i < first + 4 && group + i < n; ++i) {
          const int p = group + (group + GROUP <= n ? 64 * (i / 64) + 4 * (i % 16) + i / 16 % 4 : i);
          const uint32_t code = shape.format.trits ? trit(codes, p, (n + 4) / 5, valid)
                                                   : code_in_string(codes + group / 8 * shape.bits, shape.bits, i);
          deliver(out + group + i, steps.value(code), sink);
        }
      }
    });
    if (!(valid && outer)) report_invalid(report, sources, sender);
  }
  for (int row = 0; row < 8; ++row) {
    const int first = group + 128 * at.chunk + 16 * row + 4 * at.quad;
    for (int i = first; i < first + 4 && i < n; ++i) finite = finite && magnitude(out[i]) < SCALE32_INFINITY;
  }
  report_non_finite(report, !finite);
}

COMMPRESS_DEVICE void format_decode(const Sources& sources, const Place& at, float* out, const Delivery& delivery,
                                    Report* report) {
  const Shape shape(unpacked_format(at.codec.rate), at.n);
  const Spot spot = spot_of_thread();
  if (shape.format.trits || static_cast<int>(GROUP) * (spot.group + 1) > at.n) {
    decode_one_by_one(sources, at.codec.rate, at.n, at.byte, out, delivery, report);
    return;
  }
  float* const to = out + 16 * first_row(spot) + 4 * spot.quad;
  float sum[8][4];
  load_sums<8, 16>(to, delivery, sum);
  COMMPRESS_ROLLED
  for (int sender = 0; sender < sources.count; ++sender) {
    const uint8_t* const in = sources.payload[sender] + at.byte;
    Shape here = shape;  // or else the places of all rows, in every scheme, are kept from sender to sender
    COMMPRESS_OPAQUE(here.bits);
    COMMPRESS_OPAQUE(here.shift);
    COMMPRESS_OPAQUE(here.kept);
    COMMPRESS_OPAQUE(here.format.levels);
    const uint8_t* const group = in + here.scales_nbytes + 64 * here.bits * spot.group;
    bool valid = true;
    const bool outer = with_steps(here, in, delivery.gain, [&](auto steps) {
      if (here.bits <= 8)
        valid = add_rows(steps, NarrowCodes(group, here.bits, spot), here, spot, sum);
      else
        valid = add_rows(steps, WideCodes(group, here.bits, spot), here, spot, sum);
    });
    if (!(valid && outer)) report_invalid(report, sources, sender);
  }
  store_sums<8, 16>(to, sum, report);
}

static __global__ void __launch_bounds__(BLOCK_THREADS, FORMAT_DECODERS)
    decode_format_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                         const __grid_constant__ Delivery delivery, Report* report) {
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const Place at = place_of(job, unit);
    if (at.codec.family == FORMAT) format_decode(sources, at, out + at.first, delivery, report);
  }
}

inline void launch_decode_formats(const Job& job, const Sources& sources, float* out, const Delivery& delivery,
                                  Report* report, const Queue& queue) {
  COMMPRESS_LAUNCH(decode_format_kernel, grid_of(job.units, queue), BLOCK_THREADS,
                   static_cast<cudaStream_t>(queue.stream), job, sources, out, delivery, report);
}

}  // namespace cuda
}  // namespace commpress
