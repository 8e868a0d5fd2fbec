// Thirty-two lanes of 16 bits, in AVX-512. Operation by operation the same as trellis_words_plain.h.
#pragma once
#include "lanes_avx512.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

constexpr int WORD_LANES = 32;

struct Words {
  __m512i v;
};

static inline Words load_words(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_words(uint16_t* p, Words x) { _mm512_storeu_si512(p, x.v); }
static inline Words all_words(uint32_t x) { return {_mm512_set1_epi16(static_cast<int16_t>(x))}; }
static inline Words operator+(Words x, Words y) { return {_mm512_add_epi16(x.v, y.v)}; }
static inline Words operator-(Words x, Words y) { return {_mm512_sub_epi16(x.v, y.v)}; }
static inline Words operator*(Words x, Words y) { return {_mm512_mullo_epi16(x.v, y.v)}; }
static inline Words operator&(Words x, Words y) { return {_mm512_and_si512(x.v, y.v)}; }
static inline Words operator|(Words x, Words y) { return {_mm512_or_si512(x.v, y.v)}; }
static inline Words operator^(Words x, Words y) { return {_mm512_xor_si512(x.v, y.v)}; }
static inline Words smaller(Words x, Words y) { return {_mm512_min_epu16(x.v, y.v)}; }
static inline Words larger_signed(Words x, Words y) { return {_mm512_max_epi16(x.v, y.v)}; }
static inline Words where_equal(Words x, Words y) { return {_mm512_movm_epi16(_mm512_cmpeq_epi16_mask(x.v, y.v))}; }
static inline Words without(Words x, Words mask) { return {_mm512_andnot_si512(mask.v, x.v)}; }
static inline Words shift_left(Words x, int k) { return {_mm512_slli_epi16(x.v, static_cast<unsigned>(k))}; }
static inline Words shift_right(Words x, int k) { return {_mm512_srli_epi16(x.v, static_cast<unsigned>(k))}; }
static inline Words high_square(Words x) { return {_mm512_mulhi_epi16(x.v, x.v)}; }

template <class F>
static COMMPRESS_INLINE Words words_from(const F& sixteen) {
  const __m256i low = _mm512_cvtepi32_epi16(sixteen(0).v), high = _mm512_cvtepi32_epi16(sixteen(1).v);
  return {_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
}
static inline void store_low_bytes(uint8_t* p, Words x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi16_epi8(x.v));
}

struct WordTable {
  __m512i of;  // twice
  WordTable() = default;
  explicit WordTable(const uint16_t* p)
      : of(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))) {}
};
// Places in tables of 16, below 16.
struct WordIndex {
  __m512i of;
  explicit WordIndex(Words i) : of(i.v) {}
};
static inline Words look_up(const WordTable& t, const WordIndex& i) { return {_mm512_permutexvar_epi16(i.of, t.of)}; }

// Sum of the squares of n words below 2^15; n is a multiple of 32.
static inline int64_t sum_squares(const uint16_t* p, int64_t n) {
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i w = load_words(p + i).v, pairs = _mm512_madd_epi16(w, w);
    sum = _mm512_add_epi64(
        sum, _mm512_add_epi64(_mm512_srli_epi64(pairs, 32), _mm512_and_si512(pairs, _mm512_set1_epi64(0xFFFFFFFF))));
  }
  alignas(64) int64_t part[8];
  _mm512_store_si512(part, sum);
  int64_t total = 0;
  for (const int64_t x : part) total += x;
  return total;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
