// Trellis-coded quantisation: schemas, argument checks, dispatch.
#include "kernels/tcq.h"
#include "ops_common.h"

namespace {

using namespace commpress;

int64_t blocks_of(const Tensor& values, const Tensor& indices, int64_t block) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                  "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Short && indices.dim() == 1 && indices.is_contiguous() &&
                      indices.numel() == values.numel(),
                  "commpress: indices must be a contiguous 1-D int16 tensor of as many elements as there are values");
  STD_TORCH_CHECK(block >= 1 && values.numel() % block == 0, "commpress: values must be whole blocks of ", block);
  return values.numel() / block;
}

const float* table_of(const Tensor& table, const char* name) {
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float && table.is_contiguous() && table.numel() == 2 * TCQ_INDICES,
                  "commpress: ", name, " must be a contiguous float32 tensor of 2 x ", TCQ_INDICES);
  return table.const_data_ptr<float>();
}

template <class F>
void for_blocks(int64_t blocks, const F& f) {
  torch_parallel((blocks + 15) / 16, 1,
                 [](void* raw, int64_t begin, int64_t end) { (*static_cast<const F*>(raw))(begin * 16, end * 16); },
                 const_cast<void*>(static_cast<const void*>(&f)));
}

void quantise_op(Tensor values, Tensor indices, int64_t block, Tensor levels, Tensor prices, int64_t isa) {
  const int64_t blocks = blocks_of(values, indices, block);
  const TcqTables tables{table_of(levels, "levels"), table_of(prices, "prices")};
  const Isa path = isa_of(isa);
  const float* const from = values.const_data_ptr<float>();
  int16_t* const to = indices.mutable_data_ptr<int16_t>();
  for_blocks(blocks, [&](int64_t begin, int64_t end) {
    tcq_quantise(from + begin * block, (end < blocks ? end : blocks) - begin, block, tables, to + begin * block, path);
  });
}

void dequantise_op(Tensor indices, Tensor values, int64_t block, Tensor levels) {
  const int64_t blocks = blocks_of(values, indices, block);
  const float* const table = table_of(levels, "levels");
  const int16_t* const from = indices.const_data_ptr<int16_t>();
  float* const to = values.mutable_data_ptr<float>();
  for_blocks(blocks, [&](int64_t begin, int64_t end) {
    tcq_dequantise(from + begin * block, (end < blocks ? end : blocks) - begin, block, table, to + begin * block);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def("tcq_quantise(Tensor values, Tensor(a!) indices, int block, Tensor levels, Tensor prices, int isa) -> ()");
  m.def("tcq_dequantise(Tensor indices, Tensor(a!) values, int block, Tensor levels) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("tcq_quantise", TORCH_BOX(&quantise_op));
  m.impl("tcq_dequantise", TORCH_BOX(&dequantise_op));
}
