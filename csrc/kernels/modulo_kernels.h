// What the kernels of modulo.h offer: functions on raw pointers and 64-bit sizes. Every code path gives the same bytes,
// and any bytes are safe to decode.
#pragma once
#include "kernels.h"
#include "modulo.h"

namespace commpress {

// Writes payload_nbytes(code, numel) bytes for gain * x. `offset`: index of the first coordinate, a multiple of BLOCK.
void modulo_encode(const Modulo& code, const Key& key, int64_t offset, const float* x, int64_t numel, float gain,
                   uint8_t* out, Isa isa);

// The first block with a scale that no encoder writes, or -1.
int64_t invalid_block(const Modulo& code, const uint8_t* in, int64_t numel);

// out = gain * value, or beta * out + gain * value, found with the side information `side`, numel values (which `out`
// may be).
void modulo_decode(const Modulo& code, const Key& key, int64_t offset, const uint8_t* in, const float* side,
                   int64_t numel, float* out, bool accumulate, float gain, float beta, Isa isa);

}  // namespace commpress
