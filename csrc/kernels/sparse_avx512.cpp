// The scan of select.h with AVX-512: compare, compress in a register, store (a compressing store is slow on some
// processors), and no branch on the data.
#include <immintrin.h>

#include "select.h"

namespace commpress {

int64_t scan_plain(const float* x, int64_t n, uint32_t least, uint32_t* found);

int64_t scan_avx512(const float* x, int64_t n, uint32_t least, uint32_t* found) {
  const __m512i bound = _mm512_set1_epi32(static_cast<int>(least)), mask = _mm512_set1_epi32(0x7FFFFFFF),
                step = _mm512_set1_epi32(16);
  __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0, i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i u = _mm512_and_si512(_mm512_loadu_si512(x + i), mask);
    const __mmask16 wins = _mm512_cmpge_epu32_mask(u, bound);
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(wins, index));
    count += __builtin_popcount(wins);
    index = _mm512_add_epi32(index, step);
  }
  const int64_t more = scan_plain(x + i, n - i, least, found + count);
  for (int64_t j = 0; j < more; ++j) found[count + j] += static_cast<uint32_t>(i);
  return count + more;
}

}  // namespace commpress
