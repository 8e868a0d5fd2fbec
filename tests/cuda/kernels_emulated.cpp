// The kernels' own source, run by the emulator in place of a GPU.
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

int encode_uniform(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue) {
  launch_encode<UNIFORM>(job, x, gain, out, plain, queue);
  return 0;
}

int encode_rotated(const Job& job, const Gradient& x, float gain, uint8_t* out, bool plain, const Queue& queue) {
  launch_encode<HADAMARD_LLOYD>(job, x, gain, out, plain, queue);
  return 0;
}

int decode_uniform(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue) {
  launch_decode<UNIFORM>(job, sources, out, delivery, report, plain, queue);
  return 0;
}

int decode_rotated(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   bool plain, const Queue& queue) {
  launch_decode<HADAMARD_LLOYD>(job, sources, out, delivery, report, plain, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
