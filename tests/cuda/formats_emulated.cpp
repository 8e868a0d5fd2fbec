// The kernels of number formats, run by the emulator in place of a GPU.
#include "cuda_decode_formats.h"
#include "cuda_encode_formats.h"

namespace commpress {
namespace cuda {

int encode_formats(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue) {
  launch_encode_formats(job, x, gain, out, queue);
  return 0;
}

int decode_formats(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue) {
  launch_decode_formats(job, sources, out, delivery, report, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
