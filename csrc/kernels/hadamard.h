// Randomised block Hadamard transforms, radix 16: rows of sixteen lanes, sixteen rows in registers at a time. Include
// after a lanes_*.h. The order of the butterflies is part of the wire format (docs/wire-format.md 4.3), since it
// decides the last bits.
#pragma once
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Rows FIRST (1 unless nearer ones are done), ..., 4 and 8 apart.
template <int FIRST = 1>
static COMMPRESS_INLINE void butterflies16(Floats (&r)[16]) {
#pragma GCC unroll 4
  for (int stride = FIRST; stride < 16; stride *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i + stride < 16; ++i) {
      if (i & stride) continue;
      const Floats a = r[i], b = r[i + stride];
      r[i] = a + b;
      r[i + stride] = minus(a, b);
    }
  }
}

// The signs of a block of up to 4096 coordinates: bit r % 32 of vector r / 32 belongs to row r.
struct Signs {
  Ints words[8];
  Signs(const Key& key, uint32_t purpose, uint64_t start, int64_t n) {
    const Philox random(key, purpose);
    const uint32_t index = static_cast<uint32_t>(start / 128);
    if (n == BLOCK)
      random.fill<4>(index, words);
    else
      for (int pair = 0; pair < (n + 1023) / 1024; ++pair) random.fill<1>(index + 8 * pair, words + 2 * pair);
  }
};

// Sum of squares and largest square, in the order of docs/wire-format.md section 5.
struct Squares {
  Floats sum[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  Floats most = all(0.0f);
};

static inline float fold(const Floats (&a)[4]) { return sum_lanes((a[0] + a[1]) + (a[2] + a[3])); }

enum class Measure { NO, YES };

// Flips signs and runs the butterflies of rows 16, 32, ... apart: the first half of a transform of `rows` rows, from
// `x` to `y` (which may be x). A full block fetches the first FAR_LINES lines of the next along the way: fewer than a
// core can wait for at a time, or the pipeline stalls.
constexpr int FAR_LINES = 96;
template <Measure MEASURE>
static void rotate_far(const float* x, int rows, const Signs& signs, float* y, Squares& squares) {
  if (rows == 256) {
    Squares local = squares;  // so that it can live in registers
    for (int j = 0; j < 16; ++j) {
      Floats r[16];
      if constexpr (MEASURE == Measure::YES)
        for (int i = 0; i < FAR_LINES / 16; ++i) prefetch_line(x + BLOCK + 16 * (FAR_LINES / 16 * j + i));
      const Count even = count_of(31 - j), odd = count_of(15 - j);
      each<16>([&](auto k) __attribute__((always_inline)) {
        const float* p = x + 16 * (16 * k + j);
        const Floats v = load(p);
        if constexpr (MEASURE == Measure::YES) {
          const Floats square = v * v;
          local.sum[k % 4] = local.sum[k % 4] + square;
          local.most = larger_square(square, local.most);
        }
        r[k] = flip(v, signs.words[k / 2], k % 2 ? odd : even);
      });
      butterflies16(r);
      each<16>([&](auto k) __attribute__((always_inline)) { store(y + 16 * (16 * k + j), r[k]); });
    }
    squares = local;
    return;
  }
  for (int j = 0; j < 16; ++j)
    for (int k = 0; 16 * k + j < rows; ++k) {
      const int row = 16 * k + j;
      const Floats v = load(x + 16 * row);
      if constexpr (MEASURE == Measure::YES) {
        const Floats square = v * v;
        squares.sum[k % 4] = squares.sum[k % 4] + square;
        squares.most = larger_square(square, squares.most);
      }
      store(y + 16 * row, flip(v, signs.words[row / 32], count_of(31 - row % 32)));
    }
  for (int stride = 16; stride < rows; stride *= 2)
    for (int i = 0; i < rows; ++i)
      if (!(i & stride)) {
        const Floats a = load(y + 16 * i), b = load(y + 16 * (i + stride));
        store(y + 16 * i, a + b);
        store(y + 16 * (i + stride), a - b);
      }
}

// Sixteen neighbouring rows: the second half of a transform.
static COMMPRESS_INLINE void rotate_near(const float* y, Floats (&r)[16]) {
  each<16>([&](auto i) __attribute__((always_inline)) { r[i] = load(y + 16 * i); });
  butterflies16(r);
  each<16>([&](auto i) __attribute__((always_inline)) { r[i] = hadamard16(r[i]); });
}

static void rotate_near(float* y, int rows) {
  if (rows >= 16) {
    for (int first = 0; first < rows; first += 16) {
      Floats r[16];
      rotate_near(y + 16 * first, r);
      each<16>([&](auto i) __attribute__((always_inline)) { store(y + 16 * (first + i), r[i]); });
    }
    return;
  }
  for (int stride = 1; stride < rows; stride *= 2)
    for (int i = 0; i < rows; ++i)
      if (!(i & stride)) {
        const Floats a = load(y + 16 * i), b = load(y + 16 * (i + stride));
        store(y + 16 * i, a + b);
        store(y + 16 * (i + stride), a - b);
      }
  for (int i = 0; i < rows; ++i) store(y + 16 * i, hadamard16(load(y + 16 * i)));
}

// The way back after rotate_near(): rows 16, 32, ... apart, then signs, then f(row, value) for every row.
template <class F>
static COMMPRESS_INLINE void unrotate_far(float* z, int rows, const Signs& signs, F&& f) {
  if (rows == 256) {
    for (int j = 0; j < 16; ++j) {
      Floats r[16];
      each<16>([&](auto k) __attribute__((always_inline)) { r[k] = load(z + 16 * (16 * k + j)); });
      butterflies16(r);
      const Count even = count_of(31 - j), odd = count_of(15 - j);
      each<16>([&](auto k) __attribute__((always_inline)) {
        f(16 * k + j, flip(r[k], signs.words[k / 2], k % 2 ? odd : even));
      });
    }
    return;
  }
  for (int stride = 16; stride < rows; stride *= 2)
    for (int i = 0; i < rows; ++i)
      if (!(i & stride)) {
        const Floats a = load(z + 16 * i), b = load(z + 16 * (i + stride));
        store(z + 16 * i, a + b);
        store(z + 16 * (i + stride), a - b);
      }
  for (int row = 0; row < rows; ++row) f(row, flip(load(z + 16 * row), signs.words[row / 32], count_of(31 - row % 32)));
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
