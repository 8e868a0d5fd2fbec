// The k largest magnitudes of a segment, exactly, in linear time. Magnitudes are compared as the bits of |x|: integers
// order as floats do, with infinities and then NaN on top. Among equals the lower index wins.
#pragma once
#include "sparse.h"

namespace commpress {

constexpr int64_t SCAN_SLACK = 16;  // elements that a scan may touch beyond the last that it found

// Writes the indices, ascending, of the coordinates whose magnitude is at least `least` (not 0); returns their number.
// `found` has room for n + SCAN_SLACK.
using Scan = int64_t (*)(const float* x, int64_t n, uint32_t least, uint32_t* found);

inline uint32_t magnitude(float x) { return bits_of(x) & 0x7FFFFFFFu; }

// The k-th largest of `count` numbers, and how many of those equal to it belong to the k largest. Radix passes from the
// top over what is left in question; `u` is overwritten.
struct Cut {
  uint32_t value;
  int64_t equals;
};
inline Cut kth_largest(uint32_t* u, int64_t count, int64_t k) {
  uint32_t low = 0xFFFFFFFFu, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = u[i] < low ? u[i] : low;
    high = u[i] > high ? u[i] : high;
  }
  for (;;) {
    const int digits = count < 8192 ? 8 : 11;
    const int length = high == low ? 0 : 32 - __builtin_clz(high - low), shift = length > digits ? length - digits : 0;
    uint32_t histogram[1 << 11];
    const uint32_t bins = ((high - low) >> shift) + 1;
    memset(histogram, 0, 4 * bins);
    for (int64_t i = 0; i < count; ++i) ++histogram[(u[i] - low) >> shift];
    uint32_t bin = bins - 1;
    for (; histogram[bin] < k; --bin) k -= histogram[bin];
    const uint32_t first = low + (bin << shift);
    if (shift == 0) return {first, k};
    int64_t left = 0;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t value = u[i];
      u[left] = value;
      left += (value - low) >> shift == bin;
    }
    count = left;
    low = first;
    high = first + ((1u << shift) - 1);
  }
}

// A magnitude that somewhat more than k of n coordinates are likely to reach, from 1024 of them; at least 1. A hint:
// any value gives the same result.
inline uint32_t likely_threshold(const float* x, int64_t n, int64_t k) {
  constexpr int64_t RUNS = 256, RUN = 4;
  if (n < 4 * RUNS * RUN) return 1;
  const int64_t expected = k * (RUNS * RUN) / n + 1;
  int64_t deviation = 1;
  while (deviation * deviation < expected) ++deviation;
  const int64_t rank = expected + 3 * deviation;
  if (rank >= RUNS * RUN) return 1;
  uint32_t sample[RUNS * RUN];
  const int64_t spacing = n / RUNS;
  for (int64_t i = 0; i < RUNS; ++i) {
    // Runs at uneven distances: rows of a matrix must not be met at the same columns.
    const int64_t jitter = multiply_high(static_cast<uint32_t>(i) * 2654435761u, static_cast<uint32_t>(spacing - RUN));
    for (int64_t j = 0; j < RUN; ++j) sample[RUN * i + j] = magnitude(x[i * spacing + jitter + j]);
  }
  const uint32_t value = kth_largest(sample, RUNS * RUN, rank).value;
  return value > 1 ? value : 1;
}

// Indices, ascending, of the k largest of n that are not zero; fewer than k where there are fewer. `found` and `work`
// have room for n + SCAN_SLACK.
inline int64_t select_largest(const float* x, int64_t n, int64_t k, Scan scan, uint32_t* found, uint32_t* work) {
  const uint32_t least = likely_threshold(x, n, k), lower = least > 1u << 22 ? least - (1u << 22) : 1;
  int64_t count = scan(x, n, least, found);
  if (count < k && lower > 1) count = scan(x, n, lower, found);
  if (count < k && least > 1) count = scan(x, n, 1, found);
  if (count <= k) return count;
  for (int64_t i = 0; i < count; ++i) work[i] = magnitude(x[found[i]]);
  Cut cut = kth_largest(work, count, k);
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t index = found[i], u = magnitude(x[index]);
    const bool equal = u == cut.value && cut.equals > 0;
    found[kept] = index;
    cut.equals -= equal;
    kept += u > cut.value || equal;
  }
  return kept;
}

}  // namespace commpress
