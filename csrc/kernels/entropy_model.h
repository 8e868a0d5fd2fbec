// Probability tables of the entropy-coded quantisers, in integers alone (docs/wire-format.md, section 4.8).
#pragma once
#include <cstdint>
#include <vector>

#include "entropy_frequencies.h"

namespace commpress {
namespace entropy {

// Bits of a normal source in 1/4096, at a level of its mean magnitude in 1/2048 octave above the step.
int64_t rate_at(int64_t relative);
// -log2(f / 4096) in 2^-16 bit, f = 0 .. 4096.
const int64_t* lengths();

// What the wire says of a class of blocks.
struct Model {
  int shape = 1, shift = 0, largest = 0, escape = 0;
  // Every value is zero, which takes no bits.
  bool empty() const { return largest == 0 && !escape; }
};

// The frequencies of one class: 64, or 64 for each cell of the dither.
struct Frequencies {
  int rows = 1;
  int32_t of[CELLS][SYMBOLS];
};

// False where the model is impossible: there is nothing left for zero.
bool frequencies_of(const Model& model, int64_t relative, bool dithered, Frequencies& out);

// Symbols met, for each row of Frequencies.
struct Counts {
  int rows = 1;
  int64_t of[CELLS][SYMBOLS] = {{0}};
};

// Of counts of magnitudes: the fewest symbols where giving up a magnitude's two costs less in escapes than it saves.
int largest_symbol(const int64_t (&magnitudes)[LARGEST + 1], int64_t escapes);

// The cheapest model that the descent over level and shape finds, and its cost in 2^-16 bit, escaped values included.
Model fit(const Counts& counts, int64_t relative, bool dithered, int64_t& cost);

// A bracketed secant method, never finer than `finest`, that stops within `slack` of the room: the finest step met
// whose cost is within `room` (found = false: none), and the step to go on from.
struct Search {
  bool found;
  int64_t best, last;
};
template <class Cost>
Search search(const Cost& cost, int64_t room, int64_t j, int64_t finest, int64_t slack, int64_t n, int most) {
  if (j < finest) j = finest;
  bool has_over = false, has_best = false, has_before = false;
  int64_t over = 0, best = 0, before_j = 0, before_c = 0;
  double slope = -static_cast<double>(n) / 16384.0;
  for (int i = 0; i < most; ++i) {
    const int64_t c = cost(j);
    if (c <= room) {
      best = !has_best || j < best ? j : best;
      has_best = true;
      if (room - c <= slack || j == finest) return {true, best, j};
    } else {
      over = !has_over || j > over ? j : over;
      has_over = true;
    }
    if (has_before && before_j != j && static_cast<double>(c - before_c) * static_cast<double>(j - before_j) < 0)
      slope = static_cast<double>(c - before_c) / static_cast<double>(j - before_j);
    has_before = true;
    before_j = j;
    before_c = c;
    double move = static_cast<double>(room - slack / 2 - c) / slope + 0.5;
    move = move < -5000.0 ? -5000.0 : move > 5000.0 ? 5000.0 : __builtin_floor(move);
    int64_t step = static_cast<int64_t>(move);
    step = step < -4096 ? -4096 : step > 4096 ? 4096 : step;
    int64_t after = j + step;
    if (has_over && has_best && !(over < after && after < best)) {
      after = (over + best) >> 1;
      if (after == over) return {true, best, best};
    } else if (has_over && after <= over) {
      after = over + 1;
    } else if (has_best && after >= best) {
      after = best - 1;
    }
    j = after < finest ? finest : after;
  }
  return {has_best, best, j};
}

}  // namespace entropy
}  // namespace commpress
