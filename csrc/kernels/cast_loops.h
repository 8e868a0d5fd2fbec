// Casts to bfloat16 and binary16 and back, sixteen coordinates at a time. Include after a lanes_*.h.
#pragma once
#include "pack.h"
#include "quantise.h"

namespace commpress {
namespace COMMPRESS_ISA {

using commpress::from_bf16;
using commpress::from_fp16;
using commpress::to_bf16;
using commpress::to_fp16;

static COMMPRESS_INLINE Ints to_bf16(Floats x) {
  const Ints u = bits(x), magnitude = u & all(0x7FFFFFFFu);
  const Ints nearest = shift_right(u + all(0x7FFFu) + (shift_right(u, 16) & all(1u)), 16);
  return where_less(all(0x7F800000u), magnitude, (shift_right(u, 16) & all(0x8000u)) | all(0x7FC0u), nearest);
}

static COMMPRESS_INLINE Floats from_bf16(Ints h) { return floats(shift_left(h, 16)); }

static COMMPRESS_INLINE Ints to_fp16(Floats x) {
  const Ints u = bits(x), sign = shift_right(u, 16) & all(0x8000u), a = u & all(0x7FFFFFFFu);
  const Ints denormal = bits(floats(a) + all(0.5f)) - bits(all(0.5f));
  const Ints normal = shift_right(a - all(112u << 23) + all(0xFFFu) + (shift_right(a, 13) & all(1u)), 13);
  const Ints finite = where_less(a, all(113u << 23), denormal, smaller(normal, all(0x7C00u)));
  const Ints beyond = where_less(all(0x7F800000u), a, all(0x7E00u), all(0x7C00u));
  return sign | where_less(a, all(143u << 23), finite, beyond);
}

static COMMPRESS_INLINE Floats from_fp16(Ints h) {
  const Ints sign = shift_left(h & all(0x8000u), 16), a = h & all(0x7FFFu);
  const Ints denormal = bits(to_float(a) * all(0x1p-24f));
  const Ints normal = shift_left(a, 13) + where_less(a, all(0x7C00u), all(112u << 23), all(224u << 23));
  return floats(sign | where_less(a, all(0x0400u), denormal, normal));
}

template <bool FP16>
static void cast_rows(const float* x, int64_t n, float gain, uint8_t* out) {
  const Floats g = all(gain);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Floats v = load(x + i) * g;
    store_halves(out + 2 * i, FP16 ? to_fp16(v) : to_bf16(v));
  }
  for (; i < n; ++i) {
    const uint16_t h = FP16 ? to_fp16(x[i] * gain) : to_bf16(x[i] * gain);
    memcpy(out + 2 * i, &h, 2);
  }
}

template <bool FP16>
static void uncast_rows(const uint8_t* in, int64_t n, float* out, const Sink& sink) {
  const Floats gain = all(sink.gain), beta = all(sink.beta);
  const int64_t whole = n / 16 * 16;
  with_delivery(sink.delivery, [&](auto delivery) {
    for (int64_t i = 0; i < whole; i += 16) {
      const Ints h = load_halves(in + 2 * i);
      deliver<delivery>(out + i, (FP16 ? from_fp16(h) : from_bf16(h)) * gain, beta);
    }
  });
  for (int64_t i = whole; i < n; ++i) {
    uint16_t h;
    memcpy(&h, in + 2 * i, 2);
    deliver(out + i, (FP16 ? from_fp16(h) : from_bf16(h)) * sink.gain, sink);
  }
}

static void cast_encode(const Codec& codec, const float* x, int64_t n, float gain, uint8_t* out) {
  codec.family == CAST_FP16 ? cast_rows<true>(x, n, gain, out) : cast_rows<false>(x, n, gain, out);
}

static void cast_decode(const Codec& codec, const uint8_t* in, int64_t n, float* out, const Sink& sink) {
  codec.family == CAST_FP16 ? uncast_rows<true>(in, n, out, sink) : uncast_rows<false>(in, n, out, sink);
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
