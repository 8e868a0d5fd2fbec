// What the trellis search asks of sixteen lanes beyond lanes_plain.h, in portable C++. It defines what each operation
// of trellis_lanes_avx2.h and trellis_lanes_avx512.h does.
#pragma once
#include "lanes_plain.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Even and odd elements of two vectors that follow each other.
static inline void split_pairs(const Floats& a, const Floats& b, Floats& even, Floats& odd) {
  for (int q = 0; q < 4; ++q) {
    const Float4 x = q < 2 ? a.v[2 * q] : b.v[2 * q - 4], y = q < 2 ? a.v[2 * q + 1] : b.v[2 * q - 3];
    even.v[q] = Float4{x[0], x[2], y[0], y[2]};
    odd.v[q] = Float4{x[1], x[3], y[1], y[3]};
  }
}
// The same of the 32 that begin at p.
static inline void load_pairs(const float* p, Floats& even, Floats& odd) {
  split_pairs(load(p), load(p + 16), even, odd);
}

// c + a * b and c - a * b, where the product is exact.
static inline Floats plus_product(const Floats& c, const Floats& a, const Floats& b) { return c + a * b; }
static inline Floats minus_product(const Floats& c, const Floats& a, const Floats& b) { return c - a * b; }

// The lesser of each lane, and a bit for each lane in which b is less than a.
static inline Floats lesser(const Floats& a, const Floats& b, uint32_t& taken) {
  Floats r;
  Int4 mask = {0, 0, 0, 0};
  for (int q = 0; q < 4; ++q) {
    const Int4 less = b.v[q] < a.v[q];
    r.v[q] = b.v[q] < a.v[q] ? b.v[q] : a.v[q];
    mask |= less & (Int4{1, 2, 4, 8} << static_cast<uint32_t>(4 * q));
  }
  taken = mask[0] | mask[1] | mask[2] | mask[3];
  return r;
}

// The 32 bits that begin at bit lane * step of `p`, at least the lower 25 of them.
template <int STEP>
static inline Ints windows(const uint8_t* p) {
  uint32_t w[16];
  for (int lane = 0; lane < 16; ++lane) {
    memcpy(&w[lane], p + lane * STEP / 8, 4);
    w[lane] >>= lane * STEP % 8;
  }
  return load(w);
}

// table[index], for any table.
static inline Floats look_up(const float* table, const Ints& index) {
  return lanes<Floats>(index, [table](uint32_t i) { return table[i]; });
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
