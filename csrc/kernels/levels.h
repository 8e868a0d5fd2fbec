// The quantiser of kept magnitudes: levels between the least and the largest, evenly spaced in the bits of a float,
// which is nearly evenly in the logarithm; docs/wire-format.md 4.6.
#pragma once
#include "quantise.h"
#include "sparse.h"

namespace commpress {

constexpr uint16_t LEVELS_NON_FINITE = 0xFFFF;

// Two bfloat16 patterns, the lowest and the highest level.
struct Levels {
  uint16_t low, high;
};

COMMPRESS_HD bool levels_valid(Levels levels) {
  return (levels.low == LEVELS_NON_FINITE && levels.high == LEVELS_NON_FINITE) ||
         (levels.low <= levels.high && levels.high <= SCALE16_LARGEST);
}

COMMPRESS_HD float level_value(Levels levels, int count, int code) {
  const uint32_t low = static_cast<uint32_t>(levels.low) << 16, span = (static_cast<uint32_t>(levels.high) << 16) - low;
  if (count == 1) return float_of(low);
  return float_of(low + static_cast<uint32_t>(static_cast<uint64_t>(span) * static_cast<uint32_t>(code) /
                                              static_cast<uint32_t>(count - 1)));
}

// Levels for m magnitudes (as bits, all of finite values). One level is their mean, two are the means of those above
// and of those not above the mean; more reach from half a step above the least (but at most twice the least) to the
// largest. Means are of bits, which lies below the arithmetic mean. So what rounding changes is never longer than the
// vector, which error feedback needs.
struct MagnitudeSums {
  uint64_t sum = 0;
  uint32_t least = 0xFFFFFFFFu, largest = 0;
  COMMPRESS_HD void add(uint32_t u) {
    sum += u;
    least = u < least ? u : least;
    largest = u > largest ? u : largest;
  }
};
COMMPRESS_HD uint32_t mean_magnitude(const MagnitudeSums& all, int64_t m) {
  return static_cast<uint32_t>(all.sum / static_cast<uint64_t>(m));
}
// One level, or four and more; m > 0.
COMMPRESS_HD Levels levels_of(const MagnitudeSums& all, int64_t m, int count) {
  const uint16_t mean = static_cast<uint16_t>(mean_magnitude(all, m) >> 16);
  if (count == 1) return {mean, mean};
  const uint32_t half = (all.largest - all.least) / static_cast<uint32_t>(2 * count - 1), octave = 1u << 23;
  return {static_cast<uint16_t>((all.least + (half < octave ? half : octave)) >> 16),
          static_cast<uint16_t>(all.largest >> 16)};
}
// Two levels, from the sum and the number of those above the mean of all m.
COMMPRESS_HD Levels two_levels(uint64_t sum, int64_t m, uint64_t above, int64_t number) {
  const uint64_t low = (sum - above) / static_cast<uint64_t>(m - number);  // the least is never above the mean
  const uint64_t high = number ? above / static_cast<uint64_t>(number) : low;
  return {static_cast<uint16_t>(low >> 16), static_cast<uint16_t>(high >> 16)};
}

inline Levels find_levels(const uint32_t* u, int64_t m, int count) {
  if (m == 0) return {0, 0};
  MagnitudeSums all;
  for (int64_t i = 0; i < m; ++i) all.add(u[i]);
  if (count != 2) return levels_of(all, m, count);
  const uint32_t mean = mean_magnitude(all, m);
  uint64_t above = 0;
  int64_t number = 0;
  for (int64_t i = 0; i < m; ++i) {
    above += u[i] > mean ? u[i] : 0;
    number += u[i] > mean;
  }
  return two_levels(all.sum, m, above, number);
}

// Where code c - 1 ends and c begins, 1 <= c < count.
COMMPRESS_HD float level_border(Levels levels, int count, int c) {
  return level_value(levels, count, c - 1) * 0.5f + level_value(levels, count, c) * 0.5f;
}

// Nearest levels: the code of a magnitude is the number of midpoints between neighbours that it reaches.
class Quantiser {
 public:
  Quantiser(Levels levels, int count) : count_(count), low_(static_cast<uint32_t>(levels.low) << 16) {
    const uint32_t span = (static_cast<uint32_t>(levels.high) << 16) - low_;
    per_bit_ = span ? divide(static_cast<float>(count - 1), static_cast<float>(span)) : 0.0f;
    float last = level_value(levels, count, 0);
    for (int c = 1; c < count; ++c) {
      const float next = level_value(levels, count, c);
      middle_[c] = last * 0.5f + next * 0.5f;
      last = next;
    }
    middle_[0] = 0.0f;
    middle_[count] = float_of(SCALE32_INFINITY);
  }

  // Codes of m magnitudes (as bits of floats), in place.
  void codes(uint32_t* u, int64_t m) const {
    switch (count_) {
      case 1:
        return few<1>(u, m);
      case 2:
        return few<2>(u, m);
      case 4:
        return few<4>(u, m);
      case 8:
        return few<8>(u, m);
      default:
        for (int64_t i = 0; i < m; ++i) u[i] = code(u[i]);
    }
  }

 private:
  template <int COUNT>
  void few(uint32_t* u, int64_t m) const {
    for (int64_t i = 0; i < m; ++i) {
      uint32_t code = 0;
      for (int c = 1; c < COUNT; ++c) code += float_of(u[i]) >= middle_[c];
      u[i] = code;
    }
  }
  uint32_t code(uint32_t u) const {
    // Where to look, in single precision; the midpoints decide.
    const float place = static_cast<float>(static_cast<int32_t>(u - low_)) * per_bit_, a = float_of(u);
    int c = place < 0.0f ? 0 : place < static_cast<float>(count_ - 1) ? static_cast<int>(place) : count_ - 1;
    while (a >= middle_[c + 1]) ++c;
    while (a < middle_[c]) --c;
    return static_cast<uint32_t>(c);
  }

  int count_;
  uint32_t low_;
  float per_bit_, middle_[130];
};

}  // namespace commpress
