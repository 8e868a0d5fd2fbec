// Rate control of a segment with a trellis, on the host and on a device. About one search of all coordinates: the step
// is found with a sample of the blocks, and on the way through the segment the price of a bit is moved so that the sum
// comes out right.
#pragma once
#include "ectcq_model.h"
#include "ectcq_tables.h"

namespace commpress {

constexpr int32_t ECTCQ_LEAST_RATE = 200000;  // below, ecsq is better
constexpr int64_t ECTCQ_PRICE = 1024;
constexpr int64_t ECTCQ_UNSEEN = 4 << 16, ECTCQ_ESCAPE = 44 << 16;  // bits of an index beyond the largest, in 2^-16
constexpr int64_t ECTCQ_MOST_PRICE = 2600;                          // of an index, in 1/256 squared step
constexpr int32_t ECTCQ_LOW_RATE = 750000;  // below, tables and rate move each other far: more turns, and slower ones

// A device cannot read the host's constants, so it has some of its own.
struct EctcqStart {
  int16_t lengths[11][2][ECTCQ_INDICES], rates[11];
  int16_t worth[7];
};
constexpr EctcqStart ectcq_made_start() {
  // Squared steps that a bit is worth, in 1/4096, at 0, 1/2, 1, ... 3 bits and beyond: the best of a normal source.
  EctcqStart start{{}, {}, {2400, 2250, 2000, 1786, 1593, 1520, 1462}};
  for (int row = 0; row < 11; ++row) {
    start.rates[row] = static_cast<int16_t>(ECTCQ_RATES[row]);
    for (int q = 0; q < 2; ++q)
      for (int k = 0; k < ECTCQ_INDICES; ++k) start.lengths[row][q][k] = static_cast<int16_t>(ECTCQ_LENGTHS[row][q][k]);
  }
  return start;
}
inline constexpr EctcqStart ECTCQ_HOST_START = ectcq_made_start();
#if defined(__CUDACC__)
__device__ const EctcqStart ECTCQ_DEVICE_START = ectcq_made_start();
#endif
COMMPRESS_HD const EctcqStart& ectcq_start() {
#if defined(__CUDA_ARCH__)
  return ECTCQ_DEVICE_START;
#else
  return ECTCQ_HOST_START;
#endif
}

COMMPRESS_HD int64_t ectcq_worth(int64_t rate) {
  constexpr int64_t half = RATE_ONE / 2;
  const int16_t (&worth)[7] = ectcq_start().worth;
  const int64_t place = at_most(rate / half, 5), f = at_most(rate - place * half, half);
  return (worth[place] * (half - f) + worth[place + 1] * f) / half;
}

// By how much a price has to rise, as a part of it, for one bit less in a coordinate.
COMMPRESS_HD int64_t ectcq_effect(int64_t rate) {
  return rate < ECTCQ_LOW_RATE ? 2 : rate < 1200000 ? 3 : rate < 2500000 ? 6 : 10;
}

// Between the rows of a table for every half octave from -2 on: the place before, and the way on from there in 1/1024.
struct EctcqBetween {
  int64_t row, f;
  COMMPRESS_HD explicit EctcqBetween(int64_t level) {
    const int64_t from = at_most(at_least(level + 4096, 0), 10 * 1024);
    row = at_most(from >> 10, 9);
    f = from - 1024 * row;
  }
  COMMPRESS_HD int64_t operator()(int64_t before, int64_t after) const { return before * (1024 - f) + after * f; }
};

// Of a normal source, in 1/4096 bit.
COMMPRESS_HD int64_t ectcq_rate_at(int64_t level) {
  const EctcqBetween at(level);
  const int16_t (&rates)[11] = ectcq_start().rates;
  return (at(rates[at.row], rates[at.row + 1]) >> 10) + 2 * at_least(level - 6144, 0);
}

// Its code length, in 2^-16 bit. Below, all indices are zero, from where no search comes back.
COMMPRESS_HD int64_t ectcq_length_at(int64_t level, int q, int k) {
  const EctcqBetween at(at_least(level, -1024));
  const EctcqStart& start = ectcq_start();
  return at(start.lengths[at.row][q][k], start.lengths[at.row + 1][q][k]) >> 2;
}

COMMPRESS_HD int64_t ectcq_bytes_of(int64_t cost) { return (cost + (1 << 19) - 1) >> 19; }

// What is known of a class in the trellis. (Of another one `counted` and `cost`, if at all.)
template <class Counts>
struct EctcqLearner {
  bool known = false;                 // whether there are lengths
  int64_t lengths[2][ECTCQ_INDICES];  // that the search reckons with, in 2^-16 bit
  int64_t first[2][ECTCQ_INDICES];    // those that a pass begins with
  int64_t counted = 0;                // blocks in `counts`
  int64_t seen = 0, cost = 0;         // blocks of the last model, and what they took in 2^-16 bit
  EctcqModel model;
  Counts counts;
  EctcqTables tables;
};

// Tables of the search where a bit is worth `worth`.
COMMPRESS_HD void ectcq_fill_tables(const EctcqModel& model, const int64_t (&lengths)[2][ECTCQ_INDICES], int64_t worth,
                                    EctcqTables& tables) {
  for (int q = 0; q < 2; ++q)
    for (int k = 0; k < ECTCQ_INDICES; ++k) {
      const int64_t price = at_most(lengths[q][k] * worth >> 20, ECTCQ_MOST_PRICE);
      tables.levels[2 * q + k % 2][k / 2] = static_cast<uint16_t>((ectcq_level(model, q, k) + 4) >> 3);
      tables.prices[2 * q + k % 2][k / 2] = static_cast<uint16_t>(price);
    }
  // From where on the second index costs less than the first; later ones follow as if they were as far apart as levels.
  for (int i = 0; i < 4; ++i) {
    const int64_t a = tables.levels[i][0], b = tables.levels[i][1];
    const int64_t more = int64_t{tables.prices[i][1]} - tables.prices[i][0];
    const int64_t edge = ((a + b) >> 1) + floor_divide(512 * more, at_least(b - a, 256));
    tables.offsets[i] = static_cast<int16_t>(2048 - at_most(at_least(edge, 16), 2816));
  }
}

// Lengths go a part of the way to those of the new model, 1/2^learning: all the way would be to and fro.
template <class Counts, class Lengths>
COMMPRESS_HD void ectcq_learn(EctcqLearner<Counts>& c, const Lengths& length, int learning) {
  if (!c.known || !c.counted) return;
  ectcq_fit_model(c.counts, length, c.model, c.cost);
  c.seen = c.counted;
  if (learning == 0) return;
  for (int q = 0; q < 2; ++q) {
    const int32_t left = ectcq_left(c.model, q);
    int64_t fresh = 0;
    for (int k = 0; k < ECTCQ_INDICES; ++k) {
      fresh = k <= c.model.largest ? length[ectcq_fitted(c.model, q, k, left)]
                                   : at_most(fresh + ECTCQ_UNSEEN, ECTCQ_ESCAPE);
      c.lengths[q][k] += (fresh - c.lengths[q][k]) >> learning;
    }
  }
}

// What all its `members` would take, in 2^-16 bit.
template <class Counts>
COMMPRESS_HD int64_t ectcq_cost_of(const EctcqLearner<Counts>& c, int64_t members) {
  if (!c.known || !c.seen) return 0;
  const int64_t own = 8 * 65536 * c.model.nbytes();
  return own + (c.cost - own) * members / c.seen;
}

// What normal blocks of the levels of `source`, an EcsqClasses or the like, would take, in 1/4096 bit for each
// coordinate of a block.
template <class Source>
COMMPRESS_HD int64_t ectcq_predicted(const Source& source, int64_t j) {
  int64_t total = 0;
  for (int k = 0; k < source.count(); ++k)
    if (source.present(k)) total += source.members(k) * (1 + ectcq_rate_at(source.level_of(k) - j));
  return total;
}

// The finest step with which so many bytes would do, if others at the step `reference` took `cost`.
template <class Source>
COMMPRESS_HD int64_t ectcq_step_for(const Source& source, int64_t target, int64_t cost, int64_t reference) {
  const int64_t limit = target * ectcq_predicted(source, reference) / at_least(cost, 1);
  int64_t low = at_least(reference - 1024, source.finest_step()) - 1, high = reference + 1024;
  while (high - low > 1) {
    const int64_t middle = (low + high) >> 1;
    (ectcq_predicted(source, middle) <= limit ? high : low) = middle;
  }
  return high;
}

// The turns of the search. Work has
//   source(), room()                its EcsqClasses or the like, and the bytes there are
//   predicted(j), step_for(...)     as above
//   set_step(j, stride)             chooses the blocks, of each class every `stride`-th one, and their spans; counts
//   anew step()                          that j spans(), span_at(i)             where the i-th begins, and one more, as
//   places among the blocks in the trellis prepare(price)                  tables of all classes that have lengths
//   price()                         that price: of a bit, in 1/1024 of its worth
//   search(first, last, again)      finds and counts indices of these spans; with `again` those before count no more
//   fit(learning)                   models and lengths
//   bytes()                         of the whole segment, as far as is known
//   forget(), keep(), go_back()     all lengths; what a pass begins with, from lengths and the other way
// On a device all threads go through the turns together, and have few registers for it: so nothing is kept here that
// can be asked for again.
template <class Work>
class EctcqTurns final {
  static constexpr int SAMPLED_BLOCKS = 128, SAMPLED_TURNS = 3, LOW_TURNS = 8, CHUNKS = 16, TURNS = 30, FINER_TURNS = 4;
  static constexpr int64_t FAR = 256;          // a move after which lengths begin anew, in 1/2048 octave
  static constexpr int64_t NEAR = 8;           // a move after which the step is good enough
  static constexpr int64_t MOST_CHANGE = 307;  // three tenths more or less

 public:
  COMMPRESS_HD explicit EctcqTurns(Work& work) : work_(work) {}

  // Finds the step and all indices. False if no step fits, or much room is left.
  COMMPRESS_HD bool run() {
    int64_t j = sample();
    for (int turn = 0; turn < TURNS; ++turn) {
      const bool fits = pass(j) && work_.source().relative(0, work_.step()) >= -(1 << 17);
      const int64_t room = work_.room(), cost = work_.bytes(), over = cost - room;
      const bool finest = work_.step() <= work_.source().finest_step();
      const bool empty = over < -(room >> 8) && turn < FINER_TURNS && !finest;
      if (fits && !empty) return over >= -(room >> 6) || finest;  // else ecsq does better
      if (over > 0 && over <= room >> 8 && shrink(0)) return true;
      j = after(turn, fits, cost);
    }
    return false;
  }

  // Makes room for about so many bytes more.
  COMMPRESS_HD bool shrink(int64_t nbytes) {
    const int64_t target = at_most(work_.bytes(), work_.room()) - nbytes;
    work_.prepare(at_least(work_.price(), ECTCQ_PRICE) + 40 * ectcq_effect(rate()));
    int span = work_.spans() ? (work_.spans() - 1) / chunk() * chunk() : -1;
    for (; span >= 0; span -= chunk()) {
      work_.search(span, end_of_chunk(span), true);
      work_.fit(0);
      if (work_.bytes() <= target) return true;
    }
    return false;
  }

 private:
  COMMPRESS_HD int64_t rate() const { return work_.source().codec().rate; }
  COMMPRESS_HD int64_t goal() const { return work_.room() - (work_.room() >> 9); }
  COMMPRESS_HD int chunk() const { return (work_.spans() + CHUNKS - 1) / CHUNKS; }
  COMMPRESS_HD int end_of_chunk(int span) const {
    return span + chunk() < work_.spans() ? span + chunk() : work_.spans();
  }

  // The next step.
  COMMPRESS_HD int64_t after(int turn, bool fits, int64_t cost) const {
    const int64_t next = work_.step_for(goal(), cost, work_.step()), move = int64_t{16} << (turn < 6 ? turn : 6),
                  j = work_.step();
    return fits ? at_least(at_most(next, j - move), work_.source().finest_step()) : at_least(next, j + move);
  }

  COMMPRESS_HD int64_t sample() {
    const bool low = rate() < ECTCQ_LOW_RATE;
    int64_t j = at_least(work_.source().first_step() - 1024, work_.source().finest_step());
    for (int turn = 0; turn < 2; ++turn) j = work_.step_for(64 * goal(), work_.predicted(j), j);
    if (low) j = at_least(j - FAR, work_.source().finest_step());
    for (int turn = 0; turn < (low ? LOW_TURNS : SAMPLED_TURNS); ++turn) {
      work_.set_step(j, at_least(work_.source().blocks() / SAMPLED_BLOCKS, 1));
      work_.prepare(ECTCQ_PRICE);
      work_.search(0, work_.spans(), false);
      work_.fit(1);
      j = work_.step_for(goal(), work_.bytes(), work_.step());
      const int64_t moved = j - work_.step();
      if (!low && turn > 0 && moved >= -NEAR && moved <= NEAR) break;
      if (moved < -FAR || moved > FAR) work_.forget();
    }
    work_.keep();
    return j;
  }

  // All blocks, in a few chunks. What is too much so far makes bits dearer in those that are left.
  COMMPRESS_HD bool pass(int64_t j) {
    work_.set_step(j, 1);
    work_.go_back();
    int change = 0, changes = 0;
    for (int span = 0; span < work_.spans(); span += chunk()) {
      work_.prepare(ECTCQ_PRICE + change);
      work_.search(span, end_of_chunk(span), false);
      work_.fit(rate() < ECTCQ_LOW_RATE ? 3 : 1);
      const int at = work_.span_at(span), stop = work_.span_at(end_of_chunk(span));
      changes += change * (stop - at);
      change = next_change(changes, stop);
    }
    return work_.bytes() <= work_.room();
  }
  COMMPRESS_HD int next_change(int changes, int stop) const {
    const int64_t total = work_.span_at(work_.spans()), effect = ectcq_effect(rate());
    if (stop == total) return 0;
    const int64_t goal = work_.room() - (work_.room() >> 10),
                  more = floor_divide((work_.bytes() - goal) * 8 * ECTCQ_PRICE * effect, (total - stop) * ECSQ_BLOCK);
    const int64_t change = floor_divide(changes, stop) + at_most(at_least(more, -ECTCQ_PRICE), ECTCQ_PRICE);
    return static_cast<int>(at_least(at_most(change, MOST_CHANGE), -MOST_CHANGE));
  }

  Work& work_;
};

}  // namespace commpress
