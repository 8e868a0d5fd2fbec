#define COMMPRESS_ISA path_plain
#include "trellis_words_plain.h"

// The lanes come first.
#include "ectcq_loops.h"

namespace commpress {
namespace COMMPRESS_ISA {

extern const EctcqKernels ECTCQ_KERNELS;
const EctcqKernels ECTCQ_KERNELS = {ectcq_search, ectcq_count, ectcq_encode_block, ectcq_decode_block};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
