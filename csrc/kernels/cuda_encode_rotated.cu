// One kernel a file: they take long to compile.
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

int encode_rotated(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_encode<HADAMARD_LLOYD>(job, x, gain, out, plain, queue);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cuda
}  // namespace commpress
