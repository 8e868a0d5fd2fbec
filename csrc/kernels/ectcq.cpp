// What all code paths of `trellis` share: the tables of a class, and the choice of a path.
#include "ectcq.h"

#include "ectcq_model.h"

namespace commpress {

namespace path_plain {
extern const EctcqKernels ECTCQ_KERNELS;
}
#if defined(COMMPRESS_X86)
namespace path_avx2 {
extern const EctcqKernels ECTCQ_KERNELS;
}
namespace path_avx512 {
extern const EctcqKernels ECTCQ_KERNELS;
}
#endif

const EctcqKernels& ectcq_kernels(Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::ECTCQ_KERNELS;
  if (isa == Isa::AVX2) return path_avx2::ECTCQ_KERNELS;
#endif
  (void)isa;
  return path_plain::ECTCQ_KERNELS;
}

EctcqModel ectcq_fit(const EctcqCounts& counts, int64_t& cost) {
  EctcqModel m;
  ectcq_fit_model(counts, entropy::lengths(), m, cost);
  return m;
}

}  // namespace commpress
