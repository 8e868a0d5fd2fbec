// The number formats of formats.h on the device: what encoder and decoder share. A thread has eight rows of four lanes
// of a block of up to 4096 coordinates, as in cuda_groups.h.
#pragma once
#include "cuda_uniform.h"
#include "formats.h"

namespace commpress {
namespace cuda {

// A format, and what follows from it alone.
struct Shape {
  Format format;
  FloatForm form;
  int bits, shift, kept, scales, scales_nbytes;  // shift: rows of a scale block, log2; kept: the same up to 8 rows

  COMMPRESS_DEVICE Shape(const Format& f, int n)
      : format(f),
        form(f.scheme == FLOAT || f.scheme == NVFP4 ? float_form(f) : FloatForm{}),
        bits(f.trits ? 8 : code_bits(f)),
        shift(f.block ? bit_length(static_cast<uint32_t>(f.block) / 16) - 1 : 8),
        kept(smaller(shift, 3)),
        scales((n + (16 << shift) - 1) >> (shift + 4)),
        scales_nbytes(static_cast<int>(commpress::scales_nbytes(f, n))) {}
  COMMPRESS_DEVICE bool scaled() const { return format.block != 0; }
};

COMMPRESS_DEVICE int first_row(const Spot& at) { return 32 * at.group + 8 * at.chunk; }

constexpr int FORMAT_ENCODERS = 4, FORMAT_DECODERS = 4;  // blocks of threads that are resident at least

}  // namespace cuda
}  // namespace commpress
