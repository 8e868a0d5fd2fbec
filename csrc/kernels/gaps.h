// Positions coded on the CPU: its model, and bytes in memory with room behind them.
#pragma once
#include "gap_coder.h"

namespace commpress {

constexpr int GAP_SLACK = 16;  // bytes that the coders may touch beyond their last

struct GapModel {
  int symbols;
  uint64_t survival[GAP_SYMBOLS + 1];
  uint16_t guess[GAP_CELLS];  // the symbol at the start of each cell of the interval

  explicit GapModel(int64_t fraction) {
    symbols = fill_survival(fraction, survival);
    int j = 0;
    for (int i = 0; i < GAP_CELLS; ++i) {
      while (j < symbols && below(j + 1) <= static_cast<uint64_t>(i) << (32 - GAP_CELL_BITS)) ++j;
      guess[i] = static_cast<uint16_t>(j);
    }
  }

  uint64_t below(int j) const { return survival[0] - survival[j]; }
  // A quotient in floating point says where to look.
  int look(uint64_t code, uint64_t unit) const {
    const double place = static_cast<double>(static_cast<int64_t>(code >> (32 - GAP_CELL_BITS))) /
                         static_cast<double>(static_cast<int64_t>(unit));
    return guess[place < GAP_CELLS - 1.0 ? static_cast<int>(place) : GAP_CELLS - 1];
  }
};

inline uint64_t load_big_endian(const uint8_t* p) {
  uint64_t word;
  memcpy(&word, p, 8);
  return __builtin_bswap64(word);
}

// Bytes that are written: the first `count` of a word, from the top, or one more in those before.
struct GapWriter {
  uint8_t* out;
  void put(uint64_t word, int count) {
    const uint64_t swapped = __builtin_bswap64(word);
    memcpy(out, &swapped, 8);
    out += count;
  }
  void carry() {
    uint8_t* byte = out;
    while (++*--byte == 0) continue;
  }
};

// Bytes that are read; GAP_SLACK zero bytes follow `end`.
struct GapReader {
  const uint8_t *in, *end;
  uint64_t take(int count) {
    const uint64_t bytes = load_big_endian(in) >> 1 >> (63 - 8 * count);
    in = in + count < end ? in + count : end;
    return bytes;
  }
};

// Writes the positions (ascending, m > 0, all below n) to out[0 .. size), size = position_nbytes(n, m), which is zero
// before. `work` has room for position_nbytes(n, n) + GAP_SLACK.
inline void encode_positions(const GapModel& model, const uint32_t* positions, int64_t m, uint8_t* work, uint8_t* out,
                             int64_t size) {
  const int64_t half = m < TWO_STREAMS ? m : m / 2;
  int64_t next = 0;
  for (int stream = 0; stream < (m < TWO_STREAMS ? 1 : 2); ++stream) {
    GapEncoder<GapModel, GapWriter> encoder(model, {work});
    for (int64_t i = stream ? half : 0; i < (stream ? m : half); ++i) {
      encoder.gap(positions[i] - next);
      next = int64_t{positions[i]} + 1;
    }
    const int64_t written = encoder.finish(m < TWO_STREAMS ? 1 : 2).out - work, most = written < size ? written : size;
    if (stream)
      for (int64_t i = 0; i < most; ++i) out[size - 1 - i] = work[i];
    else
      memcpy(out, work, most);
  }
}

// The reverse; `work` has room for 2 (size + GAP_SLACK). Returns how many positions are below n: all of them, but for
// bytes that no encoder wrote.
inline int64_t decode_positions(const GapModel& model, const uint8_t* in, int64_t size, int64_t n, int64_t m,
                                uint8_t* work, uint32_t* positions) {
  memcpy(work, in, size);
  memset(work + size, 0, GAP_SLACK);
  GapDecoder<GapModel, GapReader> first(model, load_big_endian(work), {work + 8, work + size});
  int64_t next = 0, i = 0;
  if (m < TWO_STREAMS) {
    for (; i < m; ++i) {
      next += first.gap(n);
      if (next >= n) return i;
      positions[i] = static_cast<uint32_t>(next++);
    }
    return m;
  }
  uint8_t* const back = work + size + GAP_SLACK;
  for (int64_t b = 0; b < size; ++b) back[b] = in[size - 1 - b];
  memset(back + size, 0, GAP_SLACK);
  GapDecoder<GapModel, GapReader> second(model, load_big_endian(back), {back + 8, back + size});
  const int64_t half = m / 2;
  int64_t later = 0;  // counts from the end of the first stream
  for (; i < half; ++i) {
    next += first.gap(n);
    later += second.gap(n);
    next = next < n ? next : n;  // what lies beyond counts as n
    later = later < n ? later : n;
    positions[i] = static_cast<uint32_t>(next++);
    positions[half + i] = static_cast<uint32_t>(later++);
  }
  if (m % 2) positions[m - 1] = static_cast<uint32_t>(later + second.gap(n));
  for (i = half; i < m; ++i) positions[i] += static_cast<uint32_t>(next);
  for (i = 0; i < m; ++i)
    if (positions[i] >= n) return i;
  return m;
}

}  // namespace commpress
