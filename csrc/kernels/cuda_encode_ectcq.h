// Encoding of a segment with the trellis: rate control, search, streams and header.
#pragma once
#include "cuda_entropy_encoder.h"

namespace commpress {
namespace cuda {

// By all threads, in step before and behind. False: there is not enough room, and nothing was written that counts.
COMMPRESS_SELDOM bool ectcq_encode(EncoderSpace& s, const EncoderMemory& m, uint8_t* out) {
  (void)s;
  (void)m;
  (void)out;
  return false;
}

}  // namespace cuda
}  // namespace commpress
