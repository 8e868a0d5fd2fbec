// The range coder of positions: gaps under a geometric model, with integers alone, on every processor. Carries are
// added to the bytes already written, so the interval's low end is one 64-bit word (Martin, "Range encoding", 1979).
#pragma once
#include "sparse.h"

namespace commpress {

constexpr int GAP_SYMBOLS = 256;  // at most; the symbol after the last says that so many coordinates follow unsent
constexpr int GAP_CELL_BITS = 11, GAP_CELLS = 1 << GAP_CELL_BITS;

// survival[j] = 2^32 (1-p)^j, rounded down at every step; symbol j has the interval [below(j), below(j + 1)).
COMMPRESS_HD int fill_survival(int64_t fraction, uint64_t* survival) {
  const uint64_t p = static_cast<uint64_t>(gap_fraction(fraction)), one = RATE_ONE;
  survival[0] = uint64_t{1} << 32;
  for (int j = 0; j < GAP_SYMBOLS; ++j) survival[j + 1] = survival[j] * (one - p) / one;
  int symbols = GAP_SYMBOLS;
  while (symbols > 1 && survival[symbols] < uint64_t{1} << 22) symbols /= 2;
  return symbols;
}

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

}  // namespace commpress
