// The scan of select.h with AVX2: compare, compress by a table, store, and no branch on the data.
#include <immintrin.h>

#include "select.h"

namespace commpress {

int64_t scan_plain(const float* x, int64_t n, uint32_t least, uint32_t* found);

namespace {

// For each set of eight lanes their numbers, ascending, as the bytes of a word.
struct LaneTable {
  uint64_t lanes[256] = {};
  constexpr LaneTable() {
    for (int set = 0; set < 256; ++set) {
      int at = 0;
      for (int lane = 0; lane < 8; ++lane)
        if (set >> lane & 1) lanes[set] |= static_cast<uint64_t>(lane) << 8 * at++;
    }
  }
};
constexpr LaneTable TABLE;

}  // namespace

int64_t scan_avx2(const float* x, int64_t n, uint32_t least, uint32_t* found) {
  // Magnitudes have no sign bit, so that signed comparisons do; `least` - 1 is at least 0.
  const __m256i below = _mm256_set1_epi32(static_cast<int>(least - 1)), mask = _mm256_set1_epi32(0x7FFFFFFF),
                step = _mm256_set1_epi32(8);
  __m256i base = _mm256_setzero_si256();
  int64_t count = 0, i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
    const __m256i wins = _mm256_cmpgt_epi32(_mm256_and_si256(u, mask), below);
    const int set = _mm256_movemask_ps(_mm256_castsi256_ps(wins));
    const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&TABLE.lanes[set]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(found + count), _mm256_add_epi32(base, _mm256_cvtepu8_epi32(lanes)));
    count += __builtin_popcount(static_cast<unsigned>(set));
    base = _mm256_add_epi32(base, step);
  }
  const int64_t more = scan_plain(x + i, n - i, least, found + count);
  for (int64_t j = 0; j < more; ++j) found[count + j] += static_cast<uint32_t>(i);
  return count + more;
}

}  // namespace commpress
