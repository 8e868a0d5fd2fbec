#include "entropy_model.h"

#include <cstring>

#include "entropy_tables.h"

namespace commpress {
namespace entropy {

namespace {

int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

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
    for (uint64_t f = 1; f <= TOTAL; ++f) {
      const int whole = bit_length(f) - 1;
      uint64_t m = f << (30 - whole);
      int64_t log = whole;
      for (int i = 0; i < 16; ++i) {
        m = m * m >> 30;
        log = log << 1 | static_cast<int64_t>(m >> 31);
        m >>= m >> 31;
      }
      of[f] = (static_cast<int64_t>(PRECISION) << 16) - log;
    }
  }
};

}  // namespace

int largest_symbol(const int64_t (&magnitudes)[LARGEST + 1], int64_t escapes) {
  int64_t total = escapes, left = escapes, rare = 0, least = 0;
  int top = 0, best = 0;
  for (int k = 0; k <= LARGEST; ++k) {
    total += magnitudes[k];
    if (k) left += magnitudes[k];
    if (magnitudes[k]) top = k;
  }
  for (int k = 0; k <= top; ++k) {
    if (k) {
      left -= magnitudes[k];
      if (magnitudes[k] * 2048 < total) ++rare;
    }
    const int64_t cost = left * (34 << 11) + rare * total + (left ? total : 0);
    if (k == 0 || cost < least) {
      best = k;
      least = cost;
    }
  }
  return best;
}

int64_t rate_at(int64_t relative) {
  return interpolated(RATE, relative, 1) + (relative > 64 * 128 ? 2 * (relative - 64 * 128) : 0);
}

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
  Model best = base;
  int64_t least = price(base);
  for (int shape = 0; shape < static_cast<int>(sizeof(SURVIVAL) / sizeof(SURVIVAL[0])); ++shape) {
    Model here = base;
    here.shape = shape;
    here.shift = best.shift;
    int64_t value = price(here);
    for (int direction = 1; direction >= -1; direction -= 2)
      for (;;) {
        Model moved = here;
        moved.shift += direction;
        if (moved.shift < -64 || moved.shift > 63) break;
        const int64_t there = price(moved);
        if (there >= value) break;
        here = moved;
        value = there;
      }
    if (value < least) {
      best = here;
      least = value;
    }
  }
  cost = least + 32 * escaped * 65536;
  return best;
}

}  // namespace entropy
}  // namespace commpress
