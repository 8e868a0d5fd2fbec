// Tables of the classes of blocks: a warp makes those of one row, a dither's cell or a quantiser of the trellis.
#pragma once
#include "cuda_entropy.h"

namespace commpress {
namespace cuda {

// Symbols of a class, in order: the escape, if there is one, and values from -largest to largest.
COMMPRESS_DEVICE int entries_of(const ClassHeader& c) { return 2 * c.largest + 1 + c.escape; }
COMMPRESS_DEVICE int value_of_entry(const ClassHeader& c, int entry) { return entry - c.escape - c.largest; }

COMMPRESS_DEVICE int rows_of(const EntropySpace& s, int kind) {
  const ClassHeader& c = s.of_class[kind];
  return c.trellis ? 2 : s.dither && c.raw == 0 ? entropy::CELLS : 1;
}

// The frequency of a value that is not zero, as the model says.
COMMPRESS_DEVICE int32_t modelled(const EntropySpace& s, const uint8_t* in, int kind, int row, int value) {
  const ClassHeader& c = s.of_class[kind];
  const int relative = relative_of_class(s, kind), shape = in[c.at + 1] >> 5, shift = (in[c.at] & 127) - 64;
  const int64_t level = entropy::nominal(relative) - 32 * c.raw + shift;
  if (s.dither && c.raw == 0)
    return entropy::frequency(entropy::dithered_tail(shape, level, row, value),
                              entropy::dithered_tail(shape, level, row, value + 1));
  const int64_t offset = entropy::dead_zone(relative);
  const int magnitude = value < 0 ? -value : value;
  return entropy::frequency(entropy::plain_tail(shape, level, offset, magnitude),
                            entropy::plain_tail(shape, level, offset, magnitude + 1));
}

// Of a warp's lane l: frequency of symbol number l, of number l + 32 (<< 13), and 1 << 31 if the row is possible.
constexpr uint32_t POSSIBLE = 1u << 31;
COMMPRESS_DEVICE uint32_t frequency_of_half(uint32_t both, int half) { return both >> 13 * half & 0x1FFF; }
COMMPRESS_SELDOM uint32_t frequencies_of_row(const EntropySpace& s, const uint8_t* in, int kind, int row) {
  const ClassHeader& c = s.of_class[kind];
  const int count = entries_of(c), lane = thread() % 32;
  const uint8_t* const codes = in + c.at + 6 + row * c.largest;  // of a trellis' quantiser; that of 1 is codes[1]
  const bool ample = c.trellis && in[c.at] >> (5 + row) & 1;     // its code of 1 is zero's
  const int32_t zero = ample && c.largest ? ectcq_frequency(codes[1]) : 0;
  bool valid = !ample || zero > 0;
  int32_t f[2] = {0, 0}, own = 0;
  COMMPRESS_UNROLL_ALL
  for (int half = 0; half < 2; ++half) {
    const int entry = lane + 32 * half, value = value_of_entry(c, entry), magnitude = value < 0 ? -value : value;
    if (entry >= count || entry < c.escape || magnitude < (ample ? 2 : 1)) continue;
    f[half] = c.trellis ? ectcq_frequency(codes[magnitude]) : modelled(s, in, kind, row, value);
    valid = valid && f[half] > 0;
    own += f[half];
  }
  const int32_t left = entropy::TOTAL - c.escape - zero - __reduce_add_sync(ALL_LANES, own);
  COMMPRESS_UNROLL_ALL
  for (int half = 0; half < 2; ++half) {
    const int entry = lane + 32 * half, value = value_of_entry(c, entry);
    if (entry < c.escape) f[half] = 1;
    if (entry < c.escape || entry >= count) continue;
    if (value == 0) f[half] = ample ? zero + left % 2 : left;
    if (ample && (value == 1 || value == -1)) f[half] = left / 2;
  }
  valid = __all_sync(ALL_LANES, valid && left >= (ample ? 2 : 1));
  return (static_cast<uint32_t>(f[0]) & 0x1FFF) | (static_cast<uint32_t>(f[1]) & 0x1FFF) << 13 | (valid ? POSSIBLE : 0);
}

// Whether the tables of all classes are possible; by all, each warp for its own.
COMMPRESS_DEVICE bool classes_valid(const EntropySpace& s, const uint8_t* in) {
  bool valid = true;
  for (int task = thread() / 32; task < s.classes * s.shape.rows; task += ENTROPY_WARPS) {
    const int kind = task / s.shape.rows, row = task % s.shape.rows;
    if (s.of_class[kind].at && row < rows_of(s, kind))
      valid = valid && (frequencies_of_row(s, in, kind, row) & POSSIBLE);
  }
  return valid;
}

// A symbol's entry: first slot, frequency << 12, number << 24.
COMMPRESS_DEVICE uint32_t first_of(uint32_t entry) { return entry & 0xFFF; }
COMMPRESS_DEVICE uint32_t frequency_in(uint32_t entry) { return entry >> 12 & 0xFFF; }

// The value that a symbol without raw bits and dither stands for; in steps if it is to be rotated.
COMMPRESS_DEVICE float value_of_symbol(const EntropySpace& s, const uint8_t* in, int kind, int row, int q) {
  const ClassHeader& c = s.of_class[kind];
  const int8_t* const places = reinterpret_cast<const int8_t*>(in + c.at + (c.trellis ? 1 + 3 * row : 2));
  const int a = q < 0 ? -q : q, level = c.trellis ? ectcq_magnitude(places, row, a) : ecsq_magnitude(places, a);
  const double v = static_cast<double>(q < 0 ? -level : level) * static_cast<double>(s.rho) / 4096;
  return static_cast<float>(s.rotate ? v : ecsq_finite(v * s.scale));
}

// One row of a class's tables; by a whole warp.
COMMPRESS_DEVICE void fill_row(EntropySpace& s, const uint8_t* in, int kind, int row, int slot) {
  const ClassHeader& c = s.of_class[kind];
  const int lane = thread() % 32, count = entries_of(c), cells = s.shape.cells();
  uint32_t* const cell = s.tables + (slot * s.shape.rows + row) * s.shape.row_words;
  uint32_t* const symbols = cell + cells;
  const uint32_t frequencies = frequencies_of_row(s, in, kind, row);
  uint32_t before = 0;
  COMMPRESS_UNROLL_ALL
  for (int half = 0; half < 2; ++half) {
    const uint32_t f = frequency_of_half(frequencies, half);
    uint32_t sum = f;
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(distance));
      sum += lane >= distance ? other : 0;
    }
    const int entry = lane + 32 * half;
    if (entry < count) symbols[entry] = (before + sum - f) | f << 12 | static_cast<uint32_t>(entry) << 24;
    before += __shfl_sync(ALL_LANES, sum, 31);
  }
  __syncwarp();
  for (int i = lane; i < cells; i += 32) {
    int entry = 0;
    for (int step = 32; step; step /= 2)
      if (entry + step < count && first_of(symbols[entry + step]) <= static_cast<uint32_t>(i) << s.shape.cell_bits)
        entry += step;
    cell[i] = symbols[entry];
  }
  if (s.dither || c.raw > 0) return;
  float* const values = reinterpret_cast<float*>(symbols + entropy::SYMBOLS);
  for (int entry = lane; entry < count; entry += 32) {
    const int q = value_of_entry(c, entry);
    if (entry >= c.escape) values[32 + q] = value_of_symbol(s, in, kind, row, q);
  }
}

// Makes the tables that a part lacks; by all, a row for each warp. A barrier must follow.
COMMPRESS_DEVICE void fill_tables_of(EntropySpace& s, const Part& part, const uint8_t* in) {
  const int rows = s.shape.rows;
  for (int task = thread() / 32; task < part.fills * rows; task += ENTROPY_WARPS) {
    const int kind = part.fill_kind[task / rows], row = task % rows;
    if (row < rows_of(s, kind)) fill_row(s, in, kind, row, part.fill_slot[task / rows]);
  }
}

}  // namespace cuda
}  // namespace commpress
