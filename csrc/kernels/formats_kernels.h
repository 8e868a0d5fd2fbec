// What the kernels of formats.h offer: functions on raw pointers and 64-bit sizes. Every code path gives the same
// bytes.
#pragma once
#include "formats.h"
#include "kernels.h"

namespace commpress {

// Writes payload_nbytes(format, numel) bytes for gain * x. `offset`: index of the first coordinate, a multiple of
// BLOCK.
void encode(const Format& format, const Key& key, int64_t offset, const float* x, int64_t numel, float gain,
            uint8_t* out, Isa isa);

// The first block with a scale or a code that no encoder writes, or -1. `in` holds payload_nbytes() bytes.
int64_t invalid_block(const Format& format, const uint8_t* in, int64_t numel);

// out = gain * value, or beta * out + gain * value. Any bytes are safe to decode; only those without an invalid block
// mean something.
void decode(const Format& format, const uint8_t* in, float* out, int64_t numel, bool accumulate, float gain, float beta,
            Isa isa);

}  // namespace commpress
