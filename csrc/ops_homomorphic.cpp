// `homomorphic`: schemas, argument checks, dispatch.
#include "kernels/homomorphic_kernels.h"
#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t GRAIN = 32;  // blocks: about 50 us of work

Grid grid_of(int64_t bits, int64_t block, bool subtract) {
  STD_TORCH_CHECK(bits >= 1 && bits <= MOST_CODE_BITS, "commpress: codes have 1 to ", MOST_CODE_BITS, " bits");
  STD_TORCH_CHECK(block >= GROUP && block <= BLOCK && (block & (block - 1)) == 0,
                  "commpress: a scale's block is a power of two from 512 to 4096, got ", block);
  return {static_cast<int32_t>(bits), static_cast<int32_t>(block), subtract};
}

void check_bytes(const Tensor& bytes, int64_t nbytes, const char* what) {
  STD_TORCH_CHECK(
      bytes.scalar_type() == ScalarType::Byte && bytes.dim() == 1 && bytes.is_contiguous() && bytes.numel() == nbytes,
      "commpress: ", what, " must be a contiguous 1-D uint8 tensor of ", nbytes, " bytes, got ", bytes.numel());
}

void check_values(const Tensor& values, int64_t offset) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                  "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
}

void check_workers(int64_t bits, int64_t workers) {
  STD_TORCH_CHECK(workers >= 1 && workers <= MOST_WORKERS && sum_width(static_cast<int>(bits), workers) <= MOST_WIDTH,
                  "commpress: sums of ", workers, " codes of ", bits, " bits have more than ", MOST_WIDTH, " bits");
}

// Calls piece(first coordinate, how many) for parts of [0, numel) that begin at multiples of BLOCK.
template <class F>
void for_parts(int64_t numel, const F& piece) {
  torch::stable::parallel_for(0, (numel + BLOCK - 1) / BLOCK, GRAIN, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * BLOCK, last = end * BLOCK < numel ? end * BLOCK : numel;
    piece(first, last - first);
  });
}

void scales_op(Tensor x, Tensor scales, int64_t block, int64_t isa) {
  const Grid g = grid_of(1, block, false);
  check_values(x, 0);
  check_bytes(scales, scales_nbytes(g, x.numel()), "scales");
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = scales.mutable_data_ptr<uint8_t>();
  for_parts(x.numel(), [&](int64_t first, int64_t count) {
    grid_scales(g, from + first, count, to + scales_nbytes(g, first), path);
  });
}

void encode_op(Tensor x, Tensor scales, Tensor codes, int64_t bits, int64_t block, int64_t worker, int64_t seed,
               int64_t step, int64_t phase, int64_t tensor, int64_t offset, int64_t isa) {
  const Grid g = grid_of(bits, block, false);
  check_values(x, offset);
  check_bytes(scales, scales_nbytes(g, x.numel()), "scales");
  check_bytes(codes, integers_nbytes(x.numel(), g.bits), "codes");
  const Isa path = isa_of(isa);
  const Key key = key_of(seed, step, phase, tensor);
  const float* const from = x.const_data_ptr<float>();
  const uint8_t* const with = scales.const_data_ptr<uint8_t>();
  uint8_t* const to = codes.mutable_data_ptr<uint8_t>();
  for_parts(x.numel(), [&](int64_t first, int64_t count) {
    grid_encode(g, key, static_cast<uint32_t>(worker), offset + first, from + first, count,
                with + scales_nbytes(g, first), to + integers_nbytes(first, g.bits), path);
  });
}

void add_op(std::vector<Tensor> codes, Tensor sums, int64_t bits, int64_t numel, int64_t isa) {
  const Grid g = grid_of(bits, GROUP, false);
  const int64_t workers = static_cast<int64_t>(codes.size());
  check_workers(bits, workers);
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  const int width = sum_width(g.bits, workers);
  check_bytes(sums, integers_nbytes(numel, width), "sums");
  std::vector<const uint8_t*> from;
  for (const Tensor& one : codes) {
    check_bytes(one, integers_nbytes(numel, g.bits), "codes");
    from.push_back(one.const_data_ptr<uint8_t>());
  }
  const Isa path = isa_of(isa);
  uint8_t* const to = sums.mutable_data_ptr<uint8_t>();
  for_parts(numel, [&](int64_t first, int64_t count) {
    std::vector<const uint8_t*> here;
    for (const uint8_t* one : from) here.push_back(one + integers_nbytes(first, g.bits));
    grid_add(g.bits, here.data(), workers, count, to + integers_nbytes(first, width), path);
  });
}

// -1, or the first invalid scale; nothing is written then.
int64_t decode_op(Tensor codes, Tensor scales, Tensor out, int64_t bits, int64_t block, bool subtract, int64_t worker,
                  int64_t workers, int64_t seed, int64_t step, int64_t phase, int64_t tensor, int64_t offset,
                  bool accumulate, double gain, double beta, int64_t isa) {
  const Grid g = grid_of(bits, block, subtract);
  check_workers(bits, workers);
  check_values(out, offset);
  const int width = sum_width(g.bits, workers);
  check_bytes(scales, scales_nbytes(g, out.numel()), "scales");
  check_bytes(codes, integers_nbytes(out.numel(), width), "codes");
  const Isa path = isa_of(isa);
  const Key key = key_of(seed, step, phase, tensor);
  const uint8_t *const with = scales.const_data_ptr<uint8_t>(), *const from = codes.const_data_ptr<uint8_t>();
  const int64_t invalid = invalid_scale(with, scales.numel() / 2);
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_parts(out.numel(), [&](int64_t first, int64_t count) {
    grid_decode(g, key, static_cast<uint32_t>(worker), workers, offset + first, from + integers_nbytes(first, width),
                with + scales_nbytes(g, first), count, to + first, accumulate, static_cast<float>(gain),
                static_cast<float>(beta), path);
  });
  return -1;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def("homomorphic_scales(Tensor x, Tensor(a!) scales, int block, int isa) -> ()");
  m.def(
      "homomorphic_encode(Tensor x, Tensor scales, Tensor(a!) codes, int bits, int block, int worker, int seed, int "
      "step, int phase, int tensor, int offset, int isa) -> ()");
  m.def("homomorphic_add(Tensor[] codes, Tensor(a!) sums, int bits, int numel, int isa) -> ()");
  m.def(
      "homomorphic_decode(Tensor codes, Tensor scales, Tensor(a!) out, int bits, int block, bool subtract, int worker, "
      "int workers, int seed, int step, int phase, int tensor, int offset, bool accumulate, float gain, float beta, "
      "int isa) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("homomorphic_scales", TORCH_BOX(&scales_op));
  m.impl("homomorphic_encode", TORCH_BOX(&encode_op));
  m.impl("homomorphic_add", TORCH_BOX(&add_op));
  m.impl("homomorphic_decode", TORCH_BOX(&decode_op));
}
