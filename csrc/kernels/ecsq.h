// `ecsq` and `ecdq`: entropy-coded quantisers at a hard budget (docs/wire-format.md, section 4.8).
#pragma once
#include "entropy_model.h"
#include "kernels.h"

namespace commpress {

struct EcsqCodec {
  int32_t rate;  // millionths of a bit per coordinate, at least ECSQ_LEAST_RATE
  bool rotate, dither, centroid;
  int states = 0;         // of the trellis that long segments are coded with, as ectcq.h says (without dither), or 0
  int64_t substream = 0;  // bytes of a segment for each substream, about; 0: segments are not divided
};

constexpr int32_t ECSQ_LEAST_RATE = 50000;
constexpr int64_t ECSQ_SEGMENT = int64_t{1} << 23;  // coordinates that are coded together
constexpr int64_t ECSQ_EXTRA = 48;                  // bytes of a segment beyond its rate
constexpr int64_t ECSQ_LEAST_SUBSTREAM = 8 << 10, ECSQ_MOST_SUBSTREAM = 4096 << 10;

struct EcsqPayload {
  EcsqCodec codec;
  Key key;
  int64_t offset, numel;
};

// Bytes of one segment of n > 0 coordinates.
COMMPRESS_HD int64_t ecsq_segment_nbytes(const EcsqCodec& codec, int64_t n) {
  return (n * codec.rate + 8 * RATE_ONE - 1) / (8 * RATE_ONE) + ECSQ_EXTRA;
}

// Calls f(index, numel, first byte) for each segment: payloads are cut at multiples of ECSQ_SEGMENT of the tensor.
template <class F>
void ecsq_segments(const EcsqPayload& p, F&& f) {
  int64_t byte = 0;
  for (int64_t at = p.offset, end = p.offset + p.numel; at < end;) {
    const int64_t border = (at / ECSQ_SEGMENT + 1) * ECSQ_SEGMENT, stop = border < end ? border : end;
    f(at, stop - at, byte);
    byte += ecsq_segment_nbytes(p.codec, stop - at);
    at = stop;
  }
}

int64_t ecsq_payload_nbytes(const EcsqPayload& p);

// Writes one segment: ecsq_segment_nbytes() bytes for gain * x.
void ecsq_encode(const EcsqCodec& codec, const Key& key, int64_t index, const float* x, int64_t n, float gain,
                 uint8_t* out, Isa isa);

// A segment's header, tables and classes, checked.
struct EcsqHeader;
struct EcsqHeaderDeleter {
  void operator()(EcsqHeader* header) const;
};
// Null for bytes that no encoder writes. `in` holds ecsq_segment_nbytes() bytes and must outlive the header.
EcsqHeader* ecsq_open(const EcsqCodec& codec, const uint8_t* in, int64_t n);
// Parts of the segment that can be decoded side by side.
int64_t ecsq_substreams(const EcsqHeader& header);
// out = gain * value, or beta * out + gain * value, for the substreams from `first` to before `last`; `out` is where
// the segment begins.
void ecsq_decode(const EcsqHeader& header, int64_t first, int64_t last, const Key& key, int64_t index, float* out,
                 bool accumulate, float gain, float beta, Isa isa);

}  // namespace commpress
