// Probability tables of the entropy-coded quantisers, in integers alone (docs/wire-format.md, section 4.8).
#pragma once
#include <cstdint>
#include <vector>

#include "entropy_frequencies.h"

namespace commpress {
namespace entropy {

// As length_of(), f = 0 .. 4096, and that of 0 is 0.
const int64_t* lengths();

// What the wire says of a class of blocks.
struct Model {
  int shape = 1, shift = 0, largest = 0, escape = 0;
  // Every value is zero, which takes no bits.
  COMMPRESS_HD bool empty() const { return largest == 0 && !escape; }
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
template <class Magnitudes>
COMMPRESS_HD int largest_symbol(const Magnitudes& magnitudes, int64_t escapes) {
  int64_t total = escapes, left = escapes, rare = 0, least = 0;
  int top = 0, best = 0;
  for (int k = 0; k <= LARGEST; ++k) {
    const int64_t met = magnitudes[k];
    total += met;
    if (k) left += met;
    if (met) top = k;
  }
  for (int k = 0; k <= top; ++k) {
    if (k) {
      const int64_t met = magnitudes[k];
      left -= met;
      if (met * 2048 < total) ++rare;
    }
    const int64_t cost = left * (34 << 11) + rare * total + (left ? total : 0);
    if (k == 0 || cost < least) {
      best = k;
      least = cost;
    }
  }
  return best;
}

constexpr int SHAPES = sizeof(SURVIVAL) / sizeof(SURVIVAL[0]);

// From `base` on, the cheapest model that a descent over level and shape finds, and its price.
template <class Price>
COMMPRESS_HD Model descend(const Model& base, const Price& price, int64_t& least) {
  Model best = base;
  least = price(base);
  for (int shape = 0; shape < SHAPES; ++shape) {
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
  return best;
}

// The cheapest model that the descent over level and shape finds, and its cost in 2^-16 bit, escaped values included.
Model fit(const Counts& counts, int64_t relative, bool dithered, int64_t& cost);

// A bracketed secant method, never finer than `finest`, that stops within `slack` of the room: where it is. A device
// keeps it in shared memory, so it has no initial values.
struct Secant {
  int64_t j;  // the next step; after the last one, that to go on from
  bool done;
  bool has_best, has_over, has_before;
  int64_t best;  // the finest step met whose cost is within the room
  int64_t over, before_j, before_c, room, finest, slack;
  double slope;
  int left;

  COMMPRESS_HD void begin(int64_t within, int64_t first, int64_t least, int64_t near, int64_t n, int most) {
    j = first < least ? least : first;
    done = has_best = has_over = has_before = false;
    best = over = before_j = before_c = 0;
    room = within;
    finest = least;
    slack = near;
    slope = -static_cast<double>(n) / 16384.0;
    left = most;
  }
  // What step j costs.
  COMMPRESS_HD void take(int64_t c) {
    done = --left == 0;
    if (c <= room) {
      best = !has_best || j < best ? j : best;
      has_best = true;
      if (room - c <= slack || j == finest) {
        done = true;
        return;
      }
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
    move = move < -5000.0 ? -5000.0 : move > 5000.0 ? 5000.0 : round_down(move);
    int64_t step = static_cast<int64_t>(move);
    step = step < -4096 ? -4096 : step > 4096 ? 4096 : step;
    int64_t after = j + step;
    if (has_over && has_best && !(over < after && after < best)) {
      after = (over + best) >> 1;
      if (after == over) {
        j = best;
        done = true;
        return;
      }
    } else if (has_over && after <= over) {
      after = over + 1;
    } else if (has_best && after >= best) {
      after = best - 1;
    }
    j = after < finest ? finest : after;
  }
};

// found = false: no step met is within the room. `last`: to go on from.
struct Search {
  bool found;
  int64_t best, last;
};
template <class Cost>
Search search(const Cost& cost, int64_t room, int64_t j, int64_t finest, int64_t slack, int64_t n, int most) {
  Secant secant;
  secant.begin(room, j, finest, slack, n, most);
  while (!secant.done) secant.take(cost(secant.j));
  return {secant.has_best, secant.best, secant.j};
}

}  // namespace entropy
}  // namespace commpress
