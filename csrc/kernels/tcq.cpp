// Trellis-coded quantisation: the choice of a code path, and the way back.
#include "tcq.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                  \
  namespace path {                                                               \
  void tcq_quantise(const float*, int64_t, int64_t, const TcqTables&, int16_t*); \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#endif

void tcq_quantise(const float* v, int64_t blocks, int64_t n, const TcqTables& tables, int16_t* indices, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::tcq_quantise(v, blocks, n, tables, indices);
  if (isa == Isa::AVX2) return path_avx2::tcq_quantise(v, blocks, n, tables, indices);
#endif
  path_plain::tcq_quantise(v, blocks, n, tables, indices);
}

void tcq_dequantise(const int16_t* indices, int64_t blocks, int64_t n, const float* levels, float* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    int state = 0;
    for (int64_t i = block * n; i < (block + 1) * n; ++i) {
      const int k = indices[i], size = k < 0 ? -k : k;
      const float level = levels[(state & 1) * TCQ_INDICES + (size < TCQ_INDICES ? size : TCQ_INDICES - 1)];
      out[i] = k < 0 ? -level : level;
      state = tcq_next(state, size & 1);
    }
  }
}

}  // namespace commpress
