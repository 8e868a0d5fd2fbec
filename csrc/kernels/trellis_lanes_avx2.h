// What the trellis search asks of sixteen lanes, in AVX2 with FMA. Operation by operation the same as
// trellis_lanes_plain.h.
#pragma once
#include "lanes_avx2.h"

namespace commpress {
namespace COMMPRESS_ISA {

static inline void split_pairs8(__m256 a, __m256 b, __m256& even, __m256& odd) {
  const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
  even = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  odd = _mm256_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
}
static inline void split_pairs(Floats a, Floats b, Floats& even, Floats& odd) {
  split_pairs8(a.a, a.b, even.a, odd.a);
  split_pairs8(b.a, b.b, even.b, odd.b);
}
static inline void load_pairs(const float* p, Floats& even, Floats& odd) {
  split_pairs(load(p), load(p + 16), even, odd);
}

static inline Floats plus_product(Floats c, Floats a, Floats b) {
  return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
static inline Floats minus_product(Floats c, Floats a, Floats b) {
  return {_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)};
}

static inline Floats lesser(Floats a, Floats b, uint32_t& taken) {
  taken = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(b.a, a.a, _CMP_LT_OQ))) |
          static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(b.b, a.b, _CMP_LT_OQ))) << 8;
  return {_mm256_min_ps(b.a, a.a), _mm256_min_ps(b.b, a.b)};  // the second where they are equal
}

template <int STEP>
static inline Ints windows(const uint8_t* p) {
  uint32_t w[16];
  for (int lane = 0; lane < 16; ++lane) {
    memcpy(&w[lane], p + lane * STEP / 8, 4);
    w[lane] >>= lane * STEP % 8;
  }
  return load(w);
}

static inline Floats look_up(const float* table, Ints index) {
  return {_mm256_i32gather_ps(table, index.a, 4), _mm256_i32gather_ps(table, index.b, 4)};
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
