#define COMMPRESS_ISA path_plain
#include "trellis_lanes_plain.h"

namespace commpress {
namespace COMMPRESS_ISA {

struct Table16 {
  const float* of = nullptr;
  Table16() = default;
  explicit Table16(const float* p) : of(p) {}
  Floats operator[](const Ints& i) const { return look_up(of, i); }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress

// The lanes and the table come first.
#include "ectcq_loops.h"

namespace commpress {
namespace COMMPRESS_ISA {

static void ectcq_search(const EctcqBlock* blocks, int64_t count, float gain, float inverse) {
  ectcq_search_with(ectcq_trace, blocks, count, gain, inverse);
}

extern const EctcqKernels ECTCQ_KERNELS;
const EctcqKernels ECTCQ_KERNELS = {ectcq_search, ectcq_count, ectcq_encode_block, ectcq_decode_block};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
