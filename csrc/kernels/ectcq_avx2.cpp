#define COMMPRESS_ISA path_avx2
#include "trellis_lanes_avx2.h"

namespace commpress {
namespace COMMPRESS_ISA {

struct Table16 {
  __m256 low, high;
  Table16() = default;
  explicit Table16(const float* p) : low(_mm256_loadu_ps(p)), high(_mm256_loadu_ps(p + 8)) {}
  __m256 half(__m256i i) const {
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));  // bit 3 decides
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i), upper);
  }
  Floats operator[](Ints i) const { return {half(i.a), half(i.b)}; }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress

// The lanes and the table come first.
#include "ectcq_loops.h"

namespace commpress {
namespace COMMPRESS_ISA {

static void ectcq_search(const EctcqBlock* blocks, int64_t count, float gain, float inverse) {
  ectcq_search_with(ectcq_trace, blocks, count, gain, inverse);
}

extern const EctcqKernels ECTCQ_KERNELS;
const EctcqKernels ECTCQ_KERNELS = {ectcq_search, ectcq_count, ectcq_encode_block, ectcq_decode_block};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
