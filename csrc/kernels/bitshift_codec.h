// The bitshift codecs as functions on raw pointers, like kernels.h; and their codebooks.
#pragma once
#include <cstdlib>
#include <memory>

#include "bitshift.h"
#include "kernels.h"

namespace commpress {

struct TrellisPayload {
  Trellis trellis;
  Key key;
  int64_t offset;  // index of the first coordinate, a multiple of BLOCK
  int64_t numel;
};

// Floats on a cache line's boundary.
struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Aligned = std::unique_ptr<float, Free>;
Aligned aligned_floats(int64_t count);  // throws std::bad_alloc

// The codebook of a rate and length. Made once in a process, at the first use.
struct Codebook {
  // [row][value]: what decodes.
  Aligned levels;
  // [a / 16][newest bits but the top one][oldest bits but the lowest][value, then half the row's energy][a % 16], where
  // the row is (newest, a, oldest) in binary: the order in which the search goes over them.
  Aligned search;
};
const Codebook& codebook_of(const Trellis& trellis);

// Writes trellis_nbytes() bytes for gain * x.
void encode(const TrellisPayload& payload, const float* x, float gain, uint8_t* out, Isa isa);
Findings inspect(const TrellisPayload& payload, const uint8_t* in);
void decode(const TrellisPayload& payload, const uint8_t* in, float* out, bool accumulate, float gain, float beta,
            Isa isa);

}  // namespace commpress
