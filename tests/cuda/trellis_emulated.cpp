// The kernels of the bitshift trellis, run by the emulator in place of a GPU.
#include "cuda_decode_trellis.h"
#include "cuda_encode_trellis.h"

namespace commpress {
namespace cuda {

int encode_trellis(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue) {
  launch_encode_trellis(job, x, gain, out, scratch, queue);
  return 0;
}

int decode_trellis(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                   const Queue& queue) {
  launch_decode_trellis<false>(job, sources, out, delivery, report, queue);
  return 0;
}

int decode_trellis_careful(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                           const Queue& queue) {
  launch_decode_trellis<true>(job, sources, out, delivery, report, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
