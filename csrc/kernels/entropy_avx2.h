// Eight rANS coders at once, in AVX2. Include after lanes_avx2.h.
#pragma once
#include "entropy_coders.h"
#include "entropy_model.h"

namespace commpress {
namespace COMMPRESS_ISA {

static COMMPRESS_INLINE __m256i load_eight(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static COMMPRESS_INLINE void store_eight(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
static COMMPRESS_INLINE unsigned lanes_of(__m256i mask) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
}

// For each set of lanes: which of eight consecutive words each of them takes, in order; and which lane each of the last
// words comes from.
struct LaneOrders {
  alignas(8) uint8_t spread[256][8] = {}, gathered[256][8] = {};
  constexpr LaneOrders() {
    for (int set = 0; set < 256; ++set) {
      uint8_t met = 0;
      for (int lane = 0; lane < 8; ++lane) {
        spread[set][lane] = met;
        met = static_cast<uint8_t>(met + (set >> lane & 1));
      }
      for (int lane = 8, to = 8; lane-- > 0;)
        if (set >> lane & 1) gathered[set][--to] = static_cast<uint8_t>(lane);
    }
  }
};
static constexpr LaneOrders LANE_ORDERS{};

static COMMPRESS_INLINE __m256i lane_order(const uint8_t* order) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(order)));
}

// t[at] for eight places. A gather takes longer on AMD's processors, and on Intel's since their microcode of 2023.
static COMMPRESS_INLINE __m256i look_up(const void* table, __m256i at) {
  const int* const t = static_cast<const int*>(table);
  const auto two = [&](int64_t places) __attribute__((always_inline)) {
    return _mm_insert_epi32(_mm_cvtsi32_si128(t[places & 0xFFFFFFFF]), t[places >> 32], 1);
  };
  const __m128i low = _mm256_castsi256_si128(at), high = _mm256_extracti128_si256(at, 1);
  return _mm256_set_m128i(_mm_unpacklo_epi64(two(_mm_cvtsi128_si64(high)), two(_mm_extract_epi64(high, 1))),
                          _mm_unpacklo_epi64(two(_mm_cvtsi128_si64(low)), two(_mm_extract_epi64(low, 1))));
}

// A table of words by symbol, or by row and symbol.
struct WideTable {
  static constexpr int ESCAPE = 0;
  const void* t;
  explicit WideTable(const void* p) : t(p) {}
  __m256i operator[](__m256i symbol) const { return look_up(t, symbol); }
};

// Words by symbol for |k| < 8: sixteen of them, by the symbol's low four bits. The escape is at ESCAPE.
struct ShortTable {
  static constexpr int ESCAPE = 24;
  __m256i positive, negative;
  explicit ShortTable(const void* p) {
    const char* const at = static_cast<const char*>(p);
    positive = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 4 * 32));
    negative = _mm256_insert_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 4 * 24)),
                                   *static_cast<const int*>(p), 0);
  }
  __m256i operator[](__m256i symbol) const {
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(positive, symbol)),
                                                _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(negative, symbol)),
                                                _mm256_castsi256_ps(_mm256_slli_epi32(symbol, 28))));
  }
};

// x / f, x % f for x < f 2^20: the quotient in binary32 is off by one at most.
static COMMPRESS_INLINE __m256i put_state(__m256i x, __m256i f, __m256i start) {
  const __m256 half = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 1));
  __m256i q = _mm256_cvttps_epi32(_mm256_div_ps(_mm256_add_ps(half, half), _mm256_cvtepi32_ps(f)));
  __m256i r = _mm256_sub_epi32(x, _mm256_mullo_epi32(q, f));
  const __m256i below = _mm256_srai_epi32(r, 31);
  q = _mm256_add_epi32(q, below);
  r = _mm256_add_epi32(r, _mm256_and_si256(below, f));
  const __m256i inside = _mm256_cmpgt_epi32(f, r);
  q = _mm256_add_epi32(q, _mm256_add_epi32(inside, _mm256_set1_epi32(1)));
  r = _mm256_sub_epi32(r, _mm256_andnot_si256(inside, f));
  return _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(q, entropy::PRECISION), r), start);
}

// rans_put() of eight symbols; the last lane's word comes last. Sixteen bytes below `out` are overwritten.
static COMMPRESS_INLINE __m256i put_symbols(__m256i s, __m256i frequency, __m256i start, uint8_t*& out) {
  const __m256i inside = _mm256_cmpgt_epi32(frequency, _mm256_srli_epi32(s, 20));
  const unsigned full = lanes_of(inside) ^ 255u;
  const __m256i low = _mm256_and_si256(_mm256_permutevar8x32_epi32(s, lane_order(LANE_ORDERS.gathered[full])),
                                       _mm256_set1_epi32(0xFFFF));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out - 16), words);
  out -= 2 * __builtin_popcount(full);
  return put_state(_mm256_blendv_epi8(_mm256_srli_epi32(s, 16), s, inside), frequency, start);
}

// rans_advance() of eight states; slot: frequency | bias << 12 | symbol << 24. Reads up to 16 bytes.
static COMMPRESS_INLINE __m256i advance_states(__m256i s, __m256i slot, const uint8_t*& in) {
  const __m256i slot_mask = _mm256_set1_epi32(entropy::TOTAL - 1);
  s = _mm256_add_epi32(_mm256_mullo_epi32(_mm256_and_si256(slot, slot_mask), _mm256_srli_epi32(s, 12)),
                       _mm256_and_si256(_mm256_srli_epi32(slot, 12), slot_mask));
  const __m256i hungry = _mm256_cmpeq_epi32(_mm256_srli_epi32(s, 16), _mm256_setzero_si256());
  const unsigned set = lanes_of(hungry);
  const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in)));
  in += 2 * __builtin_popcount(set);
  const __m256i more = _mm256_or_si256(_mm256_slli_epi32(s, 16),
                                       _mm256_permutevar8x32_epi32(words, lane_order(LANE_ORDERS.spread[set])));
  return _mm256_blendv_epi8(s, more, hungry);
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
