// Sixteen lanes in AVX2 with FMA: two registers of eight. Operation by operation the same as lanes_plain.h.
#pragma once
#define COMMPRESS_UNROLL
#include <type_traits>

#include "lanes_x86.h"
#include "quantise.h"

namespace commpress {
namespace COMMPRESS_ISA {

struct Floats {
  __m256 a, b;
};
struct Ints {
  __m256i a, b;
};

static inline Ints load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
static inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline Ints load(const uint32_t* p) { return load_bytes(reinterpret_cast<const uint8_t*>(p)); }
static inline void store(float* p, Floats x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
// Past the caches; p is a multiple of 64.
static inline void store_past_caches(float* p, Floats x) {
  _mm256_stream_ps(p, x.a);
  _mm256_stream_ps(p + 8, x.b);
}
static inline void finish_stores() { _mm_sfence(); }
static inline Ints load_halves(const uint8_t* p) {
  const __m128i* const q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
static inline void store_halves(uint8_t* p, Ints x) {  // of lanes below 2^16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xD8));
}
static inline void store(void* p, Ints x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.b);
}
static inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
static inline Ints all(uint32_t x) {
  return {_mm256_set1_epi32(static_cast<int>(x)), _mm256_set1_epi32(static_cast<int>(x))};
}

static inline Floats operator+(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline Floats operator-(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline Floats minus(Floats x, Floats y) { return x - y; }
static inline Floats operator*(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline Floats larger(Floats x, Floats y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline Floats larger_square(Floats a, Floats b) { return larger(a, b); }  // of what is not negative
static inline Floats operator/(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline Ints operator+(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline Ints operator|(Ints x, Ints y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
static inline Ints operator&(Ints x, Ints y) { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline Ints operator^(Ints x, Ints y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
static inline Ints larger(Ints x, Ints y) { return {_mm256_max_epu32(x.a, y.a), _mm256_max_epu32(x.b, y.b)}; }
static inline Ints smaller(Ints x, Ints y) { return {_mm256_min_epu32(x.a, y.a), _mm256_min_epu32(x.b, y.b)}; }
static inline Ints operator-(Ints x, Ints y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
// yes where x < y (both below 2^31), no elsewhere
static inline Ints where_less(Ints x, Ints y, Ints yes, Ints no) {
  return {_mm256_blendv_epi8(no.a, yes.a, _mm256_cmpgt_epi32(y.a, x.a)),
          _mm256_blendv_epi8(no.b, yes.b, _mm256_cmpgt_epi32(y.b, x.b))};
}

static inline Ints shift_left(Ints x, int k) { return {_mm256_slli_epi32(x.a, k), _mm256_slli_epi32(x.b, k)}; }
static inline Ints shift_right(Ints x, int k) { return {_mm256_srli_epi32(x.a, k), _mm256_srli_epi32(x.b, k)}; }
static inline Ints shift_right_signed(Ints x, int k) { return {_mm256_srai_epi32(x.a, k), _mm256_srai_epi32(x.b, k)}; }
// Left by i % 4 bytes.
template <int I>
static inline Ints rotate_bytes(Ints x, std::integral_constant<int, I>) {
  if constexpr (I % 4 == 0) return x;
  constexpr int K = 4 - I % 4;  // the byte that becomes the lowest
  constexpr int LANE = K | (K + 1) % 4 << 8 | (K + 2) % 4 << 16 | (K + 3) % 4 << 24, NEXT = 0x04040404;
  const __m256i order = _mm256_setr_epi32(LANE, LANE + NEXT, LANE + 2 * NEXT, LANE + 3 * NEXT, LANE, LANE + NEXT,
                                          LANE + 2 * NEXT, LANE + 3 * NEXT);
  return {_mm256_shuffle_epi8(x.a, order), _mm256_shuffle_epi8(x.b, order)};
}

// rest | (x & mask)
static inline Ints merge(Ints rest, Ints x, uint32_t mask) { return rest | (x & all(mask)); }

static inline Ints bits(Floats x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline Floats floats(Ints x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
static inline Floats absolute(Floats x) { return floats(bits(x) & all(0x7FFFFFFFu)); }
// The rounding mode is the default one: to nearest even.
static inline Ints rounded(Floats x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
static inline Floats to_float(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

struct Count {
  __m128i v;
};
static inline Count count_of(int n) { return {_mm_cvtsi32_si128(n)}; }
static inline Floats flip(Floats x, Ints word, Count count) {
  const Ints shifted{_mm256_sll_epi32(word.a, count.v), _mm256_sll_epi32(word.b, count.v)};
  return floats(bits(x) ^ (shifted & all(0x80000000u)));
}

// The product with +1 or -1 is exact, so the fused form rounds as the plain sum does.
static inline Floats hadamard16(Floats x) {
  const __m256 s1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1), s2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1),
               s4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
  const auto half = [&](__m256 v) {
    v = _mm256_fmadd_ps(v, s1, _mm256_permute_ps(v, 0xB1));
    v = _mm256_fmadd_ps(v, s2, _mm256_permute_ps(v, 0x4E));
    return _mm256_fmadd_ps(v, s4, _mm256_permute2f128_ps(v, v, 1));
  };
  const __m256 a = half(x.a), b = half(x.b);
  return {_mm256_add_ps(a, b), _mm256_sub_ps(a, b)};
}

// Sum of the lanes by halves: l and l + 8, then 4, 2, 1 apart.
static inline float sum_lanes(Floats x) { return sum8(_mm256_add_ps(x.a, x.b)); }
static inline float largest_lane(Floats x) {
  const __m256 eight = _mm256_max_ps(x.a, x.b);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline uint32_t largest_lane(Ints x) {
  const __m256i eight = _mm256_max_epu32(x.a, x.b);
  const __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4E));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32(two, 0xB1))));
}

// Lane i is the largest lane of m[i].
static inline Ints largest_lanes(const Ints (&m)[16]) {
  const auto eight = [&](int first) {
    __m256i pairs[4], fours[2];
    for (int i = 0; i < 4; ++i) {
      const Ints& even = m[first + 2 * i];
      const Ints& odd = m[first + 2 * i + 1];
      const __m256i x = _mm256_max_epu32(even.a, even.b), y = _mm256_max_epu32(odd.a, odd.b);
      pairs[i] = _mm256_max_epu32(_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
    }
    for (int i = 0; i < 2; ++i)  // four rows, one 32-bit lane each
      fours[i] = _mm256_max_epu32(_mm256_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                  _mm256_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
    return _mm256_max_epu32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                            _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
  };
  return {eight(0), eight(8)};
}

// A constant that the compiler keeps, in a register or in memory, instead of making it anew at every use.
static inline Ints kept(Ints x) {
  __asm__("" : "+x"(x.a), "+x"(x.b));
  return x;
}
static inline Floats kept(Floats x) {
  __asm__("" : "+x"(x.a), "+x"(x.b));
  return x;
}

struct Philox {
  __m256i c1, c2, c3;
  RoundKeys keys;
  Philox(const Key& key, uint32_t purpose)
      : c1(_mm256_set1_epi64x(key.step)),
        c2(_mm256_set1_epi64x(key.sender_phase | purpose)),
        c3(_mm256_set1_epi64x(key.tensor)),
        keys(key.seed) {}

  // One 32-bit word of each of four counters lies in the low half of a 64-bit lane; the high halves hold leftovers that
  // vpmuludq ignores.
  void four(uint32_t index, __m256i& first, __m256i& second) const {
    const __m256i m0 = _mm256_set1_epi64x(PHILOX_M0), m1 = _mm256_set1_epi64x(PHILOX_M1);
    __m256i a =
        _mm256_cvtepu32_epi64(_mm_add_epi32(_mm_set1_epi32(static_cast<int>(index)), _mm_setr_epi32(0, 1, 2, 3)));
    __m256i b = c1, c = c2, d = c3;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m256i p0 = _mm256_mul_epu32(a, m0), p1 = _mm256_mul_epu32(c, m1);
      a = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), b),
                           _mm256_set1_epi64x(static_cast<long long>(keys.first[round])));
      c = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), d),
                           _mm256_set1_epi64x(static_cast<long long>(keys.second[round])));
      b = p1;
      d = p0;
    }
    first = _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xAA);
    second = _mm256_blend_epi32(c, _mm256_slli_epi64(d, 32), 0xAA);
  }
  template <int N>
  void fill(uint32_t index, Ints* words) const {
    for (int i = 0; i < N; ++i, index += 8, words += 2) {
      four(index, words[0].a, words[1].a);
      four(index + 4, words[0].b, words[1].b);
    }
  }
};

constexpr int TABLE_BITS = 3;  // the longest index of a look-up that is one instruction
constexpr int HALF_BITS = 4;   // the codes whose levels are looked up by magnitude, which makes it one

template <int N>
struct Table {
  const float* t;  // gathers may read any type
  explicit Table(const void* p) : t(static_cast<const float*>(p)) {}
  Floats operator[](Ints i) const {
    const Ints k = i & all(static_cast<uint32_t>(N - 1));
    return {_mm256_i32gather_ps(t, k.a, 4), _mm256_i32gather_ps(t, k.b, 4)};
  }
};
// Up to 8 entries stay in a register; shorter tables are repeated.
template <int N>
struct SmallTable {
  __m256 t;
  explicit SmallTable(const void* p) {
    alignas(32) float repeated[8];
    for (int i = 0; i < 8; i += N) memcpy(repeated + i, p, 4 * N);
    t = _mm256_load_ps(repeated);
  }
  Floats operator[](Ints i) const { return {_mm256_permutevar8x32_ps(t, i.a), _mm256_permutevar8x32_ps(t, i.b)}; }
};
template <>
struct Table<1> : SmallTable<1> {
  using SmallTable::SmallTable;
};
template <>
struct Table<2> : SmallTable<2> {
  using SmallTable::SmallTable;
};
template <>
struct Table<4> : SmallTable<4> {
  using SmallTable::SmallTable;
};
template <>
struct Table<8> : SmallTable<8> {
  using SmallTable::SmallTable;
};
template <>
struct Table<16> {
  SmallTable<8> low, high;
  explicit Table(const void* p) : low(p), high(static_cast<const char*>(p) + 32) {}
  Floats operator[](Ints i) const {
    const Floats l = low[i], h = high[i], choice = floats(shift_left(i, 28));  // bit 3 becomes the sign that blends
    return {_mm256_blendv_ps(l.a, h.a, choice.a), _mm256_blendv_ps(l.b, h.b, choice.b)};
  }
};

// The code of v from that of |v|: the quantisers are symmetric.
template <int B>
static inline Ints with_sign(Ints code, Floats v) {
  const __m256 zero = _mm256_setzero_ps();
  return code ^ (bits(Floats{_mm256_cmp_ps(v.a, zero, _CMP_LT_OQ), _mm256_cmp_ps(v.b, zero, _CMP_LT_OQ)}) &
                 all((1u << B) - 1));
}
// code + 1 where u reaches the threshold: a comparison that holds is -1.
static inline Ints count_reached(Ints code, Floats u, Floats threshold) {
  return {_mm256_sub_epi32(code.a, _mm256_castps_si256(_mm256_cmp_ps(u.a, threshold.a, _CMP_GE_OQ))),
          _mm256_sub_epi32(code.b, _mm256_castps_si256(_mm256_cmp_ps(u.b, threshold.b, _CMP_GE_OQ)))};
}

// Lloyd-Max codes of v; see lloyd_code().
template <int B>
struct Search {
  using L = LloydMax<B>;
  Table<L::CELLS> threshold{L::CELL_THRESHOLD + L::CELLS}, base{L::CELL_BASE + L::CELLS};
  Ints of_magnitude(Floats u) const {
    const __m256 last = _mm256_set1_ps(L::CELLS - 0.0625f);
    const Ints cell{_mm256_cvttps_epi32(_mm256_min_ps(u.a, last)), _mm256_cvttps_epi32(_mm256_min_ps(u.b, last))};
    return count_reached(bits(base[cell]), u, threshold[cell]);
  }
  Ints signed_code(Ints code, Floats v) const { return with_sign<B>(code, v); }
  Ints operator()(Floats v) const { return with_sign<B>(of_magnitude(absolute(v)), v); }
};
// Up to three thresholds are compared with faster than looked up.
template <int B>
struct Compare {
  Ints operator()(Floats v) const {
    constexpr float first = positive_threshold<B>(0), second = positive_threshold<B>(1),
                    third = positive_threshold<B>(2);
    const Floats u = absolute(v);
    Ints code = count_reached(all(1u << (B - 1)), u, all(first));
    if constexpr (B == 3) code = count_reached(count_reached(code, u, all(second)), u, all(third));
    return with_sign<B>(code, v);
  }
};
template <>
struct Search<2> : Compare<2> {};
template <>
struct Search<3> : Compare<3> {};
template <>
struct Search<1> {
  Ints operator()(Floats v) const {
    const __m256 zero = _mm256_setzero_ps();
    return shift_right(bits(Floats{_mm256_cmp_ps(v.a, zero, _CMP_GE_OQ), _mm256_cmp_ps(v.b, zero, _CMP_GE_OQ)}), 31);
  }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
