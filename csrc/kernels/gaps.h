// The range coder of positions: gaps under a geometric model. Carries are added to the bytes already written, so the
// interval's low end is one 64-bit word (Martin, "Range encoding", 1979).
#pragma once
#include "sparse.h"

namespace commpress {

constexpr int GAP_SYMBOLS = 256;  // at most; the symbol after the last says that so many coordinates follow unsent
constexpr int GAP_CELL_BITS = 11, GAP_CELLS = 1 << GAP_CELL_BITS;
constexpr int GAP_SLACK = 16;  // bytes that the coders may touch beyond their last

// survival[j] = 2^32 (1-p)^j, rounded down at every step; symbol j has the interval [below(j), below(j + 1)).
struct GapModel {
  int symbols;
  uint64_t survival[GAP_SYMBOLS + 1];
  uint16_t guess[GAP_CELLS];  // the symbol at the start of each cell of the interval

  explicit GapModel(int64_t fraction) {
    const uint64_t p = static_cast<uint64_t>(gap_fraction(fraction)), one = RATE_ONE;
    survival[0] = uint64_t{1} << 32;
    for (int j = 0; j < GAP_SYMBOLS; ++j) survival[j + 1] = survival[j] * (one - p) / one;
    symbols = GAP_SYMBOLS;
    while (symbols > 1 && survival[symbols] < uint64_t{1} << 22) symbols /= 2;
    int j = 0;
    for (int i = 0; i < GAP_CELLS; ++i) {
      while (j < symbols && below(j + 1) <= static_cast<uint64_t>(i) << (32 - GAP_CELL_BITS)) ++j;
      guess[i] = static_cast<uint16_t>(j);
    }
  }

  uint64_t below(int j) const { return survival[0] - survival[j]; }
};

inline uint64_t load_big_endian(const uint8_t* p) {
  uint64_t word;
  memcpy(&word, p, 8);
  return __builtin_bswap64(word);
}

class GapEncoder {
 public:
  GapEncoder(const GapModel& model, uint8_t* out) : model_(model), out_(out) {}

  void gap(int64_t length) {
    for (; length >= model_.symbols; length -= model_.symbols) {
      const uint64_t skipped = (range_ >> 32) * model_.below(model_.symbols);
      narrow(skipped, range_ - skipped);
    }
    const uint64_t unit = range_ >> 32, begin = model_.survival[length];
    narrow(unit * (model_.survival[0] - begin), unit * (begin - model_.survival[length + 1]));
  }

  // Writes 1 byte, which says enough if zeros follow it, or 2, whatever follows. Returns the end of what was written.
  uint8_t* finish(int bytes) {
    add((uint64_t{1} << (64 - 8 * bytes)) - 1);
    for (int i = 0; i < bytes; ++i) *out_++ = static_cast<uint8_t>(low_ >> (56 - 8 * i));
    return out_;
  }

 private:
  void add(uint64_t what) {
    low_ += what;
    if (low_ >= what) return;
    uint8_t* byte = out_;
    while (++*--byte == 0) continue;
  }
  void narrow(uint64_t below, uint64_t width) {
    add(below);
    const int bytes = __builtin_clzll(width) / 8;
    const uint64_t word = __builtin_bswap64(low_);
    memcpy(out_, &word, 8);
    out_ += bytes;
    low_ <<= 8 * bytes;
    range_ = width << 8 * bytes;
  }

  const GapModel& model_;
  uint64_t low_ = 0, range_ = ~uint64_t{0};
  uint8_t* out_;
};

class GapDecoder {
 public:
  // `in` holds GAP_SLACK zero bytes beyond `end`.
  GapDecoder(const GapModel& model, const uint8_t* in, const uint8_t* end)
      : model_(model), code_(load_big_endian(in)), in_(in + 8), end_(end) {}

  // The next gap; at least `limit` where it would pass that.
  int64_t gap(int64_t limit) {
    for (int64_t length = 0;; length += model_.symbols) {
      const int j = symbol();
      if (j < model_.symbols) return length + j;
      if (length >= limit) return length;
    }
  }

 private:
  int symbol() {
    const uint64_t unit = range_ >> 32;
    // A quotient in floating point says where to look, exact products decide.
    const double place = static_cast<double>(static_cast<int64_t>(code_ >> (32 - GAP_CELL_BITS))) /
                         static_cast<double>(static_cast<int64_t>(unit));
    int j = model_.guess[place < GAP_CELLS - 1.0 ? static_cast<int>(place) : GAP_CELLS - 1];
    while (j < model_.symbols && code_ >= unit * model_.below(j + 1)) ++j;
    while (code_ < unit * model_.below(j)) --j;
    const uint64_t begin = unit * model_.below(j);
    const uint64_t width = j < model_.symbols ? unit * (model_.survival[j] - model_.survival[j + 1]) : range_ - begin;
    const int bytes = __builtin_clzll(width) / 8;
    code_ = ((code_ - begin) << 8 * bytes) | (load_big_endian(in_) >> 1 >> (63 - 8 * bytes));
    range_ = width << 8 * bytes;
    in_ = in_ + bytes < end_ ? in_ + bytes : end_;
    return j;
  }

  const GapModel& model_;
  uint64_t code_, range_ = ~uint64_t{0};
  const uint8_t *in_, *end_;
};

// Writes the positions (ascending, m > 0, all below n) to out[0 .. size), size = position_nbytes(n, m), which is zero
// before. `work` has room for position_nbytes(n, n) + GAP_SLACK.
inline void encode_positions(const GapModel& model, const uint32_t* positions, int64_t m, uint8_t* work, uint8_t* out,
                             int64_t size) {
  const int64_t half = m < TWO_STREAMS ? m : m / 2;
  int64_t next = 0;
  for (int stream = 0; stream < (m < TWO_STREAMS ? 1 : 2); ++stream) {
    GapEncoder encoder(model, work);
    for (int64_t i = stream ? half : 0; i < (stream ? m : half); ++i) {
      encoder.gap(positions[i] - next);
      next = int64_t{positions[i]} + 1;
    }
    const int64_t written = encoder.finish(m < TWO_STREAMS ? 1 : 2) - work, most = written < size ? written : size;
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
  GapDecoder first(model, work, work + size);
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
  GapDecoder second(model, back, back + size);
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
