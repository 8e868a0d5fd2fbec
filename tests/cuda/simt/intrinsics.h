// Intrinsics of one thread: bits, rounding, casts, loads and stores. Built with -ffp-contract=off every operation here
// rounds once, as the device's _rn forms do.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

// ---- bits ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __brev(unsigned x) {
  x = ((x >> 1) & 0x55555555u) | ((x & 0x55555555u) << 1);
  x = ((x >> 2) & 0x33333333u) | ((x & 0x33333333u) << 2);
  x = ((x >> 4) & 0x0F0F0F0Fu) | ((x & 0x0F0F0F0Fu) << 4);
  return __builtin_bswap32(x);
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }

// Byte i of the result is the byte of (b, a) that nibble i of the selector names, or its sign, eight times, if the
// nibble's highest bit is set.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = (static_cast<uint64_t>(b) << 32) | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i);
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 0xFFu;
    if (nibble & 8) byte = byte & 0x80u ? 0xFFu : 0;
    result |= byte << (8 * i);
  }
  return result;
}

// (high, low) shifted as one; the upper word of a left shift, the lower word of a right shift. The distance wraps at
// 32, or with _lc and _rc stops there.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned distance) {
  const uint64_t both = (static_cast<uint64_t>(high) << 32) | low;
  return static_cast<unsigned>((both << (distance & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned distance) {
  const uint64_t both = (static_cast<uint64_t>(high) << 32) | low;
  return static_cast<unsigned>(both >> (distance & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned distance) {
  return distance < 32 ? __funnelshift_l(low, high, distance) : low;
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned distance) {
  return distance < 32 ? __funnelshift_r(low, high, distance) : high;
}

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// ---- arithmetic ----

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }

namespace simt {

// `whole` has no fraction. Conversions saturate, and NaN becomes 0.
inline int saturated(float whole) {
  if (whole != whole) return 0;
  if (whole >= 0x1p31f) return INT32_MAX;
  if (whole < -0x1p31f) return INT32_MIN;
  return static_cast<int>(whole);
}

}  // namespace simt

inline int __float2int_rn(float x) { return simt::saturated(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return simt::saturated(std::floor(x)); }
inline int __float2int_ru(float x) { return simt::saturated(std::ceil(x)); }
inline int __float2int_rz(float x) { return simt::saturated(std::trunc(x)); }

// ---- loads and stores that differ from plain ones in caching alone ----

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
