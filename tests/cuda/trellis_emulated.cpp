// The kernels of the bitshift trellis, run by the emulator in place of a GPU.
#include "trellis_emulated.h"

#include <algorithm>

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

void best_nodes(const float* costs, int digits, int32_t* found) {
  simt::launch(1, TRELLIS_THREADS, [=] {
    COMMPRESS_SHARED(TrellisEncoderSpace, shared, 1);
    TrellisEncoderSpace& s = shared[0];
    if (thread() == 0) {
      s.rate = packed_trellis(1, 1, digits + 1, false);
      s.part = {};
      std::copy(costs, costs + (1 << digits), s.search);
    }
    __syncthreads();
    found[thread()] = Search(s, Memory{}).best_node();
  });
}

}  // namespace cuda
}  // namespace commpress
