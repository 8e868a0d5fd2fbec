// `modulo`: schemas, argument checks, dispatch.
#include "kernels/modulo_kernels.h"
#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t GRAIN = 32;  // blocks: about 50 us of work

Modulo modulo_of(int64_t bits, double step, double center, double shrink) {
  STD_TORCH_CHECK(bits >= 1 && bits <= MOST_CODE_BITS, "commpress: codes have 1 to ", MOST_CODE_BITS, " bits");
  // With them every intermediate integer stays below 2^31.
  STD_TORCH_CHECK(step >= 1e-6 && step <= 1e6 && center >= 0 && center <= 1e6 && shrink >= 0 && shrink <= 1,
                  "commpress: a constant of the modulo code is out of range");
  return {static_cast<int32_t>(bits), static_cast<float>(step), static_cast<float>(center), static_cast<float>(shrink)};
}

void check(const Tensor& values, const Tensor& payload, const Modulo& m, int64_t offset) {
  check_kinds(values, payload);
  const int64_t nbytes = payload_nbytes(m, values.numel());
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", values.numel(), " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
}

// Calls piece(first coordinate, how many) for parts of [0, numel) that begin at multiples of BLOCK.
template <class F>
void for_parts(int64_t numel, const F& piece) {
  torch::stable::parallel_for(0, (numel + BLOCK - 1) / BLOCK, GRAIN, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * BLOCK, last = end * BLOCK < numel ? end * BLOCK : numel;
    piece(first, last - first);
  });
}

void encode_op(Tensor x, Tensor payload, int64_t bits, double step_over_rms, double center, double shrink, int64_t seed,
               int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset, double gain, int64_t isa) {
  const Modulo m = modulo_of(bits, step_over_rms, center, shrink);
  check(x, payload, m, offset);
  const Isa path = isa_of(isa);
  const Key key = key_of(seed, step, sender_phase, tensor);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for_parts(x.numel(), [&](int64_t first, int64_t count) {
    modulo_encode(m, key, offset + first, from + first, count, static_cast<float>(gain), to + payload_nbytes(m, first),
                  path);
  });
}

// -1, or the first invalid block; nothing is written then.
int64_t decode_op(Tensor payload, Tensor side, Tensor out, int64_t bits, double step_over_rms, double center,
                  double shrink, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset,
                  bool accumulate, double gain, double beta, int64_t isa) {
  const Modulo m = modulo_of(bits, step_over_rms, center, shrink);
  check(out, payload, m, offset);
  check_kinds(side, payload);
  STD_TORCH_CHECK(side.numel() == out.numel(), "commpress: side information of ", side.numel(), " coordinates for ",
                  out.numel());
  const Isa path = isa_of(isa);
  const Key key = key_of(seed, step, sender_phase, tensor);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  const float* const with = side.const_data_ptr<float>();
  const int64_t invalid = invalid_block(m, from, out.numel());
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_parts(out.numel(), [&](int64_t first, int64_t count) {
    modulo_decode(m, key, offset + first, from + payload_nbytes(m, first), with + first, count, to + first, accumulate,
                  static_cast<float>(gain), static_cast<float>(beta), path);
  });
  return -1;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "modulo_encode(Tensor x, Tensor(a!) payload, int bits, float step_over_rms, float center, float shrink, int "
      "seed, int step, int sender_phase, int tensor, int offset, float gain, int isa) -> ()");
  m.def(
      "modulo_decode(Tensor payload, Tensor side, Tensor(a!) out, int bits, float step_over_rms, float center, float "
      "shrink, int seed, int step, int sender_phase, int tensor, int offset, bool accumulate, float gain, float beta, "
      "int isa) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("modulo_encode", TORCH_BOX(&encode_op));
  m.impl("modulo_decode", TORCH_BOX(&decode_op));
}
