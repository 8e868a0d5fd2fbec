// What a row of a Lloyd-Max group goes through: codes and sums on the way in, look-ups on the way back. Include after a
// lanes_*.h.
#pragma once
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// The rows of a full group, one after the other: their codes, and their share of P and Q. Lanes may have a faster one.
template <int B>
struct Quantiser {
  using L = LloydMax<B>;
  const Search<B> search{};
  const Table<(1 << B)> level{L::LEVEL}, product_level{L::PRODUCT_LEVEL};
  const Table<(1 << (B - 1))> half_level{L::LEVEL + (1 << (B - 1))},
      half_product_level{L::PRODUCT_LEVEL + (1 << (B - 1))};
  Ints words[B];

  template <bool CENTROID>
  COMMPRESS_INLINE void row(int row, Floats v, Floats& p, Floats& q) {
    if constexpr (B == HALF_BITS) {  // the products and squares of a magnitude are those of the number
      const Floats u = absolute(v);
      const Ints code = search.of_magnitude(u);
      p = kept(p + u * half_product_level[code]);
      if constexpr (CENTROID) {
        const Floats l = half_level[code];
        q = kept(q + l * l);
      }
      put<B>(words, row, search.signed_code(code, v));
    } else {
      const Ints code = search(v);
      p = kept(p + v * product_level[code]);
      if constexpr (CENTROID) {
        const Floats l = level[code];
        q = kept(q + l * l);
      }
      put<B>(words, row, code);
    }
  }
  COMMPRESS_INLINE void finish(uint8_t* out) {
    for (int k = 0; k < B; ++k) store(out + 64 * k, words[k]);
  }
};

// The levels of ROWS neighbouring rows after their butterflies: t[r] holds row r's for all values of the ROWS codes.
template <int B, int ROWS>
struct LevelSums {
  float t[ROWS][1 << (B * ROWS)];
  constexpr LevelSums() : t() {
    for (int codes = 0; codes < 1 << (B * ROWS); ++codes) {
      for (int r = 0; r < ROWS; ++r) t[r][codes] = LloydMax<B>::LEVEL[(codes >> (B * r)) % (1 << B)];
      for (int stride = 1; stride < ROWS; stride *= 2)
        for (int r = 0; r < ROWS; ++r)
          if (!(r & stride)) {
            const float a = t[r][codes], b = t[r + stride][codes];
            t[r][codes] = a + b;
            t[r + stride][codes] = a - b;
          }
    }
  }
};
template <int B, int ROWS>
static constexpr LevelSums<B, ROWS> LEVEL_SUMS{};
template <int B, int ROWS>
struct LevelTables {
  Table<(1 << (B * ROWS))> row[ROWS];
  template <int... R>
  explicit LevelTables(std::integer_sequence<int, R...>) : row{Table<(1 << (B * ROWS))>(LEVEL_SUMS<B, ROWS>.t[R])...} {}
};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
