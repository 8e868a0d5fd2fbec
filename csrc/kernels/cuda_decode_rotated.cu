// One kernel a file: they take long to compile.
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

int decode_rotated(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_decode<HADAMARD_LLOYD>(job, sources, out, delivery, report, plain, queue);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cuda
}  // namespace commpress
