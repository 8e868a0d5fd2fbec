// Sixteen rANS coders at once, and tables of symbols, in AVX-512. Include after lanes_avx512.h.
#pragma once
#include "entropy_coders.h"
#include "entropy_model.h"

namespace commpress {
namespace COMMPRESS_ISA {

// A table of 64 words, looked up by the low six bits, or by the low five if all indices lie in 16 .. 47.
struct WideTable {
  __m512i t[4];
  explicit WideTable(const void* p) {
    for (int i = 0; i < 4; ++i) t[i] = _mm512_loadu_si512(static_cast<const char*>(p) + 64 * i);
  }
  __m512i operator[](__m512i i) const {
    const __m512i low = _mm512_permutex2var_epi32(t[0], i, t[1]), high = _mm512_permutex2var_epi32(t[2], i, t[3]);
    return _mm512_mask_blend_epi32(_mm512_test_epi32_mask(i, _mm512_set1_epi32(32)), low, high);
  }
};
struct NarrowTable {
  __m512i t[2];  // entries 32 .. 47, then 16 .. 31; entry 0, the escape, in place of 16
  explicit NarrowTable(const void* p) {
    t[0] = _mm512_loadu_si512(static_cast<const char*>(p) + 128);
    t[1] = _mm512_mask_set1_epi32(_mm512_loadu_si512(static_cast<const char*>(p) + 64), 1, *static_cast<const int*>(p));
  }
  __m512i operator[](__m512i i) const { return _mm512_permutex2var_epi32(t[0], i, t[1]); }
};

// x / f, x % f for x < f 2^20: the quotient in binary32 is off by one at most.
static COMMPRESS_INLINE __m512i put_state(__m512i x, __m512i f, __m512i start) {
  const __m512 quotient = _mm512_div_ps(_mm512_cvtepu32_ps(x), _mm512_cvtepi32_ps(f));
  __m512i q = _mm512_cvttps_epi32(quotient);
  __m512i r = _mm512_sub_epi32(x, _mm512_mullo_epi32(q, f));
  const __mmask16 below = _mm512_movepi32_mask(r);
  q = _mm512_mask_sub_epi32(q, below, q, _mm512_set1_epi32(1));
  r = _mm512_mask_add_epi32(r, below, r, f);
  const __mmask16 above = _mm512_cmpge_epi32_mask(r, f);
  q = _mm512_mask_add_epi32(q, above, q, _mm512_set1_epi32(1));
  r = _mm512_mask_sub_epi32(r, above, r, f);
  return _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(q, entropy::PRECISION), r), start);
}

// rans_put() of sixteen symbols; the last lane's word comes last.
static COMMPRESS_INLINE __m512i put_symbols(__m512i s, __m512i frequency, __m512i start, uint8_t*& out) {
  const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(s, 20), frequency);
  const int count = __builtin_popcount(full);
  const __m256i words = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, s));
  out -= 2 * count;
  _mm256_mask_storeu_epi16(out, static_cast<__mmask16>((1u << count) - 1), words);
  return put_state(_mm512_mask_srli_epi32(s, full, s, 16), frequency, start);
}

// rans_advance() of sixteen states; slot: frequency | bias << 12 | symbol << 24. Reads up to 32 bytes.
static COMMPRESS_INLINE __m512i advance_states(__m512i s, __m512i slot, const uint8_t*& in) {
  const __m512i slot_mask = _mm512_set1_epi32(entropy::TOTAL - 1),
                low = _mm512_set1_epi32(static_cast<int>(entropy::RANS_LOW));
  s = _mm512_add_epi32(_mm512_mullo_epi32(_mm512_and_si512(slot, slot_mask), _mm512_srli_epi32(s, 12)),
                       _mm512_and_si512(_mm512_srli_epi32(slot, 12), slot_mask));
  const __mmask16 hungry = _mm512_cmplt_epu32_mask(s, low);
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
  in += 2 * __builtin_popcount(hungry);
  return _mm512_mask_or_epi32(s, hungry, _mm512_slli_epi32(s, 16), _mm512_maskz_expand_epi32(hungry, words));
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
