// The fixed-rate quantisers and the casts: schemas, argument checks, dispatch.
#include "kernels/kernels.h"
#include "ops_common.h"

namespace {

using namespace commpress;

Payload payload_of(int64_t family, int64_t rate, bool centroid, int64_t seed, int64_t step, int64_t sender_phase,
                   int64_t tensor, int64_t offset, int64_t numel) {
  STD_TORCH_CHECK(family >= CAST_FP16 && family <= HADAMARD_LLOYD, "commpress: unknown codec family ", family);
  STD_TORCH_CHECK(family <= CAST_BF16 || (rate >= 1 && rate <= 8 * RATE_ONE), "commpress: rate must be in (0, 8] bits");
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  return {{static_cast<int32_t>(family), static_cast<int32_t>(rate), centroid},
          key_of(seed, step, sender_phase, tensor),
          offset,
          numel};
}

void check(const Tensor& values, const Tensor& payload, const Payload& p) {
  check_kinds(values, payload);
  const int64_t nbytes = payload_nbytes(p.codec, p.offset, p.numel);
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", p.numel, " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
}

void encode_op(Tensor x, Tensor payload, int64_t family, int64_t rate, bool centroid, int64_t seed, int64_t step,
               int64_t sender_phase, int64_t tensor, int64_t offset, double gain, int64_t isa) {
  const Payload p = payload_of(family, rate, centroid, seed, step, sender_phase, tensor, offset, x.numel());
  check(x, payload, p);
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for_pieces(p, torch_parallel, [&](const Payload& part, int64_t first, int64_t byte) {
    encode(part, from + first, static_cast<float>(gain), to + byte, path);
  });
}

// First invalid block, or -1 when the payload was decoded. Nothing is written for an invalid one.
int64_t decode_op(Tensor payload, Tensor out, int64_t family, int64_t rate, bool centroid, int64_t seed, int64_t step,
                  int64_t sender_phase, int64_t tensor, int64_t offset, bool accumulate, double gain, double beta,
                  int64_t isa) {
  const Payload p = payload_of(family, rate, centroid, seed, step, sender_phase, tensor, offset, out.numel());
  check(out, payload, p);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  const int64_t invalid = inspect(p, from).invalid_block;
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_pieces(p, torch_parallel, [&](const Payload& part, int64_t first, int64_t byte) {
    decode(part, from + byte, to + first, accumulate, static_cast<float>(gain), static_cast<float>(beta), path);
  });
  return -1;
}

// The owner's part of an all-reduce in one pass over memory: values = beta * values + the decoded payloads, in their
// order; encode that to `out`; decode it again in place. Returns -1, or -2 if the result is not finite, or the position
// of an invalid payload, and then values and `out` are unfinished.
int64_t reduce_op(std::vector<Tensor> payloads, std::vector<int64_t> sender_phases, Tensor values, Tensor out,
                  int64_t family, int64_t rate, bool centroid, int64_t seed, int64_t step, int64_t sender_phase,
                  int64_t tensor, int64_t offset, double beta, int64_t isa) {
  const Payload result = payload_of(family, rate, centroid, seed, step, sender_phase, tensor, offset, values.numel());
  check(values, out, result);
  const Senders senders = senders_of(payloads, sender_phases, result.key);
  for (const Tensor& payload : payloads) check(values, payload, result);
  return code_of(reduce_payloads(result, senders.keys, senders.from, values.mutable_data_ptr<float>(),
                                 static_cast<float>(beta), out.mutable_data_ptr<uint8_t>(), isa_of(isa),
                                 torch_parallel));
}

// values = the decoded payloads, added in their order, in one pass over memory. Returns as `reduce`.
int64_t decode_sum_op(std::vector<Tensor> payloads, std::vector<int64_t> sender_phases, Tensor values, int64_t family,
                      int64_t rate, bool centroid, int64_t seed, int64_t step, int64_t tensor, int64_t offset,
                      int64_t isa) {
  const Payload sum = payload_of(family, rate, centroid, seed, step, 0, tensor, offset, values.numel());
  const Senders senders = senders_of(payloads, sender_phases, sum.key);
  for (const Tensor& payload : payloads) check(values, payload, sum);
  return code_of(
      sum_payloads(sum, senders.keys, senders.from, values.mutable_data_ptr<float>(), isa_of(isa), torch_parallel));
}

int64_t payload_nbytes_op(int64_t family, int64_t rate, bool centroid, int64_t offset, int64_t numel) {
  const Payload p = payload_of(family, rate, centroid, 0, 0, 0, 0, offset, numel);
  return payload_nbytes(p.codec, p.offset, p.numel);
}

// The same at offset 0 for many pairs of a rate and a number of coordinates.
void payload_nbytes_each_op(int64_t family, bool centroid, Tensor rates, Tensor numels, Tensor out) {
  for (const Tensor& one : {rates, numels, out})
    STD_TORCH_CHECK(
        one.scalar_type() == ScalarType::Long && one.dim() == 1 && one.is_contiguous() && one.numel() == rates.numel(),
        "commpress: rates, numbers of coordinates and sizes must be contiguous 1-D int64 tensors of one length");
  const int64_t *const rate = rates.const_data_ptr<int64_t>(), *const numel = numels.const_data_ptr<int64_t>();
  int64_t* const nbytes = out.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < rates.numel(); ++i) nbytes[i] = payload_nbytes_op(family, rate[i], centroid, 0, numel[i]);
}

bool isa_available_op(int64_t isa) { return isa >= 0 && isa <= 2 && isa_available(static_cast<Isa>(isa)); }

}  // namespace

STABLE_TORCH_LIBRARY(commpress, m) {
  m.def(
      "encode(Tensor x, Tensor(a!) payload, int family, int rate, bool centroid, int seed, int step, int sender_phase, "
      "int tensor, int offset, float gain, int isa) -> ()");
  m.def(
      "decode(Tensor payload, Tensor(a!) out, int family, int rate, bool centroid, int seed, int step, int "
      "sender_phase, int tensor, int offset, bool accumulate, float gain, float beta, int isa) -> int");
  m.def(
      "reduce(Tensor[] payloads, int[] sender_phases, Tensor(a!) values, Tensor(b!) out, int family, int rate, bool "
      "centroid, int seed, int step, int sender_phase, int tensor, int offset, "
      "float beta, int isa) -> int");
  m.def(
      "decode_sum(Tensor[] payloads, int[] sender_phases, Tensor(a!) values, int family, int rate, bool centroid, int "
      "seed, int step, int tensor, int offset, int isa) -> int");
  m.def("payload_nbytes(int family, int rate, bool centroid, int offset, int numel) -> int");
  m.def("payload_nbytes_each(int family, bool centroid, Tensor rates, Tensor numels, Tensor(a!) out) -> ()");
  m.def("isa_available(int isa) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("encode", TORCH_BOX(&encode_op));
  m.impl("decode", TORCH_BOX(&decode_op));
  m.impl("reduce", TORCH_BOX(&reduce_op));
  m.impl("decode_sum", TORCH_BOX(&decode_sum_op));
  m.impl("payload_nbytes_each", TORCH_BOX(&payload_nbytes_each_op));
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) {
  m.impl("payload_nbytes", TORCH_BOX(&payload_nbytes_op));
  m.impl("isa_available", TORCH_BOX(&isa_available_op));
}
