// One kernel a file: they take long to compile.
#include "cuda_decode_entropy.h"

namespace commpress {
namespace cuda {

int decode_entropy(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_decode_entropy(job, sources, out, delivery, report, queue);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace cuda
}  // namespace commpress
