// The bitshift trellis: schemas, argument checks, dispatch.
#include "kernels/bitshift_codec.h"
#include "kernels/cuda_job.h"
#include "ops_common.h"

namespace {

using namespace commpress;

Trellis trellis_of(int64_t bits, int64_t values, int64_t length, bool rotated, bool centroid) {
  const TrellisRate* found = nullptr;
  for (const TrellisRate& rate : TRELLIS_RATES)
    if (rate.bits == bits && rate.values == values) found = &rate;
  STD_TORCH_CHECK(found != nullptr, "commpress: no bitshift trellis has ", bits, " bits for ", values, " values");
  STD_TORCH_CHECK(length >= TRELLIS_SHORTEST && length <= TRELLIS_LONGEST && length >= 2 * bits + 4,
                  "commpress: a bitshift trellis of ", bits, " bits cannot have length ", length);
  return {found->bits, found->values, static_cast<int32_t>(length), rotated, centroid, found->spread};
}

TrellisPayload payload_of(const Trellis& trellis, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor,
                          int64_t offset, int64_t numel) {
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  return {trellis, key_of(seed, step, sender_phase, tensor), offset, numel};
}

void check(const Tensor& values, const Tensor& payload, const TrellisPayload& p) {
  check_kinds(values, payload);
  const int64_t nbytes = trellis_nbytes(p.trellis, p.offset, p.numel);
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", p.numel, " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
}

// Calls f(sub-payload, first coordinate, first byte) for parts of whole spans, on torch's threads.
template <class F>
void for_spans(const TrellisPayload& payload, const F& f) {
  const int64_t span = trellis_span(payload.trellis);
  const auto part = [&](int64_t begin, int64_t end) {
    const int64_t first = begin * span, last = end * span < payload.numel ? end * span : payload.numel;
    TrellisPayload some = payload;
    some.offset += first;
    some.numel = last - first;
    f(some, first, trellis_nbytes(payload.trellis, payload.offset, first));
  };
  torch_parallel((payload.numel + span - 1) / span, 1,
                 [](void* raw, int64_t begin, int64_t end) { (*static_cast<decltype(part)*>(raw))(begin, end); },
                 const_cast<void*>(static_cast<const void*>(&part)));
}

void encode_op(Tensor x, Tensor payload, int64_t bits, int64_t values, int64_t length, bool rotated, bool centroid,
               int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset, double gain,
               int64_t isa) {
  const TrellisPayload p = payload_of(trellis_of(bits, values, length, rotated, centroid), seed, step, sender_phase,
                                      tensor, offset, x.numel());
  check(x, payload, p);
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for_spans(p, [&](const TrellisPayload& part, int64_t first, int64_t byte) {
    encode(part, from + first, static_cast<float>(gain), to + byte, path);
  });
}

// First invalid block, or -1 when the payload was decoded. Nothing is written for an invalid one.
int64_t decode_op(Tensor payload, Tensor out, int64_t bits, int64_t values, int64_t length, bool rotated, bool centroid,
                  int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset, bool accumulate,
                  double gain, double beta, int64_t isa) {
  const TrellisPayload p = payload_of(trellis_of(bits, values, length, rotated, centroid), seed, step, sender_phase,
                                      tensor, offset, out.numel());
  check(out, payload, p);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  const int64_t invalid = inspect(p, from).invalid_block;
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_spans(p, [&](const TrellisPayload& part, int64_t first, int64_t byte) {
    decode(part, from + byte, to + first, accumulate, static_cast<float>(gain), static_cast<float>(beta), path);
  });
  return -1;
}

int64_t nbytes_op(int64_t bits, int64_t values, int64_t length, bool rotated, bool centroid, int64_t offset,
                  int64_t numel) {
  const TrellisPayload p = payload_of(trellis_of(bits, values, length, rotated, centroid), 0, 0, 0, 0, offset, numel);
  return trellis_nbytes(p.trellis, p.offset, p.numel);
}

void codebook_op(Tensor levels, int64_t bits, int64_t values, int64_t length) {
  const Trellis t = trellis_of(bits, values, length, false, false);
  const int64_t count = codebook_size(t);
  STD_TORCH_CHECK(levels.scalar_type() == ScalarType::Float && levels.dim() == 1 && levels.is_contiguous() &&
                      levels.numel() == count,
                  "commpress: a codebook must be a contiguous 1-D float32 tensor of ", count, " levels");
  memcpy(levels.mutable_data_ptr<float>(), codebook_of(t).levels.get(), static_cast<size_t>(count) * 4);
}

int64_t scratch_words_op(int64_t bits, int64_t values, int64_t length) {
  return cuda::scratch_words(trellis_of(bits, values, length, false, false));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "bitshift_encode(Tensor x, Tensor(a!) payload, int bits, int values, int length, bool rotated, bool centroid, "
      "int seed, int step, int sender_phase, int tensor, int offset, float gain, int isa) -> ()");
  m.def(
      "bitshift_decode(Tensor payload, Tensor(a!) out, int bits, int values, int length, bool rotated, bool centroid, "
      "int seed, int step, int sender_phase, int tensor, int offset, bool accumulate, float gain, float beta, int isa) "
      "-> int");
  m.def("bitshift_nbytes(int bits, int values, int length, bool rotated, bool centroid, int offset, int numel) -> int");
  m.def("bitshift_scratch_words(int bits, int values, int length) -> int");
  m.def("bitshift_codebook(Tensor(a!) levels, int bits, int values, int length) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("bitshift_encode", TORCH_BOX(&encode_op));
  m.impl("bitshift_decode", TORCH_BOX(&decode_op));
  m.impl("bitshift_codebook", TORCH_BOX(&codebook_op));
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) {
  m.impl("bitshift_nbytes", TORCH_BOX(&nbytes_op));
  m.impl("bitshift_scratch_words", TORCH_BOX(&scratch_words_op));
}
