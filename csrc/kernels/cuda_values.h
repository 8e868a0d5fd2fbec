// Gradients in global memory: read in their own dtype, and what becomes of decoded values.
#pragma once
#include "cuda_device.h"
#include "cuda_job.h"
#include "quantise.h"

namespace commpress {
namespace cuda {

// Values in their own dtype.
struct Values {
  const void* data;
  Input input;

  COMMPRESS_DEVICE Values from(int64_t i) const {
    return {static_cast<const char*>(data) + i * (input == FLOAT32 ? 4 : 2), input};
  }
  COMMPRESS_DEVICE float operator[](int i) const {
    if (input == FLOAT32) return __ldcs(static_cast<const float*>(data) + i);
    const uint16_t half = __ldcs(static_cast<const uint16_t*>(data) + i);
    return input == BFLOAT16 ? from_bf16(half) : from_fp16(half);
  }
};

// The same, of one dtype: a loop over many values asks once which.
template <Input INPUT>
struct ValuesOf {
  const void* data;

  COMMPRESS_DEVICE float operator[](int i) const { return Values{data, INPUT}[i]; }
  // Whether four can be read at once, and four from i on.
  COMMPRESS_DEVICE bool aligned() const { return reinterpret_cast<uintptr_t>(data) % (INPUT == FLOAT32 ? 16 : 8) == 0; }
  COMMPRESS_DEVICE float4 four(int i) const {
    if constexpr (INPUT == FLOAT32) {
      return __ldcs(reinterpret_cast<const float4*>(static_cast<const float*>(data) + i));
    } else {
      const uint2 both = __ldcs(reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + i));
      const uint16_t a = static_cast<uint16_t>(both.x), b = static_cast<uint16_t>(both.x >> 16),
                     c = static_cast<uint16_t>(both.y), d = static_cast<uint16_t>(both.y >> 16);
      if (INPUT == BFLOAT16) return make_float4(from_bf16(a), from_bf16(b), from_bf16(c), from_bf16(d));
      return make_float4(from_fp16(a), from_fp16(b), from_fp16(c), from_fp16(d));
    }
  }
};

// Calls f(ValuesOf<...>).
template <class F>
COMMPRESS_DEVICE void with_input(const Values& x, F&& f) {
  if (x.input == FLOAT32)
    f(ValuesOf<FLOAT32>{x.data});
  else if (x.input == BFLOAT16)
    f(ValuesOf<BFLOAT16>{x.data});
  else
    f(ValuesOf<FLOAT16>{x.data});
}

// Whether four floats can be read or written at once.
COMMPRESS_DEVICE bool aligned_for_four(const float* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; }

// What one sender's values do: the first may overwrite.
struct Sink {
  bool add;
  float gain, beta;
};
COMMPRESS_DEVICE Sink sink_of(const Delivery& delivery, int sender) {
  if (sender == 0) return {delivery.accumulate, delivery.gain, delivery.beta};
  return {true, delivery.gain, 1.0f};
}
COMMPRESS_DEVICE float delivered(float before, float value, const Sink& sink) {
  if (!sink.add) return value;
  return sink.beta == 1.0f ? before + value : before * sink.beta + value;
}
COMMPRESS_DEVICE void deliver(float* out, float value, const Sink& sink) {
  *out = sink.add ? delivered(*out, value, sink) : value;
}

// Notes what is wrong; the largest position wins, so that every run reports the same.
COMMPRESS_DEVICE void report_invalid(Report* report, const Sources& sources, int sender) {
  atomicMax(&report->invalid, sources.position + sender + 1);
}
COMMPRESS_DEVICE void report_non_finite(Report* report, bool any) {
  if (any) atomicMax(&report->non_finite, 1);
}

}  // namespace cuda
}  // namespace commpress
