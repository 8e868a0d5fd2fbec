// The scan of select.h with AVX2.
#include <immintrin.h>

#include "select.h"

namespace commpress {

int64_t scan_plain(const float* x, int64_t n, uint32_t least, uint32_t* found);

int64_t scan_avx2(const float* x, int64_t n, uint32_t least, uint32_t* found) {
  // Magnitudes have no sign bit, so that signed comparisons do; `least` - 1 is at least 0.
  const __m256i below = _mm256_set1_epi32(static_cast<int>(least - 1)), mask = _mm256_set1_epi32(0x7FFFFFFF);
  int64_t count = 0, i = 0;
  for (; i + 32 <= n; i += 32) {
    uint32_t hits = 0;
    for (int j = 0; j < 4; ++j) {
      const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i + 8 * j));
      const __m256i wins = _mm256_cmpgt_epi32(_mm256_and_si256(u, mask), below);
      hits |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(wins))) << 8 * j;
    }
    for (; hits; hits &= hits - 1) found[count++] = static_cast<uint32_t>(i) + static_cast<uint32_t>(__builtin_ctz(hits));
  }
  const int64_t more = scan_plain(x + i, n - i, least, found + count);
  for (int64_t j = 0; j < more; ++j) found[count + j] += static_cast<uint32_t>(i);
  return count + more;
}

}  // namespace commpress
