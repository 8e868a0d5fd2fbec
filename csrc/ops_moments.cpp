// What the hooks do to every coordinate besides coding it: running second moments (which noise shaping follows), sums
// over layers (which statistics are made of), multiples of the previous mean (prediction). Schemas, argument checks,
// loops.
#include <cstring>

#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t GRAIN = 1 << 15;  // coordinates: some 10 us of work
constexpr int64_t ROW = 8;  // coordinates at a time: a fixed length, and by way of a buffer that overlaps nothing, so
                            // that compilers make it vector code

void check_pair(const Tensor& first, const Tensor& second) {
  for (const Tensor& values : {first, second})
    STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                    "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(first.numel() == second.numel(), "commpress: ", first.numel(), " values with ", second.numel());
}

// held += (x^2 - held) * share, each operation rounded by itself: the same bits everywhere.
void follow_squares_op(Tensor held, Tensor x, double share) {
  check_pair(held, x);
  float* const to = held.mutable_data_ptr<float>();
  const float *const from = x.const_data_ptr<float>(), part = static_cast<float>(share);
  torch::stable::parallel_for(0, held.numel(), GRAIN, [&](int64_t begin, int64_t end) {
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

// values += previous * factor, both operations rounded by themselves; with `keep` the sum is the next previous.
void add_multiple_op(Tensor values, Tensor previous, double factor, bool keep) {
  check_pair(values, previous);
  float* const to = values.mutable_data_ptr<float>();
  float* const held = previous.mutable_data_ptr<float>();
  const float part = static_cast<float>(factor);
  torch::stable::parallel_for(0, values.numel(), GRAIN, [&](int64_t begin, int64_t end) {
    float row[ROW];
    for (; begin + ROW <= end; begin += ROW) {
      for (int64_t i = 0; i < ROW; ++i) row[i] = to[begin + i] + held[begin + i] * part;
      memcpy(to + begin, row, sizeof row);
      if (keep) memcpy(held + begin, row, sizeof row);
    }
    for (; begin < end; ++begin) {
      to[begin] += held[begin] * part;
      if (keep) held[begin] = to[begin];
    }
  });
}

template <class Real>
void add_segments(const Tensor& x, const Tensor& y, const Tensor& stops, const Tensor& sums, Isa isa) {
  const Real *const from = x.const_data_ptr<Real>(), *const other = y.const_data_ptr<Real>();
  const int64_t* const ends = stops.const_data_ptr<int64_t>();
  double* const to = sums.mutable_data_ptr<double>();
  for (int64_t i = 0, start = 0; i < stops.numel(); start = ends[i++])
    add_products(from + start, other + start, ends[i] - start, to + 3 * i, isa);
}

void segment_products_op(Tensor x, Tensor y, Tensor stops, Tensor sums, int64_t isa) {
  const ScalarType dtype = x.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double,
                  "commpress: products of float32 or float64 values only");
  for (const Tensor& values : {x, y})
    STD_TORCH_CHECK(
        values.scalar_type() == dtype && values.dim() == 1 && values.is_contiguous() && values.numel() == x.numel(),
        "commpress: values must be contiguous 1-D tensors of one dtype and size");
  STD_TORCH_CHECK(stops.scalar_type() == ScalarType::Long && stops.dim() == 1 && stops.is_contiguous(),
                  "commpress: stops must be a contiguous 1-D int64 tensor");
  STD_TORCH_CHECK(sums.scalar_type() == ScalarType::Double && sums.dim() == 2 && sums.is_contiguous() &&
                      sums.size(0) == stops.numel() && sums.size(1) == 3,
                  "commpress: sums must be a contiguous float64 tensor of shape (", stops.numel(), ", 3)");
  int64_t start = 0;
  for (int64_t i = 0; i < stops.numel(); ++i) {
    const int64_t stop = stops.const_data_ptr<int64_t>()[i];
    STD_TORCH_CHECK(start <= stop && stop <= x.numel(), "commpress: stops must ascend and lie within ", x.numel(),
                    " values, got ", stop, " after ", start);
    start = stop;
  }
  if (dtype == ScalarType::Float)
    add_segments<float>(x, y, stops, sums, isa_of(isa));
  else
    add_segments<double>(x, y, stops, sums, isa_of(isa));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def("follow_squares(Tensor(a!) held, Tensor x, float share) -> ()");
  m.def("add_multiple(Tensor(a!) values, Tensor(b!) previous, float factor, bool keep) -> ()");
  m.def("segment_products(Tensor x, Tensor y, Tensor stops, Tensor(a!) sums, int isa) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("follow_squares", TORCH_BOX(&follow_squares_op));
  m.impl("add_multiple", TORCH_BOX(&add_multiple_op));
  m.impl("segment_products", TORCH_BOX(&segment_products_op));
}
