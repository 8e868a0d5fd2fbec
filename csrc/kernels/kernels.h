// What the kernels offer: functions on raw pointers and 64-bit sizes, without torch. Every code path gives the same
// bytes.
#pragma once
#include "philox.h"
#include "wire.h"

namespace commpress {

enum class Isa : int { PLAIN = 0, AVX2 = 1, AVX512 = 2 };

bool isa_available(Isa isa);
Isa best_isa();

struct Payload {
  Codec codec;
  Key key;
  int64_t offset;  // index of the first coordinate, a multiple of BLOCK
  int64_t numel;
};

// Writes payload_nbytes() bytes for gain * x.
void encode(const Payload& payload, const float* x, float gain, uint8_t* out, Isa isa);

// What the scales of a payload say: the first block with one that no encoder writes, or -1; and whether anything in it
// was not finite. `in` holds payload_nbytes() bytes; nothing beyond is read.
struct Findings {
  int64_t invalid_block;
  bool non_finite;
};
Findings inspect(const Payload& payload, const uint8_t* in);

// out = gain * value, or beta * out + gain * value. Any bytes are safe to decode; only those without an invalid block
// mean something.
void decode(const Payload& payload, const uint8_t* in, float* out, bool accumulate, float gain, float beta, Isa isa);

// Whether values of a tensor of `numel` are better written past the caches: it is more than a second-level cache holds,
// and aligned for it.
constexpr int64_t STREAM_NUMEL = 1 << 20;  // 4 MiB
inline bool streams(int64_t numel, const float* out) {
  return numel >= STREAM_NUMEL && reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// Copies n values, past the caches if `out` is aligned to 64 bytes and `past_caches`; returns whether all are finite.
bool move_block(const float* x, int64_t n, float* out, bool past_caches, Isa isa);

// to[0] += x.x, to[1] += x.y, to[2] += y.y, in an order that is the same on every code path (product_loops.h).
void add_products(const float* x, const float* y, int64_t n, double* to, Isa isa);
void add_products(const double* x, const double* y, int64_t n, double* to, Isa isa);

}  // namespace commpress
