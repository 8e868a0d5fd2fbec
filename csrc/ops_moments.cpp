// The running mean square of every coordinate, which noise shaping follows: schema, argument checks, the loop.
#include <cstring>

#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t GRAIN = 1 << 15;  // coordinates: some 10 us of work

// held += (x^2 - held) * share, each operation rounded by itself: the same bits everywhere.
void follow_squares_op(Tensor held, Tensor x, double share) {
  for (const Tensor& values : {held, x})
    STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                    "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(held.numel() == x.numel(), "commpress: ", held.numel(), " mean squares for ", x.numel(),
                  " coordinates");
  float* const to = held.mutable_data_ptr<float>();
  const float *const from = x.const_data_ptr<float>(), part = static_cast<float>(share);
  torch::stable::parallel_for(0, held.numel(), GRAIN, [&](int64_t begin, int64_t end) {
    constexpr int64_t ROW =
        8;  // of a fixed length, and by way of a buffer that overlaps neither: compilers make it vector code
    float row[ROW];
    for (; begin + ROW <= end; begin += ROW) {
      for (int64_t i = 0; i < ROW; ++i) {
        const float x = from[begin + i], h = to[begin + i];
        row[i] = h + (x * x - h) * part;
      }
      memcpy(to + begin, row, sizeof row);
    }
    for (; begin < end; ++begin) to[begin] += (from[begin] * from[begin] - to[begin]) * part;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) { m.def("follow_squares(Tensor(a!) held, Tensor x, float share) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) { m.impl("follow_squares", TORCH_BOX(&follow_squares_op)); }
