// Sixteen lanes in portable C++ with the vector types of GCC and Clang, four at a time: NEON on arm64, SSE2 on any
// x86-64. It defines what each operation of lanes_avx2.h and lanes_avx512.h does.
#pragma once
#include "philox.h"
#include "quantise.h"

namespace commpress {
namespace COMMPRESS_ISA {

typedef float Float4 __attribute__((vector_size(16)));
typedef uint32_t Int4 __attribute__((vector_size(16)));

struct Floats {
  Float4 v[4];
};
struct Ints {
  Int4 v[4];
};

template <class T>
static inline T load_as(const void* p) {
  T r;
  memcpy(&r, p, 64);
  return r;
}
static inline Floats load(const float* p) { return load_as<Floats>(p); }
static inline Ints load(const uint32_t* p) { return load_as<Ints>(p); }
static inline Ints load_bytes(const uint8_t* p) { return load_as<Ints>(p); }
static inline void store(float* p, const Floats& a) { memcpy(p, &a, 64); }
// Past the caches, where the machine can do that.
static inline void store_past_caches(float* p, const Floats& a) { store(p, a); }
static inline void finish_stores() {}
static inline void store(void* p, const Ints& a) { memcpy(p, &a, 64); }

// Calls f for each of the four quarters.
template <class R, class F>
COMMPRESS_HD R quarters(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
// Calls f for each of the sixteen lanes.
template <class R, class T, class F>
static inline R lanes(const T& a, F f) {
  R r;
  for (int q = 0; q < 4; ++q)
    for (int l = 0; l < 4; ++l) r.v[q][l] = f(a.v[q][l]);
  return r;
}

static inline Ints load_halves(const uint8_t* p) {
  uint16_t h[16];
  memcpy(h, p, 32);
  return quarters<Ints>([&](int q) { return Int4{h[4 * q], h[4 * q + 1], h[4 * q + 2], h[4 * q + 3]}; });
}
static inline void store_halves(uint8_t* p, const Ints& a) {  // of lanes below 2^16
  uint16_t h[16];
  for (int i = 0; i < 16; ++i) h[i] = static_cast<uint16_t>(a.v[i / 4][i % 4]);
  memcpy(p, h, 32);
}

static inline Floats all(float x) {
  return quarters<Floats>([&](int) { return Float4{x, x, x, x}; });
}
static inline Ints all(uint32_t x) {
  return quarters<Ints>([&](int) { return Int4{x, x, x, x}; });
}

#define COMMPRESS_BINARY(type, name, expression)              \
  static inline type name(const type& a, const type& b) {     \
    return quarters<type>([&](int q) { return expression; }); \
  }
COMMPRESS_BINARY(Floats, operator+, a.v[q] + b.v[q])
COMMPRESS_BINARY(Floats, operator-, a.v[q] - b.v[q])
COMMPRESS_BINARY(Floats, minus, a.v[q] - b.v[q])
COMMPRESS_BINARY(Floats, operator*, a.v[q] * b.v[q])
COMMPRESS_BINARY(Floats, operator/, a.v[q] / b.v[q])
COMMPRESS_BINARY(Ints, operator+, a.v[q] + b.v[q])
COMMPRESS_BINARY(Ints, operator-, a.v[q] - b.v[q])
COMMPRESS_BINARY(Ints, operator|, a.v[q] | b.v[q])
COMMPRESS_BINARY(Ints, operator&, a.v[q] & b.v[q])
COMMPRESS_BINARY(Ints, operator^, a.v[q] ^ b.v[q])
#undef COMMPRESS_BINARY
static inline Floats larger(const Floats& a, const Floats& b) {  // b where either is NaN
  return quarters<Floats>([&](int q) { return a.v[q] > b.v[q] ? a.v[q] : b.v[q]; });
}
static inline Floats larger_square(const Floats& a, const Floats& b) {
  return larger(a, b);
}  // of what is not negative
static inline Ints larger(const Ints& a, const Ints& b) {
  return quarters<Ints>([&](int q) { return a.v[q] > b.v[q] ? a.v[q] : b.v[q]; });
}

static inline Ints smaller(const Ints& a, const Ints& b) {
  return quarters<Ints>([&](int q) { return a.v[q] < b.v[q] ? a.v[q] : b.v[q]; });
}
// yes where a < b (both below 2^31), no elsewhere
static inline Ints where_less(const Ints& a, const Ints& b, const Ints& yes, const Ints& no) {
  return quarters<Ints>([&](int q) { return a.v[q] < b.v[q] ? yes.v[q] : no.v[q]; });
}

static inline Ints shift_left(const Ints& a, int k) {
  return quarters<Ints>([&](int q) { return a.v[q] << static_cast<uint32_t>(k); });
}
static inline Ints shift_right_signed(const Ints& a, int k) {
  using Signed4 = int32_t __attribute__((vector_size(16)));
  return quarters<Ints>([&](int q) { return reinterpret_cast<Int4>(reinterpret_cast<Signed4>(a.v[q]) >> k); });
}
static inline Ints shift_right(const Ints& a, int k) {
  return quarters<Ints>([&](int q) { return a.v[q] >> static_cast<uint32_t>(k); });
}
// Left by i % 4 bytes.
static inline Ints rotate_bytes(const Ints& a, int i) {
  return i % 4 ? shift_left(a, 8 * (i % 4)) | shift_right(a, 32 - 8 * (i % 4)) : a;
}

// rest | (a & mask)
static inline Ints merge(const Ints& rest, const Ints& a, uint32_t mask) { return rest | (a & all(mask)); }

static inline Ints bits(const Floats& a) { return load_as<Ints>(&a); }
static inline Floats floats(const Ints& a) { return load_as<Floats>(&a); }
static inline Floats absolute(const Floats& a) { return floats(bits(a) & all(0x7FFFFFFFu)); }
// |x| < 2^31, to nearest even
static inline Ints rounded(const Floats& a) {
  return lanes<Ints>(a, [](float x) { return static_cast<uint32_t>(round_to_int(x)); });
}
static inline Floats to_float(const Ints& a) {
  return lanes<Floats>(a, [](uint32_t x) { return static_cast<float>(static_cast<int32_t>(x)); });
}

// x with its sign flipped where bit 31 of word << count is set
struct Count {
  int n;
};
static inline Count count_of(int n) { return {n}; }
static inline Floats flip(const Floats& x, const Ints& word, Count count) {
  const Ints shifted = quarters<Ints>([&](int q) { return word.v[q] << static_cast<uint32_t>(count.n); });
  return floats(bits(x) ^ (shifted & all(0x80000000u)));
}

// Unnormalised Hadamard transform of the 16 lanes, strides 1, 2, 4, 8.
static inline Floats hadamard16(const Floats& x) {
  Float4 v[4];
  for (int q = 0; q < 4; ++q) {
    const Float4 a = x.v[q];
    const Float4 b = Float4{a[0], a[0], a[2], a[2]} + Float4{a[1], -a[1], a[3], -a[3]};
    v[q] = Float4{b[0], b[1], b[0], b[1]} + Float4{b[2], b[3], -b[2], -b[3]};
  }
  const Float4 s01 = v[0] + v[1], d01 = v[0] - v[1], s23 = v[2] + v[3], d23 = v[2] - v[3];
  return {{s01 + s23, d01 + d23, s01 - s23, d01 - d23}};
}

// Sum of the lanes by halves: l and l + 8, then 4, 2, 1 apart.
static inline float sum_lanes(const Floats& a) {
  float v[16];
  store(v, a);
  for (int width = 8; width; width /= 2)
    for (int l = 0; l < width; ++l) v[l] += v[l + width];
  return v[0];
}
static inline float largest_lane(const Floats& a) {
  float v[16];
  store(v, a);
  float best = v[0];
  for (float lane : v) best = lane > best ? lane : best;
  return best;
}
static inline uint32_t largest_lane(const Ints& a) {
  uint32_t v[16], best = 0;
  store(v, a);
  for (uint32_t lane : v) best = lane > best ? lane : best;
  return best;
}

// Lane i is the largest lane of a[i].
static inline Ints largest_lanes(const Ints (&a)[16]) {
  uint32_t best[16];
  for (int i = 0; i < 16; ++i) best[i] = largest_lane(a[i]);
  return load(best);
}

static inline const Ints& kept(const Ints& a) { return a; }
static inline const Floats& kept(const Floats& a) { return a; }

// 2 N vectors of random words from the counters index .. index + 8 N - 1; see lane_word() in philox.h.
struct Philox {
  Key key;
  uint32_t purpose;
  Philox(const Key& k, uint32_t p) : key(k), purpose(p) {}
  template <int N>
  void fill(uint32_t index, Ints* words) const {
    for (int i = 0; i < N; ++i, words += 2) {
      uint32_t a[16], b[16];
      for (uint32_t t = 0; t < 8; ++t) {
        const Words4 out = philox(key, purpose, index++);
        a[2 * t] = out.w[0];
        a[2 * t + 1] = out.w[1];
        b[2 * t] = out.w[2];
        b[2 * t + 1] = out.w[3];
      }
      words[0] = load(a);
      words[1] = load(b);
    }
  }
};

constexpr int TABLE_BITS = 0;  // the longest index of a look-up that is one instruction or none
constexpr int HALF_BITS = 0;   // the codes whose levels are looked up by magnitude

// N floats (a power of two), looked up by the low log2(N) bits of an index.
template <int N>
struct Table {
  const float* t;
  explicit Table(const float* p) : t(p) {}
  Floats operator[](const Ints& i) const {
    return lanes<Floats>(i, [this](uint32_t k) { return t[k & (N - 1)]; });
  }
};

// Lloyd-Max codes of v; see lloyd_code().
template <int B>
struct Search {
  Ints operator()(const Floats& v) const {
    return lanes<Ints>(v, [](float x) { return static_cast<uint32_t>(lloyd_code<B>(x)); });
  }
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
