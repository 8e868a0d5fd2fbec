// Rounding and counting of ecsq's blocks in AVX2. Include after lanes_avx2.h.
#pragma once
#include "ecsq_loops.h"
#include "entropy_avx2.h"

namespace commpress {
namespace COMMPRESS_ISA {

static COMMPRESS_INLINE __m256 magnitude(__m256 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
static COMMPRESS_INLINE int64_t sum_words(__m256i x) {
  const __m256i wide = _mm256_add_epi64(_mm256_and_si256(x, _mm256_set1_epi64x(0xFFFFFFFF)), _mm256_srli_epi64(x, 32));
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
}

// ecsq_value(), ecsq_high() and ecsq_cell() of eight coordinates.
struct Rounding {
  const __m256 gain, inverse, offset;
  const __m128i raw;
  const __m256i half;
  explicit Rounding(const EcsqQuantiser& c)
      : gain(_mm256_set1_ps(c.gain)),
        inverse(_mm256_set1_ps(c.inverse)),
        offset(_mm256_set1_ps(c.offset)),
        raw(_mm_cvtsi32_si128(c.raw)),
        half(_mm256_set1_epi32(1 << c.raw >> 1)) {}

  __m256 steps(const float* x) const { return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x), gain), inverse); }
  // Up to MOST, without the sign.
  __m256i size(__m256 v, float most) const {
    return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_add_ps(magnitude(v), offset), _mm256_set1_ps(most)));
  }
  template <bool DITHER>
  __m256i value(__m256 v, __m256i w) const {
    if constexpr (DITHER) {
      const __m256 m = _mm256_add_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(w), _mm256_set1_ps(0x1p-24f)));
      const __m256 most = _mm256_set1_ps(ECSQ_MOST), least = _mm256_set1_ps(-ECSQ_MOST);
      // A NaN, from steps that are too small for a float, is zero.
      return _mm256_cvtps_epi32(
          _mm256_and_ps(_mm256_max_ps(least, _mm256_min_ps(most, m)), _mm256_cmp_ps(m, m, _CMP_ORD_Q)));
    }
    return _mm256_sign_epi32(size(v, ECSQ_MOST), _mm256_castps_si256(v));
  }
  __m256i high(__m256i q) const { return _mm256_sra_epi32(_mm256_add_epi32(q, half), raw); }
};
static COMMPRESS_INLINE __m256i cell_of(__m256i w) {
  return _mm256_min_epi32(_mm256_srli_epi32(_mm256_abs_epi32(w), 20), _mm256_set1_epi32(entropy::CELLS - 1));
}
// q, or -q where the dither is negative.
static COMMPRESS_INLINE __m256i folded(__m256i q, __m256i w) {
  return _mm256_sign_epi32(q, _mm256_or_si256(w, _mm256_set1_epi32(1)));
}

// How many of a block have each magnitude, up to 127; none is -1.
struct Magnitudes {
  __m256i bytes[ECSQ_BLOCK / 32];  // in some order
  template <class F>
  explicit COMMPRESS_INLINE Magnitudes(F&& of) {
    for (int i = 0; i < ECSQ_BLOCK; i += 32)
      bytes[i / 32] =
          _mm256_packs_epi16(_mm256_packs_epi32(of(i), of(i + 8)), _mm256_packs_epi32(of(i + 16), of(i + 24)));
  }
  void count(int64_t present, entropy::Counts& counts) const {
    for (int k = 0; k <= entropy::LARGEST && present; ++k) {
      __m256i beyond = _mm256_setzero_si256();
      for (const __m256i& b : bytes)
        beyond = _mm256_sub_epi8(beyond, _mm256_cmpgt_epi8(b, _mm256_set1_epi8(static_cast<char>(k))));
      const int64_t here = sum_words(_mm256_sad_epu8(beyond, _mm256_setzero_si256()));
      counts.of[0][32 + k] += present - here;
      present = here;
    }
    counts.of[0][0] += present;
  }
};

// The symbols of eight coordinates without a cell; without dither and raw bits their magnitudes, up to 127.
template <bool DITHER, bool RAW>
static COMMPRESS_INLINE __m256i symbols(const Rounding& r, const float* x, const int32_t* w) {
  const __m256 v = r.steps(x);
  if constexpr (!DITHER && !RAW) return r.size(v, 127.0f);
  return r.high(r.value<DITHER>(v, DITHER ? load_eight(w) : _mm256_setzero_si256()));
}
// Where counts have the symbol of a dithered coordinate.
static COMMPRESS_INLINE __m256i place_of(__m256i q, __m256i w) {
  const __m256i escaped = _mm256_cmpgt_epi32(_mm256_abs_epi32(q), _mm256_set1_epi32(entropy::LARGEST));
  const __m256i symbol = _mm256_add_epi32(_mm256_set1_epi32(32), folded(q, w));
  return _mm256_or_si256(_mm256_slli_epi32(cell_of(w), 6), _mm256_andnot_si256(escaped, symbol));
}

// Calls f(bool constants dither, raw).
template <class Quantiser, class F>
static COMMPRESS_INLINE auto with_kind(const Quantiser& c, F&& f) {
  constexpr std::true_type yes;
  constexpr std::false_type no;
  return c.dither ? c.raw ? f(yes, yes) : f(yes, no) : c.raw ? f(no, yes) : f(no, no);
}

static void count_vector(const EcsqQuantiser& c, const float* x, const int32_t* w, int64_t n, entropy::Counts& counts) {
  if (n != ECSQ_BLOCK) return ecsq_count(c, x, w, n, counts);
  const Rounding r(c);
  with_kind(c, [&](auto dither, auto raw) {
    if constexpr (!dither || raw) {
      const Magnitudes all([&](int i) __attribute__((always_inline)) {
        return _mm256_abs_epi32(symbols<dither, raw>(r, x + i, w + i));
      });
      all.count(ECSQ_BLOCK, counts);
    } else {
      alignas(32) uint32_t at[ECSQ_BLOCK];
      for (int i = 0; i < ECSQ_BLOCK; i += 8) {
        const __m256i wi = load_eight(w + i);
        store_eight(at + i, place_of(r.value<true>(r.steps(x + i), wi), wi));
      }
      for (const uint32_t place : at) ++counts.of[0][place];
    }
  });
}

// Appends the lanes of a set.
static COMMPRESS_INLINE void append(__m256i x, unsigned set, void* to) {
  const uint8_t* const order = LANE_ORDERS.gathered[set] + 8 - __builtin_popcount(set);
  store_eight(to, _mm256_permutevar8x32_epi32(x, lane_order(order)));
}

static int64_t settle_vector(const EcsqQuantiser& least, const EcsqQuantiser& most, const float* x, const int32_t* w,
                             int64_t n, entropy::Counts& counts, float* open, int32_t* open_w) {
  if (n != ECSQ_BLOCK) return ecsq_settle(least, most, x, w, n, counts, open, open_w);
  const Rounding low(least), high(most);
  return with_kind(least, [&](auto dither, auto raw) {
    int64_t met = 0;
    // Keeps the lanes that differ.
    const auto keep = [&](int64_t i, __m256i same) __attribute__((always_inline)) {
      const unsigned set = lanes_of(same) ^ 255u;
      if (i % 16 == 0) prefetch_line(x + i + 2 * ECSQ_BLOCK);
      append(load_eight(x + i), set, open + met);
      if constexpr (dither) append(load_eight(w + i), set, open_w + met);
      met += __builtin_popcount(set);
    };
    if constexpr (!dither || raw) {
      const Magnitudes all([&](int i) __attribute__((always_inline)) {
        const __m256i q = symbols<dither, raw>(low, x + i, w + i);
        const __m256i same = _mm256_cmpeq_epi32(q, symbols<dither, raw>(high, x + i, w + i));
        keep(i, same);
        return _mm256_or_si256(_mm256_abs_epi32(q), _mm256_xor_si256(same, _mm256_set1_epi32(-1)));
      });
      all.count(ECSQ_BLOCK - met, counts);
    } else {
      alignas(32) uint32_t at[ECSQ_BLOCK + 8];
      uint32_t* end = at;
      for (int i = 0; i < ECSQ_BLOCK; i += 8) {
        const __m256i wi = load_eight(w + i), q = low.value<true>(low.steps(x + i), wi);
        const __m256i same = _mm256_cmpeq_epi32(q, high.value<true>(high.steps(x + i), wi));
        keep(i, same);
        append(place_of(q, wi), lanes_of(same), end);
        end += __builtin_popcount(lanes_of(same));
      }
      for (const uint32_t* place = at; place < end; ++place) ++counts.of[0][*place];
    }
    return met;
  });
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
