// The range coder of positions: gaps under a geometric model. Carries are added to the bytes already written, so the
// interval's low end is one 64-bit word (Martin, "Range encoding", 1979).
#pragma once
#include "sparse.h"

namespace commpress {

constexpr int GAP_SYMBOLS = 256;  // at most; the symbol after the last says that so many coordinates follow unsent
constexpr int GAP_CELL_BITS = 11, GAP_CELLS = 1 << GAP_CELL_BITS;
constexpr int GAP_SLACK = 16;  // bytes that the coders may touch beyond their last

// survival[j] = 2^32 (1-p)^j, rounded down at every step; symbol j has the interval [below(j), below(j + 1)).
COMMPRESS_HD int fill_survival(int64_t fraction, uint64_t* survival) {
  const uint64_t p = static_cast<uint64_t>(gap_fraction(fraction)), one = RATE_ONE;
  survival[0] = uint64_t{1} << 32;
  for (int j = 0; j < GAP_SYMBOLS; ++j) survival[j + 1] = survival[j] * (one - p) / one;
  int symbols = GAP_SYMBOLS;
  while (symbols > 1 && survival[symbols] < uint64_t{1} << 22) symbols /= 2;
  return symbols;
}

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

template <class Model, class Writer>
class GapEncoder {
 public:
  COMMPRESS_HD GapEncoder(const Model& model, Writer writer) : model_(model), writer_(writer) {}

  COMMPRESS_HD void gap(int64_t length) {
    for (; length >= model_.symbols; length -= model_.symbols) {
      const uint64_t skipped = (range_ >> 32) * model_.below(model_.symbols);
      narrow(skipped, range_ - skipped);
    }
    const uint64_t unit = range_ >> 32, begin = model_.survival[length];
    narrow(unit * (model_.survival[0] - begin), unit * (begin - model_.survival[length + 1]));
  }

  // Writes 1 byte, which says enough if zeros follow it, or 2, whatever follows. Returns the writer.
  COMMPRESS_HD const Writer& finish(int bytes) {
    add((uint64_t{1} << (64 - 8 * bytes)) - 1);
    writer_.put(low_ >> (64 - 8 * bytes) << (64 - 8 * bytes), bytes);
    return writer_;
  }

 private:
  COMMPRESS_HD void add(uint64_t what) {
    low_ += what;
    if (low_ < what) writer_.carry();
  }
  COMMPRESS_HD void narrow(uint64_t below, uint64_t width) {
    add(below);
    const int bytes = leading_zeros(width) / 8;
    writer_.put(low_, bytes);
    low_ <<= 8 * bytes;
    range_ = width << 8 * bytes;
  }

  const Model& model_;
  uint64_t low_ = 0, range_ = ~uint64_t{0};
  Writer writer_;
};

template <class Model, class Reader>
class GapDecoder {
 public:
  COMMPRESS_HD GapDecoder(const Model& model, uint64_t first_eight, Reader reader)
      : model_(model), code_(first_eight), reader_(reader) {}

  // The next gap; at least `limit` where it would pass that.
  COMMPRESS_HD int64_t gap(int64_t limit) {
    for (int64_t length = 0;; length += model_.symbols) {
      const int j = symbol();
      if (j < model_.symbols) return length + j;
      if (length >= limit) return length;
    }
  }

 private:
  COMMPRESS_HD int symbol() {
    const uint64_t unit = range_ >> 32;
    // The model says where to look, exact products decide.
    int j = model_.look(code_, unit);
    while (j < model_.symbols && code_ >= unit * model_.below(j + 1)) ++j;
    while (code_ < unit * model_.below(j)) --j;
    const uint64_t begin = unit * model_.below(j);
    const uint64_t width = j < model_.symbols ? unit * (model_.survival[j] - model_.survival[j + 1]) : range_ - begin;
    const int bytes = leading_zeros(width) / 8;
    code_ = ((code_ - begin) << 8 * bytes) | reader_.take(bytes);
    range_ = width << 8 * bytes;
    return j;
  }

  const Model& model_;
  uint64_t code_, range_ = ~uint64_t{0};
  Reader reader_;
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
