// Marks for code that runs on the host and on a CUDA device, and bit casts. No other header of this library is needed
// to use it.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define COMMPRESS_HD __host__ __device__ __forceinline__
#define COMMPRESS_HD_SELDOM __host__ __device__ __noinline__  // on a device kept out of the way of what runs always
#else
#define COMMPRESS_HD inline __attribute__((always_inline))
#define COMMPRESS_HD_SELDOM
#endif

namespace commpress {

COMMPRESS_HD uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

COMMPRESS_HD float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

// Results are defined to the bit: every operation below is rounded once. The host is built with -ffp-contract=off, the
// device with -fmad=false.
COMMPRESS_HD float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

COMMPRESS_HD float square_root(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

// x * 2^e, rounded once; e may be any int, and is nearly always 0.
COMMPRESS_HD float scale_by_power(float x, int e) {
  if (e == 0) return x;
#if defined(__CUDA_ARCH__)
  return scalbnf(x, e);
#else
  return __builtin_scalbnf(x, e);
#endif
}

COMMPRESS_HD double scale_by_power(double x, int e) {
#if defined(__CUDA_ARCH__)
  return scalbn(x, e);
#else
  return __builtin_ldexp(x, e);
#endif
}

// Round to nearest even; |x| < 2^31.
COMMPRESS_HD int32_t round_to_int(float x) {
#if defined(__CUDA_ARCH__)
  return __float2int_rn(x);
#else
  return static_cast<int32_t>(__builtin_lrintf(x));  // one instruction, unlike rintf without SSE4.1
#endif
}

// The largest whole number that is not above x.
COMMPRESS_HD double round_down(double x) {
#if defined(__CUDA_ARCH__)
  return floor(x);
#else
  return __builtin_floor(x);
#endif
}

// Zero bits above the highest that is set; x is not 0.
COMMPRESS_HD int leading_zeros(uint64_t x) {
#if defined(__CUDA_ARCH__)
  return __clzll(static_cast<long long>(x));
#else
  return __builtin_clzll(x);
#endif
}

COMMPRESS_HD uint32_t rotate_left(uint32_t w, int k) { return k ? (w << k) | (w >> (32 - k)) : w; }

COMMPRESS_HD uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

}  // namespace commpress
