// The kernel of the entropy-coded quantisers, run by the emulator in place of a GPU.
#include "cuda_decode_entropy.h"

namespace commpress {
namespace cuda {

int decode_entropy(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue) {
  launch_decode_entropy(job, sources, out, delivery, report, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
