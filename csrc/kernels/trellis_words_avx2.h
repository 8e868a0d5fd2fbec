// Sixteen lanes of 16 bits, in AVX2. Operation by operation the same as trellis_words_plain.h.
#pragma once
#include "lanes_avx2.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

constexpr int WORD_LANES = 16;

struct Words {
  __m256i v;
};

static inline Words load_words(const uint16_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
static inline void store_words(uint16_t* p, Words x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
static inline Words all_words(uint32_t x) { return {_mm256_set1_epi16(static_cast<int16_t>(x))}; }
static inline Words operator+(Words x, Words y) { return {_mm256_add_epi16(x.v, y.v)}; }
static inline Words operator-(Words x, Words y) { return {_mm256_sub_epi16(x.v, y.v)}; }
static inline Words operator*(Words x, Words y) { return {_mm256_mullo_epi16(x.v, y.v)}; }
static inline Words operator&(Words x, Words y) { return {_mm256_and_si256(x.v, y.v)}; }
static inline Words operator|(Words x, Words y) { return {_mm256_or_si256(x.v, y.v)}; }
static inline Words operator^(Words x, Words y) { return {_mm256_xor_si256(x.v, y.v)}; }
static inline Words smaller(Words x, Words y) { return {_mm256_min_epu16(x.v, y.v)}; }
static inline Words larger_signed(Words x, Words y) { return {_mm256_max_epi16(x.v, y.v)}; }
static inline Words where_equal(Words x, Words y) { return {_mm256_cmpeq_epi16(x.v, y.v)}; }
static inline Words without(Words x, Words mask) { return {_mm256_andnot_si256(mask.v, x.v)}; }
static inline Words shift_left(Words x, int k) { return {_mm256_slli_epi16(x.v, k)}; }
static inline Words shift_right(Words x, int k) { return {_mm256_srli_epi16(x.v, k)}; }
static inline Words high_square(Words x) { return {_mm256_mulhi_epi16(x.v, x.v)}; }

template <class F>
static COMMPRESS_INLINE Words words_from(const F& sixteen) {
  const Ints x = sixteen(0);
  return {_mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8)};
}
static inline void store_low_bytes(uint8_t* p, Words x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(x.v, x.v), 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

struct WordTable {
  __m256i low, high;
  WordTable() = default;
  explicit WordTable(const uint16_t* p) {
    const __m256i words = load_words(p).v;
    const auto bytes = [](__m256i w) {
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(w, w), 0xD8);
      return _mm256_permute2x128_si256(packed, packed, 0);
    };
    low = bytes(_mm256_and_si256(words, _mm256_set1_epi16(0xFF)));
    high = bytes(_mm256_srli_epi16(words, 8));
  }
};
// Places in tables of 16, below 16.
struct WordIndex {
  __m256i low, high;
  explicit WordIndex(Words i)
      : low(_mm256_or_si256(i.v, _mm256_set1_epi16(static_cast<int16_t>(0x8000)))),
        high(_mm256_or_si256(_mm256_slli_epi16(i.v, 8), _mm256_set1_epi16(0x80))) {}
};
static inline Words look_up(const WordTable& t, const WordIndex& i) {
  return {_mm256_or_si256(_mm256_shuffle_epi8(t.low, i.low), _mm256_shuffle_epi8(t.high, i.high))};
}

// Sum of the squares of n words below 2^15; n is a multiple of 32.
static inline int64_t sum_squares(const uint16_t* p, int64_t n) {
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 16) {
    const __m256i w = load_words(p + i).v, pairs = _mm256_madd_epi16(w, w);
    sum = _mm256_add_epi64(
        sum, _mm256_add_epi64(_mm256_srli_epi64(pairs, 32), _mm256_and_si256(pairs, _mm256_set1_epi64x(0xFFFFFFFF))));
  }
  alignas(32) int64_t part[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(part), sum);
  return part[0] + part[1] + part[2] + part[3];
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
