// Sums of products over coordinates, in an order that does not depend on the machine's vectors: coordinate i is added
// to sum i mod 8, in binary64, and the eight are folded at the end. Twin: reference/_sums.py. A cpu_*.cpp names the
// path with COMMPRESS_ISA; the vectors are the compiler's.
#pragma once
#include <cstdint>

namespace commpress {
namespace COMMPRESS_ISA {

constexpr int SUMS = 8;

inline double fold(double (&sums)[SUMS]) {
  for (int half = SUMS / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// Calls add(first, count) for every row of eight coordinates, the last of which may be shorter.
template <class Add>
void for_rows(int64_t n, const Add& add) {
  int64_t first = 0;
  for (; first + SUMS <= n; first += SUMS) add(first, SUMS);
  add(first, static_cast<int>(n - first));
}

template <class Real>
void add_all_products(const Real* x, const Real* y, int64_t n, double* to) {
  double xx[SUMS] = {}, xy[SUMS] = {}, yy[SUMS] = {};
  if (x == y) {
    for_rows(n, [&](int64_t first, int count) {
      for (int i = 0; i < count; ++i) {
        const double a = x[first + i];
        xx[i] += a * a;
      }
    });
    const double squares = fold(xx);
    for (int i = 0; i < 3; ++i) to[i] += squares;
    return;
  }
  for_rows(n, [&](int64_t first, int count) {
    for (int i = 0; i < count; ++i) {
      const double a = x[first + i], b = y[first + i];
      xx[i] += a * a, xy[i] += a * b, yy[i] += b * b;
    }
  });
  to[0] += fold(xx), to[1] += fold(xy), to[2] += fold(yy);
}

void add_products(const float* x, const float* y, int64_t n, double* to) { add_all_products(x, y, n, to); }
void add_products(const double* x, const double* y, int64_t n, double* to) { add_all_products(x, y, n, to); }

}  // namespace COMMPRESS_ISA
}  // namespace commpress
