// One kernel a file: they take long to compile.
#include "cuda_encode_sparse.h"

namespace commpress {
namespace cuda {

int encode_sparse(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_encode_sparse(job, x, gain, out, queue);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cuda
}  // namespace commpress
