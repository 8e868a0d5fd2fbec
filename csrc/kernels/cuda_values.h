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

// ---- sums that a thread holds: ROWS times COLUMNS values, rows STRIDE apart ----

// What is there, times beta; or what nothing changes when it is added to: -0.
template <int ROWS, int STRIDE, int COLUMNS>
COMMPRESS_DEVICE void load_sums(const float* from, const Delivery& delivery, float (&sum)[ROWS][COLUMNS]) {
  static_assert(COLUMNS == 4 || COLUMNS == 2, "one access");
  if (!delivery.accumulate) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      COMMPRESS_UNROLL_ALL
      for (int c = 0; c < COLUMNS; ++c) sum[row][c] = -0.0f;
    }
    return;
  }
  if (reinterpret_cast<uintptr_t>(from) % (4 * COLUMNS) == 0) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      if constexpr (COLUMNS == 4) {
        const float4 v = *reinterpret_cast<const float4*>(from + STRIDE * row);
        sum[row][0] = v.x;
        sum[row][1] = v.y;
        sum[row][2] = v.z;
        sum[row][3] = v.w;
      } else {
        const float2 v = *reinterpret_cast<const float2*>(from + STRIDE * row);
        sum[row][0] = v.x;
        sum[row][1] = v.y;
      }
    }
  } else {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      COMMPRESS_UNROLL_ALL
      for (int c = 0; c < COLUMNS; ++c) sum[row][c] = from[STRIDE * row + c];
    }
  }
  if (delivery.beta != 1.0f) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      COMMPRESS_UNROLL_ALL
      for (int c = 0; c < COLUMNS; ++c) sum[row][c] *= delivery.beta;
    }
  }
}

template <int ROWS, int STRIDE, int COLUMNS>
COMMPRESS_DEVICE void store_sums(float* to, const float (&sum)[ROWS][COLUMNS], Report* report) {
  if (reinterpret_cast<uintptr_t>(to) % (4 * COLUMNS) == 0) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      if constexpr (COLUMNS == 4)
        *reinterpret_cast<float4*>(to + STRIDE * row) = make_float4(sum[row][0], sum[row][1], sum[row][2], sum[row][3]);
      else
        *reinterpret_cast<float2*>(to + STRIDE * row) = make_float2(sum[row][0], sum[row][1]);
    }
  } else {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < ROWS; ++row) {
      COMMPRESS_UNROLL_ALL
      for (int c = 0; c < COLUMNS; ++c) to[STRIDE * row + c] = sum[row][c];
    }
  }
  uint32_t most = 0;
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < ROWS; ++row) {
    COMMPRESS_UNROLL_ALL
    for (int c = 0; c < COLUMNS; ++c) most = larger(most, magnitude(sum[row][c]));
  }
  report_non_finite(report, most >= SCALE32_INFINITY);
}

}  // namespace cuda
}  // namespace commpress
