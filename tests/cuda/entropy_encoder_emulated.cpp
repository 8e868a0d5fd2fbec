// The encoder of the entropy-coded quantisers, run by the emulator in place of a GPU.
#include "cuda_encode_entropy.h"

namespace commpress {
namespace cuda {

int encode_entropy(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                   const Queue& queue) {
  launch_encode_entropy(job, x, gain, out, scratch, queue);
  return 0;
}

}  // namespace cuda
}  // namespace commpress
