// encode() and decode() of one code path. A cpu_*.cpp names the path with COMMPRESS_ISA and includes the lanes, then
// this.
#pragma once
#include "cast_loops.h"
#include "kernels.h"
#include "lloyd.h"
#include "uniform.h"

namespace commpress {
namespace COMMPRESS_ISA {

static void raw_encode(const float* x, int64_t n, float gain, uint8_t* out) {
  if (gain == 1.0f) {
    memcpy(out, x, 4 * n);
    return;
  }
  float chunk[BLOCK];
  for (int64_t i = 0; i < n; ++i) chunk[i] = x[i] * gain;
  memcpy(out, chunk, 4 * n);
}

static void raw_decode(const uint8_t* in, int64_t n, float* out, const Sink& sink) {
  const int64_t whole = n / 16 * 16;
  if (sink.gain == 1.0f && (sink.delivery == Delivery::WRITE || sink.delivery == Delivery::STREAM)) {
    // To the bit, whatever kind of NaN it is.
    const int64_t streamed = sink.delivery == Delivery::STREAM ? whole : 0;
    for (int64_t i = 0; i < streamed; i += 16) store_past_caches(out + i, floats(load_bytes(in + 4 * i)));
    memcpy(out + streamed, in + 4 * streamed, 4 * (n - streamed));
    return;
  }
  const Floats gain = all(sink.gain), beta = all(sink.beta);
  with_delivery(sink.delivery, [&](auto delivery) {
    for (int64_t i = 0; i < whole; i += 16) deliver<delivery>(out + i, floats(load_bytes(in + 4 * i)) * gain, beta);
  });
  for (int64_t i = whole; i < n; ++i) {
    float x;
    memcpy(&x, in + 4 * i, 4);
    deliver(out + i, x * sink.gain, sink);
  }
}

void encode(const Payload& p, const float* x, float gain, uint8_t* out) {
  for (int64_t i = 0; i < p.numel; i += BLOCK) {
    const int64_t n = p.numel - i < BLOCK ? p.numel - i : BLOCK;
    const uint64_t index = static_cast<uint64_t>(p.offset + i);
    switch (p.codec.family) {
      case UNIFORM:
        out += uniform_encode_block(x + i, n, p.codec.rate, p.key, index, gain, out);
        break;
      case LLOYD:
        out += lloyd_encode_block(x + i, n, p.codec.rate, p.key, index, gain, out);
        break;
      case HADAMARD_LLOYD:
        out += rotated_encode_any(x + i, n, {p.codec.rate, p.codec.centroid}, p.key, index, gain, out);
        break;
      case RAW:
        raw_encode(x + i, n, gain, out);
        out += 4 * n;
        break;
      default:
        cast_encode(p.codec, x + i, n, gain, out);
        out += 2 * n;
    }
  }
}

void decode(const Payload& p, const uint8_t* in, float* out, bool accumulate, float gain, float beta) {
  const bool stream = !accumulate && streams(p.numel, out);
  const Sink sink{delivery_of(accumulate, stream, beta), gain, beta};
  for (int64_t i = 0; i < p.numel; i += BLOCK) {
    const int64_t n = p.numel - i < BLOCK ? p.numel - i : BLOCK;
    const uint64_t index = static_cast<uint64_t>(p.offset + i);
    switch (p.codec.family) {
      case UNIFORM:
        in += uniform_decode_block(in, n, p.codec.rate, p.key, index, out + i, sink);
        break;
      case LLOYD:
        in += lloyd_decode_block(in, n, p.codec.rate, p.key, index, out + i, sink);
        break;
      case HADAMARD_LLOYD:
        in += rotated_decode_any(in, n, {p.codec.rate, p.codec.centroid}, p.key, index, out + i, sink);
        break;
      case RAW:
        raw_decode(in, n, out + i, sink);
        in += 4 * n;
        break;
      default:
        cast_decode(p.codec, in, n, out + i, sink);
        in += 2 * n;
    }
  }
  if (stream) finish_stores();
}

bool move_block(const float* x, int64_t n, float* out, bool past_caches) {
  if (!past_caches) {
    memcpy(out, x, 4 * n);
    return largest_bits(x, n) < SCALE32_INFINITY;
  }
  Ints largest = all(0u);
  const Ints mask = all(0x7FFFFFFFu);
  const int64_t rows = n / 16;
  for (int64_t row = 0; row < rows; ++row) {
    const Floats values = load(x + 16 * row);
    largest = larger(largest, bits(values) & mask);
    store_past_caches(out + 16 * row, values);
  }
  finish_stores();
  memcpy(out + 16 * rows, x + 16 * rows, 4 * (n - 16 * rows));
  return largest_lane(largest) < SCALE32_INFINITY && largest_bits(x + 16 * rows, n - 16 * rows) < SCALE32_INFINITY;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
