// Number formats and the classic quantisers: schemas, argument checks, dispatch.
#include "kernels/formats_kernels.h"
#include "ops_common.h"

namespace {

using namespace commpress;

constexpr int64_t FLAG_STOCHASTIC = 1, FLAG_EUCLIDEAN = 2, FLAG_TRITS = 4, FLAG_MAY_SATURATE = 8;

// scheme, exponent, mantissa, levels, block, flags: commpress/ops/_formats.py.
Format format_of(const std::vector<int64_t>& v) {
  STD_TORCH_CHECK(v.size() == 6, "commpress: a format is six integers");
  for (int64_t field : v) STD_TORCH_CHECK(field >= 0 && field <= 65535, "commpress: a format's field is out of range");
  Format f{};
  f.scheme = static_cast<int32_t>(v[0]);
  f.exponent = static_cast<int32_t>(v[1]);
  f.mantissa = static_cast<int32_t>(v[2]);
  f.levels = static_cast<int32_t>(v[3]);
  f.block = static_cast<int32_t>(v[4]);
  f.stochastic = v[5] & FLAG_STOCHASTIC;
  f.euclidean = v[5] & FLAG_EUCLIDEAN;
  f.trits = v[5] & FLAG_TRITS;
  f.may_saturate = v[5] & FLAG_MAY_SATURATE;
  STD_TORCH_CHECK(f.scheme >= FLOAT && f.scheme <= TWO_MEANS, "commpress: unknown format ", f.scheme);
  const bool power_of_two = f.block >= SMALLEST_SCALE_BLOCK && f.block <= BLOCK && (f.block & (f.block - 1)) == 0;
  STD_TORCH_CHECK(power_of_two || (f.block == 0 && (f.scheme == FLOAT || f.scheme == SIGN)),
                  "commpress: a scale's block is a power of two from 16 to 4096, got ", f.block);
  if (f.scheme == FLOAT)
    STD_TORCH_CHECK(f.exponent >= 1 && f.exponent <= 8 && f.mantissa <= 23 && (f.exponent < 8 || f.block == 0) &&
                        (f.exponent + f.mantissa >= 2 || f.block != 0),
                    "commpress: no float has ", f.exponent, " bits of exponent, ", f.mantissa,
                    " of mantissa and a block of ", f.block);
  if (f.scheme == NVFP4)
    STD_TORCH_CHECK(f.exponent == 2 && f.mantissa == 1 && f.block == 16, "commpress: nvfp4 is e2m1 in blocks of 16");
  if (f.scheme == LEVELS)
    STD_TORCH_CHECK(f.levels >= 1 && f.levels <= 32767, "commpress: levels must be from 1 to 32767");
  STD_TORCH_CHECK(!f.trits || (f.scheme == LEVELS && f.levels == 1), "commpress: only three levels are trits");
  return f;
}

void check(const Tensor& values, const Tensor& payload, const Format& format) {
  check_kinds(values, payload);
  const int64_t nbytes = payload_nbytes(format, values.numel());
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", values.numel(), " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
}

constexpr int64_t GRAIN = 32;  // blocks: about 50 us of work

// Calls piece(first coordinate, how many) for parts of [0, numel) that begin at multiples of BLOCK.
template <class F>
void for_parts(int64_t numel, const F& piece) {
  torch::stable::parallel_for(0, (numel + BLOCK - 1) / BLOCK, GRAIN, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * BLOCK, last = end * BLOCK < numel ? end * BLOCK : numel;
    piece(first, last - first);
  });
}

void encode_op(Tensor x, Tensor payload, std::vector<int64_t> format, int64_t seed, int64_t step, int64_t sender_phase,
               int64_t tensor, int64_t offset, double gain, int64_t isa) {
  const Format f = format_of(format);
  check(x, payload, f);
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
  const Isa path = isa_of(isa);
  const Key key = key_of(seed, step, sender_phase, tensor);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  for_parts(x.numel(), [&](int64_t first, int64_t count) {
    encode(f, key, offset + first, from + first, count, static_cast<float>(gain), to + payload_nbytes(f, first), path);
  });
}

// First invalid block, or -1 when the payload was decoded. Nothing is written for an invalid one.
int64_t decode_op(Tensor payload, Tensor out, std::vector<int64_t> format, bool accumulate, double gain, double beta,
                  int64_t isa) {
  const Format f = format_of(format);
  check(out, payload, f);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  const int64_t invalid = invalid_block(f, from, out.numel());
  if (invalid >= 0) return invalid;
  float* const to = out.mutable_data_ptr<float>();
  for_parts(out.numel(), [&](int64_t first, int64_t count) {
    decode(f, from + payload_nbytes(f, first), to + first, count, accumulate, static_cast<float>(gain),
           static_cast<float>(beta), path);
  });
  return -1;
}

int64_t nbytes_op(std::vector<int64_t> format, int64_t numel) {
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  return payload_nbytes(format_of(format), numel);
}

// The format as one number: the rate of a row in a table of layers (kernels/cuda_job.h).
int64_t code_op(std::vector<int64_t> format) { return packed_format(format_of(format)); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "format_encode(Tensor x, Tensor(a!) payload, int[] format, int seed, int step, int sender_phase, int tensor, int "
      "offset, float gain, int isa) -> ()");
  m.def(
      "format_decode(Tensor payload, Tensor(a!) out, int[] format, bool accumulate, float gain, float beta, int isa) "
      "-> "
      "int");
  m.def("format_nbytes(int[] format, int numel) -> int");
  m.def("format_code(int[] format) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("format_encode", TORCH_BOX(&encode_op));
  m.impl("format_decode", TORCH_BOX(&decode_op));
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) {
  m.impl("format_nbytes", TORCH_BOX(&nbytes_op));
  m.impl("format_code", TORCH_BOX(&code_op));
}
