// The sparsifiers: schemas, argument checks, dispatch.
#include "kernels/sparse.h"
#include "ops_common.h"

namespace {

using namespace commpress;

SparsePayload payload_of(int64_t kind, int64_t fraction, int64_t bits, bool scaled, int64_t block, const Key& key,
                         int64_t offset, int64_t numel) {
  STD_TORCH_CHECK(kind == TOPK || kind == RANDK, "commpress: unknown kind of sparsifier ", kind);
  STD_TORCH_CHECK(fraction >= 1 && fraction <= RATE_ONE, "commpress: the fraction must be in (0, 1]");
  STD_TORCH_CHECK((bits >= 1 && bits <= 8) || bits == 16 || bits == 32,
                  "commpress: values have 1 to 8, 16 or 32 bits, got ", bits);
  STD_TORCH_CHECK(block >= SPARSE_SMALLEST_BLOCK && block <= SPARSE_LARGEST_BLOCK && (block & (block - 1)) == 0,
                  "commpress: a block is a power of two from ", SPARSE_SMALLEST_BLOCK, " to ", SPARSE_LARGEST_BLOCK,
                  ", got ", block);
  STD_TORCH_CHECK(offset >= 0 && offset % block == 0, "commpress: offset must be a multiple of ", block, ", got ",
                  offset);
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  return {{static_cast<int32_t>(kind), static_cast<int32_t>(fraction), static_cast<int32_t>(bits), scaled, block},
          key,
          offset,
          numel};
}

void check(const Tensor& values, const Tensor& payload, const SparsePayload& p) {
  check_kinds(values, payload);
  const int64_t nbytes = sparse_payload_nbytes(p.codec, gap_cost(p.codec.fraction), p.offset, p.numel);
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", p.numel, " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
}

// Calls piece(sub-payload, first coordinate, first byte) for parts of whole segments.
template <class F>
void for_pieces(const SparsePayload& p, const F& piece) {
  const int64_t block = p.codec.block, grain = block < (1 << 17) ? (1 << 17) / block : 1;
  struct Context {
    const SparsePayload& payload;
    const F& piece;
    GapCost cost;
  } context{p, piece, gap_cost(p.codec.fraction)};
  torch_parallel((p.numel + block - 1) / block, grain,
                 [](void* raw, int64_t begin, int64_t end) {
                   const Context& c = *static_cast<Context*>(raw);
                   const int64_t block = c.payload.codec.block, first = begin * block,
                                 last = end * block < c.payload.numel ? end * block : c.payload.numel;
                   SparsePayload part = c.payload;
                   part.offset += first;
                   part.numel = last - first;
                   c.piece(part, first, sparse_payload_nbytes(c.payload.codec, c.cost, c.payload.offset, first));
                 },
                 &context);
}

void sparse_encode_op(Tensor x, Tensor payload, int64_t kind, int64_t fraction, int64_t bits, bool scaled,
                      int64_t block, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset,
                      double gain, int64_t isa) {
  const SparsePayload p =
      payload_of(kind, fraction, bits, scaled, block, key_of(seed, step, sender_phase, tensor), offset, x.numel());
  check(x, payload, p);
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for_pieces(p, [&](const SparsePayload& part, int64_t first, int64_t byte) {
    sparse_encode(part, from + first, static_cast<float>(gain), to + byte, path);
  });
}

// First invalid segment, or -1 when the payload was decoded. Nothing is written for an invalid one.
int64_t sparse_decode_op(Tensor payload, Tensor out, int64_t kind, int64_t fraction, int64_t bits, bool scaled,
                         int64_t block, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor,
                         int64_t offset, bool accumulate, double gain, double beta, int64_t isa) {
  const SparsePayload p =
      payload_of(kind, fraction, bits, scaled, block, key_of(seed, step, sender_phase, tensor), offset, out.numel());
  check(out, payload, p);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  const int64_t invalid = sparse_inspect(p, from);
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_pieces(p, [&](const SparsePayload& part, int64_t first, int64_t byte) {
    sparse_decode(part, from + byte, to + first, accumulate, static_cast<float>(gain), static_cast<float>(beta), path);
  });
  return -1;
}

int64_t sparse_payload_nbytes_op(int64_t kind, int64_t fraction, int64_t bits, bool scaled, int64_t block,
                                 int64_t offset, int64_t numel) {
  const SparsePayload p = payload_of(kind, fraction, bits, scaled, block, Key{}, offset, numel);
  return sparse_payload_nbytes(p.codec, gap_cost(p.codec.fraction), offset, numel);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "sparse_encode(Tensor x, Tensor(a!) payload, int kind, int fraction, int bits, bool scaled, int block, int seed, "
      "int step, int sender_phase, int tensor, int offset, float gain, int isa) -> ()");
  m.def(
      "sparse_decode(Tensor payload, Tensor(a!) out, int kind, int fraction, int bits, bool scaled, int block, int "
      "seed, int step, int sender_phase, int tensor, int offset, bool accumulate, float gain, float beta, int isa) -> "
      "int");
  m.def(
      "sparse_payload_nbytes(int kind, int fraction, int bits, bool scaled, int block, int offset, int numel) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("sparse_encode", TORCH_BOX(&sparse_encode_op));
  m.impl("sparse_decode", TORCH_BOX(&sparse_decode_op));
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) {
  m.impl("sparse_payload_nbytes", TORCH_BOX(&sparse_payload_nbytes_op));
}
