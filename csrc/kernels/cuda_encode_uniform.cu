// One kernel a file: they take long to compile.
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

int encode_uniform(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue) {
  const DeviceScope scope(queue.device);
  launch_encode<UNIFORM>(job, x, gain, out, plain, queue);
  return static_cast<int>(cudaGetLastError());
}

int processors_of(int device) {
  int count = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return error == cudaSuccess ? count : 1;
}

}  // namespace cuda
}  // namespace commpress
