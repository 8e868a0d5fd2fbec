#include "entropy_model.h"

#include <cstring>

#include "entropy_tables.h"

namespace commpress {
namespace entropy {

namespace {

bool plain_row(const Model& m, int64_t level, int64_t offset, int32_t* out) {
  memset(out, 0, SYMBOLS * sizeof(int32_t));
  int64_t zero = TOTAL - m.escape, above = plain_tail(m.shape, level, offset, 1);
  for (int k = 1; k <= m.largest; ++k) {
    const int64_t beyond = plain_tail(m.shape, level, offset, k + 1);
    const int32_t f = frequency(above, beyond);
    above = beyond;
    out[32 + k] = out[32 - k] = f;
    zero -= 2 * f;
  }
  out[0] = m.escape;
  out[32] = static_cast<int32_t>(zero);
  return zero >= 1;
}

bool dithered_row(const Model& m, int64_t level, int cell, int32_t* out) {
  memset(out, 0, SYMBOLS * sizeof(int32_t));
  int64_t zero = TOTAL - m.escape, here = dithered_tail(m.shape, level, cell, -m.largest);
  for (int k = -m.largest; k <= m.largest; ++k) {
    const int64_t beyond = dithered_tail(m.shape, level, cell, k + 1);
    if (k) {
      const int32_t f = frequency(here, beyond);
      out[32 + k] = f;
      zero -= f;
    }
    here = beyond;
  }
  out[0] = m.escape;
  out[32] = static_cast<int32_t>(zero);
  return zero >= 1;
}

struct Lengths {
  int64_t of[TOTAL + 1] = {0};
  Lengths() {
    for (uint32_t f = 1; f <= TOTAL; ++f) of[f] = length_of(f);
  }
};

}  // namespace

const int64_t* lengths() {
  static const Lengths made;
  return made.of;
}

bool frequencies_of(const Model& m, int64_t relative, bool dithered, Frequencies& out) {
  const int raw = raw_bits(relative);
  const int64_t level = nominal(relative) - 32 * raw + m.shift;
  out.rows = dithered && !raw ? CELLS : 1;
  if (out.rows == 1) return plain_row(m, level, dead_zone(relative), out.of[0]);
  for (int cell = 0; cell < CELLS; ++cell)
    if (!dithered_row(m, level, cell, out.of[cell])) return false;
  return true;
}

Model fit(const Counts& counts, int64_t relative, bool dithered, int64_t& cost) {
  int64_t magnitudes[LARGEST + 1] = {0}, escaped = 0;
  for (int row = 0; row < counts.rows; ++row) {
    escaped += counts.of[row][0];
    for (int k = -LARGEST; k <= LARGEST; ++k) magnitudes[k < 0 ? -k : k] += counts.of[row][32 + k];
  }
  Model base;
  base.largest = largest_symbol(magnitudes, escaped);
  for (int k = base.largest + 1; k <= LARGEST; ++k) escaped += magnitudes[k];
  base.escape = escaped > 0;
  cost = 0;
  if (base.empty()) return base;
  const int64_t* const length = lengths();
  const auto price = [&](const Model& m) {
    Frequencies f;
    if (!frequencies_of(m, relative, dithered, f)) return int64_t{1} << 62;
    int64_t sum = escaped * length[f.of[0][0]];  // alike in every row
    for (int row = 0; row < f.rows; ++row)
      for (int k = -m.largest; k <= m.largest; ++k) sum += counts.of[row][32 + k] * length[f.of[row][32 + k]];
    return sum;
  };
  int64_t least;
  const Model best = descend(base, price, least);
  cost = least + 32 * escaped * 65536;
  return best;
}

}  // namespace entropy
}  // namespace commpress
