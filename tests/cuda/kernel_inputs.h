// What the tests of the kernels under the emulator have in common: values of every kind, and comparisons to the bit.
#pragma once
#include <cstring>

#include "cuda_job.h"
#include "quantise.h"
#include "support.h"

namespace {

using namespace commpress;
using test::Buffer;
using test::Noise;
using test::require;

enum Kind { NORMAL, HEAVY, SPARSE, FEW, ZERO, TINY, HUGE_VALUES, NOT_FINITE, MIXED, KINDS };
inline const char* const KIND_NAMES[] = {"normal", "heavy", "sparse",     "few",  "zero",
                                         "tiny",   "huge",  "not finite", "mixed"};

inline float normal(Noise& noise) {
  float sum = -6.0f;
  for (int i = 0; i < 12; ++i) sum += noise.unit();
  return sum;
}

inline std::vector<float> values(Kind kind, int64_t n, Noise& noise) {
  std::vector<float> x(n);
  for (int64_t i = 0; i < n; ++i) {
    const float v = normal(noise);
    const Kind here = kind == MIXED ? static_cast<Kind>(i / 4096 % MIXED) : kind;
    x[i] = here == HEAVY         ? v * v * v * v * v
           : here == SPARSE      ? (noise.below(20) ? 0.0f : v)
           : here == FEW         ? (noise.below(900) ? 0.0f : v)
           : here == ZERO        ? (noise.below(2) ? 0.0f : -0.0f)
           : here == TINY        ? v * 0x1p-130f
           : here == HUGE_VALUES ? v * 0x1p124f
                                 : v;
    if (here == NOT_FINITE && noise.below(3000) == 0)
      x[i] = float_of(noise.below(2) ? 0x7FC00000u : noise.below(2) ? 0x7F800000u : 0xFF800000u);
  }
  return x;
}

inline void same(const uint8_t* a, const uint8_t* b, int64_t n, const std::string& what) {
  for (int64_t i = 0; i < n; ++i)
    if (a[i] != b[i]) test::fail(what + ": byte " + std::to_string(i) + " of " + std::to_string(n) + " differs");
}

// NaN is NaN, whatever kind.
inline void same(const float* a, const float* b, int64_t n, const std::string& what) {
  for (int64_t i = 0; i < n; ++i)
    if (bits_of(a[i]) != bits_of(b[i]) && (a[i] == a[i] || b[i] == b[i]))
      test::fail(what + ": value " + std::to_string(i) + " of " + std::to_string(n) + " is " + std::to_string(a[i]) +
                 ", not " + std::to_string(b[i]));
}

inline Key key_of(Noise& noise) {
  return {noise.next(), static_cast<uint32_t>(noise.below(1000)), static_cast<uint32_t>(noise.below(64)) << 8 | 16,
          static_cast<uint32_t>(noise.below(100))};
}

// x in another dtype; and what it then holds, as floats.
inline std::vector<uint16_t> narrowed(std::vector<float>& x, cuda::Input input) {
  std::vector<uint16_t> halves(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    halves[i] = input == cuda::BFLOAT16 ? to_bf16(x[i]) : to_fp16(x[i]);
    x[i] = input == cuda::BFLOAT16 ? from_bf16(halves[i]) : from_fp16(halves[i]);
  }
  return halves;
}

// Every how many-th case is run.
struct Run {
  uint64_t seed;
  int64_t parts, number = 0;
  bool next() { return number++ % parts == static_cast<int64_t>(seed % static_cast<uint64_t>(parts)); }
};

}  // namespace
