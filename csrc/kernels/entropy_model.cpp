#include "entropy_model.h"

#include <cstring>

#include "entropy_tables.h"

namespace commpress {
namespace entropy {

namespace {

template <class T>
int64_t interpolated(const T (&table)[129], int64_t relative, int64_t scale) {
  int64_t place = relative + 64 * 128;
  place = place < 0 ? 0 : place > 128 * 128 - 1 ? 128 * 128 - 1 : place;
  const int64_t i = place >> 7, f = place & 127;
  return (table[i] * (128 - f) + table[i + 1] * f) * scale >> 7;
}

// Level of a class in 1/32 octave.
int64_t nominal(int64_t relative) { return (relative + 32) >> 6; }

int bit_length(uint64_t x) { return x ? 64 - __builtin_clzll(x) : 0; }

// P(X > z) in 2^-30; z in 2^-16.
int64_t survival(int shape, int64_t z) {
  const uint32_t* s = SURVIVAL[shape];
  if (z >= 1 << 21) z = (1 << 21) - 1;
  if (z < 1 << 12) return (1 << 29) - (((1 << 29) - static_cast<int64_t>(s[0])) * z >> 12);
  const int e = bit_length(static_cast<uint64_t>(z)) - 1, shift = e - 5;
  const int64_t i = ((e - 12) << 5) + ((z >> shift) & 31);
  return s[i] - ((static_cast<int64_t>(s[i]) - s[i + 1]) * (z & ((1 << shift) - 1)) >> shift);
}

// Thresholds in 2^-16 step to multiples of the mean magnitude, in 2^-16.
int64_t scaled(int64_t t, int64_t level) {
  level = level < -320 ? -320 : level > 320 ? 320 : level;
  return t * INVERSE[level & 31] >> (16 + (level >> 5));
}

int64_t frequency(int64_t above, int64_t beyond) {
  const int64_t f = ((above - beyond) * TOTAL + (1 << 29)) >> 30;
  return f < 1 ? 1 : f;
}

bool plain_row(const Model& m, int64_t level, int64_t offset, int32_t* out) {
  memset(out, 0, SYMBOLS * sizeof(int32_t));
  int64_t zero = TOTAL - m.escape, above = survival(m.shape, scaled(65536 - offset, level));
  for (int k = 1; k <= m.largest; ++k) {
    const int64_t beyond = survival(m.shape, scaled((k + 1) * int64_t{65536} - offset, level));
    const int64_t f = frequency(above, beyond);
    above = beyond;
    out[32 + k] = out[32 - k] = static_cast<int32_t>(f);
    zero -= 2 * f;
  }
  out[0] = m.escape;
  out[32] = static_cast<int32_t>(zero);
  return zero >= 1;
}

bool dithered_row(const Model& m, int64_t level, int cell, int32_t* out) {
  memset(out, 0, SYMBOLS * sizeof(int32_t));
  const auto above = [&](int k) {
    const int64_t t = k * int64_t{65536} - HALF - ((2 * cell + 1) << 11);
    const int64_t tail = survival(m.shape, scaled(t < 0 ? -t : t, level));
    return t < 0 ? (int64_t{1} << 30) - tail : tail;
  };
  int64_t zero = TOTAL - m.escape, here = above(-m.largest);
  for (int k = -m.largest; k <= m.largest; ++k) {
    const int64_t beyond = above(k + 1);
    if (k) {
      const int64_t f = frequency(here, beyond);
      out[32 + k] = static_cast<int32_t>(f);
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

double step_of(int64_t j) {
  const int64_t f = j & 2047;
  return __builtin_ldexp(static_cast<double>(STEP_COARSE[f >> 6]) * static_cast<double>(STEP_FINE[f & 63]),
                         static_cast<int>((j - f) / 2048));
}

int64_t rate_at(int64_t relative) {
  return interpolated(RATE, relative, 1) + (relative > 64 * 128 ? 2 * (relative - 64 * 128) : 0);
}

int raw_bits(int64_t relative) {
  const int64_t raw = (nominal(relative) - 64 + 31) >> 5;
  return raw < 0 ? 0 : static_cast<int>(raw);
}

int64_t dead_zone(int64_t relative) { return raw_bits(relative) ? HALF : interpolated(DEAD_ZONE, relative, 256); }

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
