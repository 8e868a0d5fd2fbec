#define COMMPRESS_ISA path_plain
#include "lanes_plain.h"
// The lanes come first.
#include "ecsq_loops.h"

namespace commpress {
namespace COMMPRESS_ISA {

extern const EcsqKernels ECSQ_KERNELS;
const EcsqKernels ECSQ_KERNELS = {ecsq_statistics,   ecsq_count,      ecsq_settle,        ecsq_encode_block,
                                  ecsq_decode_block, ecsq_dither,     ecsq_rotate,        ecsq_scale,
                                  ecsq_stream,       ecsq_accumulate, ecsq_finish_stream, ecsq_unrotate};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
