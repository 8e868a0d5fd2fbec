// The kernels of `topk`, run by the emulator in place of a GPU.
#include "cuda_decode_sparse.h"
#include "cuda_encode_sparse.h"

namespace commpress {
namespace cuda {

int encode_sparse(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue) {
  launch_encode_sparse(job, x, gain, out, queue);
  return 0;
}

int decode_sparse(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                  const Queue& queue) {
  launch_decode_sparse(job, sources, out, delivery, report, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
