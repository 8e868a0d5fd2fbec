// What the trellis search asks of sixteen lanes, in AVX-512. Operation by operation the same as trellis_lanes_plain.h.
#pragma once
#include "lanes_avx512.h"

namespace commpress {
namespace COMMPRESS_ISA {

static inline void split_pairs(Floats a, Floats b, Floats& even, Floats& odd) {
  const __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even.v = _mm512_permutex2var_ps(a.v, first, b.v);
  odd.v = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b.v);
}
static inline void load_pairs(const float* p, Floats& even, Floats& odd) {
  split_pairs(load(p), load(p + 16), even, odd);
}

static inline Floats plus_product(Floats c, Floats a, Floats b) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Floats minus_product(Floats c, Floats a, Floats b) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }

static inline Floats lesser(Floats a, Floats b, uint32_t& taken) {
  taken = _cvtmask16_u32(_mm512_cmp_ps_mask(b.v, a.v, _CMP_LT_OQ));
  return {_mm512_min_ps(b.v, a.v)};  // the second where they are equal
}

template <int STEP>
static inline Ints windows(const uint8_t* p) {
  alignas(64) static constexpr int32_t LANE[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i at = _mm512_mullo_epi32(_mm512_load_si512(LANE), _mm512_set1_epi32(STEP));
  return {_mm512_srlv_epi32(_mm512_i32gather_epi32(_mm512_srli_epi32(at, 3), p, 1),
                            _mm512_and_si512(at, _mm512_set1_epi32(7)))};
}

static inline Floats look_up(const float* table, Ints index) { return {_mm512_i32gather_ps(index.v, table, 4)}; }

}  // namespace COMMPRESS_ISA
}  // namespace commpress
