// What the AVX2 and the AVX-512 lanes share.
#pragma once
#include <immintrin.h>

#include "philox.h"

namespace commpress {
namespace COMMPRESS_ISA {

// By halves: l and l + 4, then 2, 1 apart.
static inline float sum8(__m256 eight) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The key of each of Philox's ten rounds, widened so that a broadcast from memory serves a 64-bit lane.
struct RoundKeys {
  uint64_t first[10], second[10];
  explicit RoundKeys(uint64_t seed) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += PHILOX_W0, k1 += PHILOX_W1) {
      first[round] = k0;
      second[round] = k1;
    }
  }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
