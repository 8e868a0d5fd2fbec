// What the careful way of a block needs: any number of coordinates, any magnitudes, step by step in shared memory. The
// fast ways handle whole blocks of ordinary values; both give the bytes of the CPU kernels.
#pragma once
#include "cuda_groups.h"
#include "cuda_values.h"

namespace commpress {
namespace cuda {

// Shared memory of a block of threads.
struct Workspace {
  float* y;           // BLOCK values
  uint8_t* codes;     // BLOCK codes
  uint32_t* signs;    // 128 words: bit r % 32 of word [r / 32][lane] belongs to row r
  float* sums;        // 64: [accumulator][lane]
  uint32_t* scratch;  // 32 words
  uint32_t* staged;   // STAGED_WORDS; may share its place with `y`, where that says so
};

// ---- sums, in the order of docs/wire-format.md section 5 ----

// Adds up the accumulators of 16 lanes each; in every thread. Ends in step.
COMMPRESS_DEVICE float fold(const Workspace& w, float accumulator) {
  if (thread() < 64) w.sums[thread()] = accumulator;
  __syncthreads();
  if (thread() < 32) {
    const int lane = thread() % 16;
    float sum = (w.sums[lane] + w.sums[16 + lane]) + (w.sums[32 + lane] + w.sums[48 + lane]);
    for (int width = 8; width; width /= 2) sum += __shfl_down_sync(ALL_LANES, sum, width, 16);
    if (thread() == 0) w.scratch[0] = bits_of(sum);
  }
  __syncthreads();
  const float total = float_of(w.scratch[0]);
  __syncthreads();
  return total;
}

// Sum of squares of n values.
COMMPRESS_DEVICE float careful_energy(const Workspace& w, int n) {
  float sum = 0.0f;
  if (thread() < 64)
    for (int j = 0; j < 16; ++j)
      for (int k = thread() / 16; 16 * (16 * k + j) < n; k += 4) {
        const int i = 16 * (16 * k + j) + thread() % 16;
        const float v = i < n ? w.y[i] : 0.0f;
        sum += v * v;
      }
  return fold(w, sum);
}

// Sum of value(i) for i < n.
template <class F>
COMMPRESS_DEVICE float sum_by_rows(const Workspace& w, int n, const F& value) {
  float sum = 0.0f;
  if (thread() < 64)
    for (int row = thread() / 16; 16 * row < n; row += 4) {
      const int i = 16 * row + thread() % 16;
      sum += i < n ? value(i) : 0.0f;
    }
  return fold(w, sum);
}

COMMPRESS_DEVICE uint32_t careful_largest(const Workspace& w, int n) {
  uint32_t most = 0;
  for (int i = thread(); i < n; i += threads()) most = larger(most, magnitude(w.y[i]));
  return block_largest(most, w.scratch);
}

COMMPRESS_DEVICE void careful_scale(const Workspace& w, int n, int exponent) {
  for (int i = thread(); i < n; i += threads()) w.y[i] = scale_by_power(w.y[i], exponent);
  __syncthreads();
}

// ---- rotation of n = 128, 256, ... 4096 values ----

// Random signs of a block of n; a worker of 32 fills in its part. A barrier must follow.
COMMPRESS_DEVICE void fill_signs_by(int t, uint32_t* signs, const Key& key, uint32_t purpose, int64_t index, int n) {
  if (t >= 8 * ((n + 1023) / 1024)) return;
  const Words4 out = philox(key, purpose, static_cast<uint32_t>(index / 128) + static_cast<uint32_t>(t));
  const int at = 32 * (t / 8) + 2 * (t % 8);
  signs[at] = out.w[0];
  signs[at + 1] = out.w[1];
  signs[at + 16] = out.w[2];
  signs[at + 17] = out.w[3];
}

COMMPRESS_DEVICE float with_sign(float x, uint32_t word, int row) {
  return float_of(bits_of(x) ^ (word << (31 - row % 32) & 0x80000000u));
}

COMMPRESS_DEVICE void careful_signs(const Workspace& w, const Key& key, uint32_t purpose, int64_t index, int n) {
  fill_signs_by(thread(), w.signs, key, purpose, index, n);
  __syncthreads();
  for (int i = thread(); i < n; i += threads()) {
    const int row = i / 16;
    w.y[i] = with_sign(w.y[i], w.signs[16 * (row / 32) + i % 16], row);
  }
  __syncthreads();
}

// Butterflies with strides first, 2 first, ... below `end` and n.
COMMPRESS_DEVICE void butterflies(const Workspace& w, int n, int first, int end) {
  for (int stride = first; stride < end && stride < n; stride *= 2) {
    for (int pair = thread(); pair < n / 2; pair += threads()) {
      const int i = pair / stride * 2 * stride + pair % stride;
      const float a = w.y[i], b = w.y[i + stride];
      w.y[i] = a + b;
      w.y[i + stride] = a - b;
    }
    __syncthreads();
  }
}

COMMPRESS_DEVICE void careful_rotate(const Workspace& w, const Key& key, uint32_t purpose, int64_t index, int n) {
  careful_signs(w, key, purpose, index, n);
  butterflies(w, n, 256, 4096);
  butterflies(w, n, 16, 256);
  butterflies(w, n, 1, 16);
}

COMMPRESS_DEVICE void careful_unrotate(const Workspace& w, const Key& key, uint32_t purpose, int64_t index, int n) {
  butterflies(w, n, 16, 256);
  butterflies(w, n, 1, 16);
  butterflies(w, n, 256, 4096);
  careful_signs(w, key, purpose, index, n);
}

// ---- delivery of what `y` holds ----

COMMPRESS_DEVICE void deliver_all(const Workspace& w, int n, float* out, const Sink& sink) {
  for (int i = thread(); i < n; i += threads()) deliver(out + i, w.y[i], sink);
  __syncthreads();
}

COMMPRESS_DEVICE void deliver_constant(int n, float value, float* out, const Sink& sink) {
  for (int i = thread(); i < n; i += threads()) deliver(out + i, value, sink);
  __syncthreads();
}

COMMPRESS_DEVICE void note_non_finite(const float* out, int n, Report* report) {
  bool any = false;
  for (int i = thread(); i < n; i += threads()) any = any || magnitude(out[i]) >= SCALE32_INFINITY;
  report_non_finite(report, any);
}

}  // namespace cuda
}  // namespace commpress
