// One kernel a file: they take long to compile.
#include "cuda_encode_entropy.h"

namespace commpress {
namespace cuda {

int encode_entropy(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_encode_entropy(job, x, gain, out, scratch, queue);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cuda
}  // namespace commpress
