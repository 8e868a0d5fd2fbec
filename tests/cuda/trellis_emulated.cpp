// The kernel of the bitshift trellis, run by the emulator in place of a GPU.
#include "cuda_decode_trellis.h"

namespace commpress {
namespace cuda {

int decode_trellis(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue) {
  launch_decode_trellis(job, sources, out, delivery, report, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
