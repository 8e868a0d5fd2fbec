// What the kernels of homomorphic.h offer: functions on raw pointers and 64-bit sizes. Every code path gives the same
// bytes, and any bytes are safe to decode.
#pragma once
#include "homomorphic.h"
#include "kernels.h"

namespace commpress {

// Writes scales_nbytes(grid, numel) bytes: what the ranks take the largest of.
void grid_scales(const Grid& grid, const float* x, int64_t numel, uint8_t* out, Isa isa);

// Writes integers_nbytes(numel, grid.bits) bytes of codes. No scale may be below that of x. `key` is the same for all
// workers; `offset`: index of the first coordinate, a multiple of BLOCK.
void grid_encode(const Grid& grid, const Key& key, uint32_t worker, int64_t offset, const float* x, int64_t numel,
                 const uint8_t* scales, uint8_t* out, Isa isa);

// Adds the codes of 1 to MOST_WORKERS workers: integers_nbytes(numel, sum_width(bits, workers)) bytes.
void grid_add(int bits, const uint8_t* const* in, int64_t workers, int64_t numel, uint8_t* out, Isa isa);

// out = gain * sum of the values of the workers worker .. worker + workers - 1, or beta * out + that.
void grid_decode(const Grid& grid, const Key& key, uint32_t worker, int64_t workers, int64_t offset, const uint8_t* in,
                 const uint8_t* scales, int64_t numel, float* out, bool accumulate, float gain, float beta, Isa isa);

// The first scale that no encoder writes, or -1.
int64_t invalid_scale(const uint8_t* scales, int64_t count);

}  // namespace commpress
