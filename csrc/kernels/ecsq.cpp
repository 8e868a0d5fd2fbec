// What all code paths of the entropy-coded quantisers share: sizes, and the choice of a path.
#include "ecsq.h"

#include "ecsq_kernels.h"

namespace commpress {

namespace path_plain {
extern const EcsqKernels ECSQ_KERNELS;
}
#if defined(COMMPRESS_X86)
namespace path_avx2 {
extern const EcsqKernels ECSQ_KERNELS;
}
namespace path_avx512 {
extern const EcsqKernels ECSQ_KERNELS;
}
#endif

const EcsqKernels& ecsq_kernels(Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::ECSQ_KERNELS;
  if (isa == Isa::AVX2) return path_avx2::ECSQ_KERNELS;
#endif
  (void)isa;
  return path_plain::ECSQ_KERNELS;
}

int64_t ecsq_payload_nbytes(const EcsqPayload& p) {
  // Whole segments in one step: sizes of enormous tensors are asked for.
  const int64_t border = (p.offset + ECSQ_SEGMENT - 1) / ECSQ_SEGMENT * ECSQ_SEGMENT, end = p.offset + p.numel;
  if (p.numel == 0) return 0;
  if (end <= border) return ecsq_segment_nbytes(p.codec, p.numel);
  int64_t total = border > p.offset ? ecsq_segment_nbytes(p.codec, border - p.offset) : 0;
  total += (end - border) / ECSQ_SEGMENT * ecsq_segment_nbytes(p.codec, ECSQ_SEGMENT);
  const int64_t rest = (end - border) % ECSQ_SEGMENT;
  return rest ? total + ecsq_segment_nbytes(p.codec, rest) : total;
}

}  // namespace commpress
