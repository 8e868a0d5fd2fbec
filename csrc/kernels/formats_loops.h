// encode() and decode() of formats.h in one code path: block by block, statistics and scales (formats_scales.h) ->
// codes
// -> packing. A formats_*.cpp names the path with COMMPRESS_ISA and includes the lanes, then this.
#pragma once
#include "formats_scales.h"

namespace commpress {
namespace COMMPRESS_ISA {

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
        codes[k] =
            finite ? float_code(clamped_product(x[i + k], gain), form, stochastic, rounding_word(key, index + i + k))
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

static COMMPRESS_INLINE float step_of(const uint8_t* in, float gain) { return scale_step(read<uint32_t>(in), gain); }

static const uint8_t* decode_block(const Format& f, const uint8_t* in, int64_t n, float* out, const Sink& sink) {
  float steps[2 * MAX_SCALES] = {};
  const int64_t scales = f.block ? (n + f.block - 1) / f.block : 1;
  const uint8_t* const codes = in + scales_nbytes(f, n);
  const float nan = float_of(FLOAT_NAN);
  switch (f.scheme) {
    case FLOAT: {
      const FloatForm form = float_form(f);
      steps[0] = sink.gain;
      for (int64_t b = 0; f.block && b < scales; ++b) steps[b] = float_step(in[b], sink.gain);
      if (!f.block)
        value_block(FloatValues<false>(form), codes, steps, f, n, out, sink);
      else if (form.bits == 4)
        value_block(SmallFloatValues(form), codes, steps, f, n, out, sink);
      else
        value_block(FloatValues<true>(form), codes, steps, f, n, out, sink);
      break;
    }
    case NVFP4: {
      const FloatForm form = e4m3_form();
      const float outer = read<float>(in) * sink.gain;
      for (int64_t b = 0; b < scales; ++b) steps[b] = nvfp4_step(in[4 + b], outer, form);
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
