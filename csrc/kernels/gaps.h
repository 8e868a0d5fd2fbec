// The range coder of positions: gaps under a geometric model. Carries are added to the bytes already written, so the
// interval's low end is one 64-bit word (Martin, "Range encoding", 1979).
#pragma once
#include "sparse.h"

namespace commpress {

constexpr int GAP_SYMBOLS = 256;  // at most; the symbol after the last says that so many coordinates follow unsent
constexpr int GAP_SLACK = 16;     // bytes that the coders may touch beyond their last

// survival[j] = 2^32 (1-p)^j, rounded down at every step; symbol j has the interval [below(j), below(j + 1)).
struct GapModel {
  int symbols;
  uint64_t survival[GAP_SYMBOLS + 1];
  uint16_t guess[1024];  // the symbol at the start of each 1024th of the interval

  explicit GapModel(int64_t fraction) {
    const uint64_t p = static_cast<uint64_t>(gap_fraction(fraction)), one = RATE_ONE;
    survival[0] = uint64_t{1} << 32;
    for (int j = 0; j < GAP_SYMBOLS; ++j) survival[j + 1] = survival[j] * (one - p) / one;
    symbols = GAP_SYMBOLS;
    while (symbols > 1 && survival[symbols] < uint64_t{1} << 22) symbols /= 2;
    int j = 0;
    for (int i = 0; i < 1024; ++i) {
      while (j < symbols && below(j + 1) <= static_cast<uint64_t>(i) << 22) ++j;
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

  // Returns the end of what was written.
  uint8_t* finish() {
    add((uint64_t{1} << 56) - 1);
    *out_++ = static_cast<uint8_t>(low_ >> 56);
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
    const double place = static_cast<double>(static_cast<int64_t>(code_ >> 11)) /
                         static_cast<double>(static_cast<int64_t>(unit)) * 0x1p-11;
    int j = model_.guess[place < 1023.0 ? static_cast<int>(place) : 1023];
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

}  // namespace commpress
