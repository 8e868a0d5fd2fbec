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

}  // namespace commpress
