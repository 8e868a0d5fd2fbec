// Sixteen lanes in AVX-512 (F, BW, DQ, VL). Operation by operation the same as lanes_plain.h.
#pragma once
#define COMMPRESS_UNROLL
#include <type_traits>

#include "lanes_x86.h"
#include "quantise.h"

namespace commpress {
namespace COMMPRESS_ISA {

struct Floats {
  __m512 v;
};
struct Ints {
  __m512i v;
};

static inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline Ints load(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline Ints load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline Ints load_halves(const uint8_t* p) {
  return {_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void store_halves(uint8_t* p, Ints a) {  // of lanes below 2^16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}
static inline void store(float* p, Floats a) { _mm512_storeu_ps(p, a.v); }
// Past the caches; p is a multiple of 64.
static inline void store_past_caches(float* p, Floats a) { _mm512_stream_ps(p, a.v); }
static inline void finish_stores() { _mm_sfence(); }
static inline void store(void* p, Ints a) { _mm512_storeu_si512(p, a.v); }
static inline Floats all(float x) { return {_mm512_set1_ps(x)}; }
static inline Ints all(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }

static inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
// a - b out of the multipliers (the product with 1 is exact): half of a butterfly there and half in the adders keeps
// both busy, where they are different ports.
static inline Floats minus(Floats a, Floats b) { return {_mm512_fnmadd_ps(b.v, _mm512_set1_ps(1.0f), a.v)}; }
static inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
// Of what is not negative, whose order is that of integers: those have more ports to compare on where floats have two.
static inline Floats larger_square(Floats a, Floats b) {
  return {_mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
static inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
static inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
static inline Ints larger(Ints a, Ints b) { return {_mm512_max_epu32(a.v, b.v)}; }
static inline Ints smaller(Ints a, Ints b) { return {_mm512_min_epu32(a.v, b.v)}; }
static inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
// yes where a < b (both below 2^31), no elsewhere
static inline Ints where_less(Ints a, Ints b, Ints yes, Ints no) {
  return {_mm512_mask_mov_epi32(no.v, _mm512_cmplt_epi32_mask(a.v, b.v), yes.v)};
}

// GCC's vector operators take the immediate form where the count is a constant.
static inline Ints shift_left(Ints a, int k) {
  return {reinterpret_cast<__m512i>(reinterpret_cast<__v16su>(a.v) << k)};
}
static inline Ints shift_right_signed(Ints a, int k) { return {_mm512_srai_epi32(a.v, static_cast<unsigned>(k))}; }
static inline Ints shift_right(Ints a, int k) {
  return {reinterpret_cast<__m512i>(reinterpret_cast<__v16su>(a.v) >> k)};
}
// Left by i % 4 bytes.
template <int I>
static inline Ints rotate_bytes(Ints a, std::integral_constant<int, I>) {
  constexpr int r = (4 - I % 4) % 4;  // byte b of the result is byte (b + r) % 4 of the source
  constexpr long long word = (r % 4) | (1 + r) % 4 << 8 | (2 + r) % 4 << 16 | (3 + r) % 4 << 24;
  if constexpr (I % 4 == 0) return a;
  return {_mm512_shuffle_epi8(a.v, _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(word)),
                                                    _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0)))};
}
// rest | (a & mask)
static inline Ints merge(Ints rest, Ints a, uint32_t mask) {
  return {_mm512_ternarylogic_epi32(rest.v, a.v, _mm512_set1_epi32(static_cast<int>(mask)), 0xF8)};
}

static inline Ints bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
static inline Floats floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
static inline Floats absolute(Floats a) { return {_mm512_abs_ps(a.v)}; }
static inline Ints rounded(Floats a) {
  return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline Floats to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }

struct Count {
  __m512i v;
};
static inline Count count_of(int n) { return {_mm512_set1_epi32(n)}; }
static inline Floats flip(Floats x, Ints word, Count count) {
  const __m512i shifted = _mm512_sllv_epi32(word.v, count.v), sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  // 0x78: first ^ (second & third)
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(x.v), shifted, sign, 0x78))};
}

// The product with +1 or -1 is exact, so the fused form rounds as the plain sum does.
static inline Floats hadamard16(Floats a) {
  const __m512 s1 = _mm512_castsi512_ps(_mm512_setr_epi32(
      0x3F800000, 0xBF800000, 0x3F800000, 0xBF800000, 0x3F800000, 0xBF800000, 0x3F800000, 0xBF800000, 0x3F800000,
      0xBF800000, 0x3F800000, 0xBF800000, 0x3F800000, 0xBF800000, 0x3F800000, 0xBF800000));
  const __m512 s2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
  const __m512 s4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
  const __m512 s8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
  __m512 v = a.v;
  v = _mm512_fmadd_ps(v, s1, _mm512_permute_ps(v, 0xB1));
  v = _mm512_fmadd_ps(v, s2, _mm512_permute_ps(v, 0x4E));
  v = _mm512_fmadd_ps(v, s4, _mm512_shuffle_f32x4(v, v, 0xB1));
  v = _mm512_fmadd_ps(v, s8, _mm512_shuffle_f32x4(v, v, 0x4E));
  return {v};
}

// Sum of the lanes by halves: l and l + 8, then 4, 2, 1 apart.
static inline float sum_lanes(Floats a) {
  return sum8(_mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)));
}
static inline uint32_t largest_lane(Ints a) { return _mm512_reduce_max_epu32(a.v); }
static inline float largest_lane(Floats a) { return _mm512_reduce_max_ps(a.v); }

// Lane i is the largest lane of a[i].
static inline Ints largest_lanes(const Ints (&a)[16]) {
  __m512i pairs[8], fours[4], eights[2];
  for (int i = 0; i < 8; ++i)  // within each 128-bit lane: the two rows' pairs (0 2, 1 3)
    pairs[i] = _mm512_max_epu32(_mm512_unpacklo_epi32(a[2 * i].v, a[2 * i + 1].v),
                                _mm512_unpackhi_epi32(a[2 * i].v, a[2 * i + 1].v));
  for (int i = 0; i < 4; ++i)  // four rows, one 32-bit lane each
    fours[i] = _mm512_max_epu32(_mm512_unpacklo_epi64(pairs[2 * i], pairs[2 * i + 1]),
                                _mm512_unpackhi_epi64(pairs[2 * i], pairs[2 * i + 1]));
  for (int i = 0; i < 2; ++i)
    eights[i] = _mm512_max_epu32(_mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                                 _mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0xDD));
  return {_mm512_max_epu32(_mm512_shuffle_i32x4(eights[0], eights[1], 0x88),
                           _mm512_shuffle_i32x4(eights[0], eights[1], 0xDD))};
}

// A constant that the compiler keeps, in a register or in memory, instead of making it anew at every use.
static inline Ints kept(Ints a) {
  __asm__("" : "+v"(a.v));
  return a;
}
static inline Floats kept(Floats a) {
  __asm__("" : "+v"(a.v));
  return a;
}

struct Philox {
  __m512i c1, c2, c3;
  RoundKeys keys;
  Philox(const Key& key, uint32_t purpose)
      : c1(_mm512_set1_epi64(key.step)),
        c2(_mm512_set1_epi64(key.sender_phase | purpose)),
        c3(_mm512_set1_epi64(key.tensor)),
        keys(key.seed) {}

  // One 32-bit word of each of eight counters lies in the low half of a 64-bit lane; the high halves hold leftovers
  // that vpmuludq ignores. Ten rounds are one long chain, so several counters go through them side by side.
  template <int N>
  void fill(uint32_t index, Ints* words) const {
    const __m512i m0 = _mm512_set1_epi64(PHILOX_M0), m1 = _mm512_set1_epi64(PHILOX_M1);
    const __m256i first =
        _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(index)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    __m512i a[N], b[N], c[N], d[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      a[i] = _mm512_cvtepu32_epi64(_mm256_add_epi32(first, _mm256_set1_epi32(8 * i)));
      b[i] = c1;
      c[i] = c2;
      d[i] = c3;
    }
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const __m512i first_key = _mm512_set1_epi64(keys.first[round]),
                    second_key = _mm512_set1_epi64(keys.second[round]);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) {
        const __m512i p0 = _mm512_mul_epu32(a[i], m0), p1 = _mm512_mul_epu32(c[i], m1);
        // The high words come down by a shuffle: shifts would crowd the one port that also multiplies.
        a[i] = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(p1, _MM_PERM_DDBB), b[i], first_key, 0x96);
        c[i] = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(p0, _MM_PERM_DDBB), d[i], second_key, 0x96);
        b[i] = p1;
        d[i] = p0;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      words[2 * i].v = _mm512_mask_shuffle_epi32(a[i], 0xAAAA, b[i], _MM_PERM_CCAA);
      words[2 * i + 1].v = _mm512_mask_shuffle_epi32(c[i], 0xAAAA, d[i], _MM_PERM_CCAA);
    }
  }
};

constexpr int TABLE_BITS = 4;  // the longest index of a look-up that is one instruction
constexpr int HALF_BITS = 0;   // the codes whose levels are looked up by magnitude

template <int N>
struct Table {
  const void* t;
  explicit Table(const void* p) : t(p) {}
  Floats operator[](Ints i) const {
    return {_mm512_i32gather_ps(_mm512_and_si512(i.v, _mm512_set1_epi32(N - 1)), t, 4)};
  }
};
// Up to 16 entries stay in a register; shorter tables are repeated.
template <int N>
struct SmallTable {
  __m512 t;
  explicit SmallTable(const void* p) {
    if constexpr (N == 16)
      t = _mm512_loadu_ps(p);
    else if constexpr (N == 8)
      t = _mm512_broadcast_f32x8(_mm256_loadu_ps(static_cast<const float*>(p)));
    else if constexpr (N == 4)
      t = _mm512_broadcast_f32x4(_mm_loadu_ps(static_cast<const float*>(p)));
    else if constexpr (N == 2)
      t = _mm512_broadcast_f32x2(_mm_castsi128_ps(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
    else
      t = _mm512_set1_ps(*static_cast<const float*>(p));
  }
  Floats operator[](Ints i) const { return {_mm512_permutexvar_ps(i.v, t)}; }
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
struct Table<16> : SmallTable<16> {
  using SmallTable::SmallTable;
};
template <>
struct Table<32> {
  __m512 low, high;
  explicit Table(const void* p) : low(_mm512_loadu_ps(p)), high(_mm512_loadu_ps(static_cast<const char*>(p) + 64)) {}
  Floats operator[](Ints i) const { return {_mm512_permutex2var_ps(low, i.v, high)}; }
};

// The search tables with the negative cells behind the others, where the low bits of a negative index find them.
template <int B>
struct WrappedCells {
  using L = LloydMax<B>;
  float threshold[2 * L::CELLS];
  int32_t base[2 * L::CELLS];
  constexpr WrappedCells() : threshold(), base() {
    for (int i = 0; i < 2 * L::CELLS; ++i) {
      threshold[i] = L::CELL_THRESHOLD[(i + L::CELLS) % (2 * L::CELLS)];
      base[i] = L::CELL_BASE[(i + L::CELLS) % (2 * L::CELLS)];
    }
  }
};
template <int B>
static constexpr WrappedCells<B> WRAPPED_CELLS{};

// Lloyd-Max codes of v; see lloyd_code().
template <int B>
struct Search {
  using L = LloydMax<B>;
  Table<2 * L::CELLS> threshold{WRAPPED_CELLS<B>.threshold}, base{WRAPPED_CELLS<B>.base};
  Ints operator()(Floats v) const {
    const __m512 last = _mm512_set1_ps(L::CELLS - 0.0625f);
    const __m512 position = _mm512_range_ps(v.v, last, 0x02);  // the lesser magnitude, with v's sign
    const Ints cell{_mm512_cvt_roundps_epi32(position, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    const __m512i low = bits(base[cell]).v;
    return {
        _mm512_mask_add_epi32(low, _mm512_cmp_ps_mask(v.v, threshold[cell].v, _CMP_GE_OQ), low, _mm512_set1_epi32(1))};
  }
};
// One bit and two: a quantiser is symmetric, so one comparison gives the sign and another the size, and each sets its
// bit in place. See lloyd_rows.h.
template <int B>
struct Quantiser;
// Bit i of every lane, out of memory: made of immediates, the constants would cost as much as the work.
struct Bits {
  static constexpr uint32_t BIT[32] = {1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
                                       1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
                                       1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
                                       1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
  static inline __attribute__((always_inline)) void set(Ints& word, __mmask16 where, int i) {
    __asm__("vpord %2%{1to16%}, %0, %0%{%1%}" : "+v"(word.v) : "Yk"(where), "m"(BIT[i]));
  }
};
template <>
struct Quantiser<1> {
  using L = LloydMax<1>;
  const Floats level = all(L::LEVEL[1]), product_level = all(L::PRODUCT_LEVEL[1]);
  Ints word = all(0u);

  template <bool CENTROID>
  inline __attribute__((always_inline)) void row(int row, Floats v, Floats& p, Floats& q) {
    p = kept(p + absolute(v) * product_level);
    if constexpr (CENTROID) q = kept(q + level * level);
    const __mmask16 sign = _mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_GE_OQ);
    Bits::set(word, sign, row);
  }
  inline __attribute__((always_inline)) void finish(uint8_t* out) { store(out, word); }
};
template <>
struct Quantiser<2> {
  using L = LloydMax<2>;
  const Floats threshold = all(L::CELL_THRESHOLD[L::CELLS + 7]), zero = all(0.0f);
  Ints words[2] = {all(0u), all(0u)};

  template <bool CENTROID>
  inline __attribute__((always_inline)) void row(int row, Floats v, Floats& p, Floats& q) {
    const Floats size = absolute(v);
    const __mmask16 large = _mm512_cmp_ps_mask(size.v, threshold.v, _CMP_GE_OQ),
                    sign = _mm512_cmp_ps_mask(v.v, zero.v, _CMP_GE_OQ);
    const auto choose = [large](const float* level) {
      return Floats{_mm512_mask_blend_ps(large, _mm512_set1_ps(level[2]), _mm512_set1_ps(level[3]))};
    };
    p = kept(p + size * choose(L::PRODUCT_LEVEL));
    if constexpr (CENTROID) {
      const Floats l = choose(L::LEVEL);
      q = kept(q + l * l);
    }
    Bits::set(words[row / 16], large, row % 16 * 2);
    Bits::set(words[row / 16], sign, row % 16 * 2 + 1);
  }
  // Below zero the lower bit is the other way round. 0xD2 is ~(b ^ a) where c is set, else a, of (a, b, c).
  inline __attribute__((always_inline)) void finish(uint8_t* out) {
    for (int k = 0; k < 2; ++k)
      store(out + 64 * k, Ints{_mm512_ternarylogic_epi32(words[k].v, shift_right(words[k], 1).v,
                                                         _mm512_set1_epi32(0x55555555), 0xD2)});
  }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
