// Sixteen lanes of 16 bits in portable C++. It defines what each operation of trellis_words_avx2.h and
// trellis_words_avx512.h does; they may have other numbers of lanes.
#pragma once
#include "lanes_plain.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

constexpr int WORD_LANES = 16;

typedef uint16_t Word8 __attribute__((vector_size(16)));
typedef int16_t Signed8 __attribute__((vector_size(16)));

struct Words {
  Word8 v[2];
};

template <class F>
static inline Words word_halves(F f) {
  return {{f(0), f(1)}};
}
static inline Words load_words(const uint16_t* p) {
  Words r;
  memcpy(&r, p, 32);
  return r;
}
static inline void store_words(uint16_t* p, const Words& x) { memcpy(p, &x, 32); }
static inline Words all_words(uint32_t x) {
  const uint16_t w = static_cast<uint16_t>(x);
  return word_halves([&](int) { return Word8{w, w, w, w, w, w, w, w}; });
}

#define COMMPRESS_WORDS(name, expression)                         \
  static inline Words name(const Words& x, const Words& y) {      \
    return word_halves([&](int i) { return Word8(expression); }); \
  }
COMMPRESS_WORDS(operator+, x.v[i] + y.v[i])
COMMPRESS_WORDS(operator-, x.v[i] - y.v[i])
COMMPRESS_WORDS(operator*, x.v[i] * y.v[i])
COMMPRESS_WORDS(operator&, x.v[i] & y.v[i])
COMMPRESS_WORDS(operator|, x.v[i] | y.v[i])
COMMPRESS_WORDS(operator^, x.v[i] ^ y.v[i])
COMMPRESS_WORDS(smaller, x.v[i] < y.v[i] ? x.v[i] : y.v[i])
COMMPRESS_WORDS(larger_signed, Signed8(x.v[i]) > Signed8(y.v[i]) ? x.v[i] : y.v[i])
COMMPRESS_WORDS(where_equal, x.v[i] == y.v[i])  // all bits, or none
COMMPRESS_WORDS(without, x.v[i] & ~y.v[i])
#undef COMMPRESS_WORDS

static inline Words shift_left(const Words& x, int k) {
  return word_halves([&](int i) { return Word8(x.v[i] << static_cast<uint16_t>(k)); });
}
static inline Words shift_right(const Words& x, int k) {
  return word_halves([&](int i) { return Word8(x.v[i] >> static_cast<uint16_t>(k)); });
}
// Upper 16 bits of the square of a signed word.
static inline Words high_square(const Words& x) {
  Words r;
  for (int i = 0; i < 16; ++i) {
    const int32_t w = static_cast<int16_t>(x.v[i / 8][i % 8]);
    r.v[i / 8][i % 8] = static_cast<uint16_t>(w * w >> 16);
  }
  return r;
}

// Low words of sixteen(0), and with 32 lanes sixteen(1).
template <class F>
static COMMPRESS_INLINE Words words_from(const F& sixteen) {
  const Ints x = sixteen(0);
  Words r;
  for (int i = 0; i < 16; ++i) r.v[i / 8][i % 8] = static_cast<uint16_t>(x.v[i / 4][i % 4]);
  return r;
}
static inline void store_low_bytes(uint8_t* p, const Words& x) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>(x.v[i / 8][i % 8]);
}

struct WordTable {
  const uint16_t* of = nullptr;
  WordTable() = default;
  explicit WordTable(const uint16_t* p) : of(p) {}
};
// Places in tables of 16, below 16.
struct WordIndex {
  const Words of;
  explicit WordIndex(const Words& i) : of(i) {}
};
static inline Words look_up(const WordTable& t, const WordIndex& i) {
  Words r;
  for (int lane = 0; lane < 16; ++lane) r.v[lane / 8][lane % 8] = t.of[i.of.v[lane / 8][lane % 8]];
  return r;
}

// Sum of the squares of n words below 2^15; n is a multiple of 32.
static inline int64_t sum_squares(const uint16_t* p, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<int64_t>(p[i]) * p[i];
  return sum;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
