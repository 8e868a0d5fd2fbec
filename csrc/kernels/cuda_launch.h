// How the kernels are launched. Compiled once by nvcc (cuda_*.cu) and, for tests, once with the emulator.
#pragma once
#include "cuda_kernels.h"

namespace commpress {
namespace cuda {

#if defined(__CUDACC__)
// Makes a device current for this library's own copy of the CUDA runtime.
class DeviceScope final {
 public:
  explicit DeviceScope(int device) {
    cudaGetDevice(&before_);
    if (device != before_) cudaSetDevice(device);
    changed_ = device != before_;
  }
  ~DeviceScope() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};
#endif

// Enough blocks of threads to fill the device, and no more than there is work.
inline unsigned grid_of(int64_t units, const Queue& queue) {
  const int64_t most = static_cast<int64_t>(queue.processors) * BLOCKS_PER_PROCESSOR;
  return static_cast<unsigned>(units < most ? units : most);
}

template <int FAMILY>
void launch_encode(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue) {
  const auto kernel = encode_kernel<FAMILY>;
  const Values values{x.data, x.input};
  COMMPRESS_LAUNCH(kernel, grid_of(job.units, queue), BLOCK_THREADS, static_cast<cudaStream_t>(queue.stream), job,
                   values, gain, out, plain);
}

template <int FAMILY>
void launch_decode(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue) {
  const auto kernel = decode_kernel<FAMILY>;
  COMMPRESS_LAUNCH(kernel, grid_of(job.units, queue), BLOCK_THREADS, static_cast<cudaStream_t>(queue.stream), job,
                   sources, out, delivery, report, plain);
}

}  // namespace cuda
}  // namespace commpress
