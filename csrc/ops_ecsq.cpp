// The entropy-coded quantisers, with and without a trellis: schemas, argument checks, dispatch.
#include <algorithm>
#include <memory>

#include "kernels/cuda_job.h"
#include "kernels/ecsq_format.h"
#include "kernels/ecsq_kernels.h"
#include "kernels/ectcq_code.h"
#include "ops_common.h"

namespace {

using namespace commpress;

struct Segment {
  int64_t index, numel, byte;
};

EcsqPayload payload_of(int64_t rate, bool rotate, bool dither, bool centroid, int64_t states, int64_t substream,
                       int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset,
                       int64_t numel) {
  STD_TORCH_CHECK(rate >= ECSQ_LEAST_RATE && rate <= 8 * RATE_ONE, "commpress: rate must be in [0.05, 8] bits");
  STD_TORCH_CHECK(offset >= 0 && offset % BLOCK == 0, "commpress: offset must be a multiple of ", BLOCK, ", got ",
                  offset);
  STD_TORCH_CHECK(numel >= 0, "commpress: negative number of coordinates");
  STD_TORCH_CHECK(states == 0 || (ectcq_code(states) && !dither),
                  "commpress: a trellis has 8, 16, 32, 64, 128 or 256 states, and no dither, got ", states);
  STD_TORCH_CHECK(substream == 0 || (substream >= ECSQ_LEAST_SUBSTREAM && substream <= ECSQ_MOST_SUBSTREAM),
                  "commpress: substreams have 8192 to 4194304 bytes, got ", substream);
  return {{static_cast<int32_t>(rate), rotate, dither, centroid, static_cast<int>(states), substream},
          key_of(seed, step, sender_phase, tensor),
          offset,
          numel};
}

std::vector<Segment> segments_of(const Tensor& values, const Tensor& payload, const EcsqPayload& p) {
  check_kinds(values, payload);
  const int64_t nbytes = ecsq_payload_nbytes(p);
  STD_TORCH_CHECK(payload.numel() == nbytes, "commpress: the payload of ", p.numel, " coordinates has ", nbytes,
                  " bytes, got ", payload.numel());
  std::vector<Segment> segments;
  ecsq_segments(p, [&](int64_t index, int64_t numel, int64_t byte) { segments.push_back({index, numel, byte}); });
  return segments;
}

void encode(const Tensor& x, Tensor& payload, const EcsqPayload& p, double gain, int64_t isa) {
  const std::vector<Segment> segments = segments_of(x, payload, p);
  const Isa path = isa_of(isa);
  const float* const from = x.const_data_ptr<float>();
  uint8_t* const to = payload.mutable_data_ptr<uint8_t>();
  torch::stable::parallel_for(0, static_cast<int64_t>(segments.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Segment& s = segments[i];
      ecsq_encode(p.codec, p.key, s.index, from + (s.index - p.offset), s.numel, static_cast<float>(gain), to + s.byte,
                  path);
    }
  });
}

// First invalid segment, or -1 when the payload was decoded. Nothing is written for an invalid one.
int64_t decode(const Tensor& payload, Tensor& out, const EcsqPayload& p, bool accumulate, double gain, double beta,
               int64_t isa) {
  const std::vector<Segment> segments = segments_of(out, payload, p);
  const Isa path = isa_of(isa);
  const uint8_t* const from = payload.const_data_ptr<uint8_t>();
  std::vector<std::unique_ptr<EcsqHeader, EcsqHeaderDeleter>> headers;
  std::vector<int64_t> before{0};  // substreams before each segment
  for (const Segment& s : segments) {
    headers.emplace_back(ecsq_open(p.codec, from + s.byte, s.numel));
    if (!headers.back()) return static_cast<int64_t>(headers.size()) - 1;
    before.push_back(before.back() + ecsq_substreams(*headers.back()));
  }
  float* const to = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, before.back(), 1, [&](int64_t begin, int64_t end) {
    for (size_t i = 0; i < segments.size(); ++i) {
      const int64_t first = std::max(begin, before[i]), last = std::min(end, before[i + 1]);
      if (first < last)
        ecsq_decode(*headers[i], first - before[i], last - before[i], p.key, segments[i].index,
                    to + (segments[i].index - p.offset), accumulate, static_cast<float>(gain), static_cast<float>(beta),
                    path);
    }
  });
  return -1;
}

void encode_op(Tensor x, Tensor payload, int64_t rate, bool rotate, bool dither, bool centroid, int64_t states,
               int64_t substream, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset,
               double gain, int64_t isa) {
  encode(x, payload,
         payload_of(rate, rotate, dither, centroid, states, substream, seed, step, sender_phase, tensor, offset,
                    x.numel()),
         gain, isa);
}

int64_t decode_op(Tensor payload, Tensor out, int64_t rate, bool rotate, bool dither, bool centroid, int64_t states,
                  int64_t substream, int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor, int64_t offset,
                  bool accumulate, double gain, double beta, int64_t isa) {
  return decode(payload, out,
                payload_of(rate, rotate, dither, centroid, states, substream, seed, step, sender_phase, tensor, offset,
                           out.numel()),
                accumulate, gain, beta, isa);
}

int64_t substream_numel_op(int64_t rate, int64_t substream, int64_t numel) {
  const EcsqPayload p = payload_of(rate, false, false, false, 0, substream, 0, 0, 0, 0, 0, numel);
  STD_TORCH_CHECK(numel > 0 && numel <= ECSQ_SEGMENT, "commpress: a segment has 1 to ", ECSQ_SEGMENT, " coordinates");
  return EcsqSubstreams(p.codec, numel).each * ECSQ_BLOCK;
}

// Of the CUDA encoder.
int64_t scratch_words_op(int64_t rate, int64_t states, int64_t substream, int64_t numel) {
  const EcsqPayload p = payload_of(rate, false, false, false, states, substream, 0, 0, 0, 0, 0, numel);
  STD_TORCH_CHECK(numel > 0 && numel <= ECSQ_SEGMENT, "commpress: a segment has 1 to ", ECSQ_SEGMENT, " coordinates");
  return cuda::EntropyScratch(p.codec, numel).end;
}

int64_t payload_nbytes_op(int64_t rate, int64_t offset, int64_t numel) {
  return ecsq_payload_nbytes(payload_of(rate, false, false, false, 0, 0, 0, 0, 0, 0, offset, numel));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(commpress, m) {
  m.def(
      "ecsq_encode(Tensor x, Tensor(a!) payload, int rate, bool rotate, bool dither, bool centroid, int states, "
      "int substream, int seed, int step, int sender_phase, int tensor, int offset, float gain, int isa) -> ()");
  m.def(
      "ecsq_decode(Tensor payload, Tensor(a!) out, int rate, bool rotate, bool dither, bool centroid, int states, "
      "int substream, int seed, int step, int sender_phase, int tensor, int offset, bool accumulate, float gain, float "
      "beta, int isa) "
      "-> int");
  m.def("ecsq_payload_nbytes(int rate, int offset, int numel) -> int");
  m.def("ecsq_substream_numel(int rate, int substream, int numel) -> int");
  m.def("ecsq_scratch_words(int rate, int states, int substream, int numel) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CPU, m) {
  m.impl("ecsq_encode", TORCH_BOX(&encode_op));
  m.impl("ecsq_decode", TORCH_BOX(&decode_op));
}

STABLE_TORCH_LIBRARY_IMPL(commpress, CompositeExplicitAutograd, m) {
  m.impl("ecsq_payload_nbytes", TORCH_BOX(&payload_nbytes_op));
  m.impl("ecsq_substream_numel", TORCH_BOX(&substream_numel_op));
  m.impl("ecsq_scratch_words", TORCH_BOX(&scratch_words_op));
}
