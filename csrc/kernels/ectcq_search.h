// Viterbi's search of `trellis` in words of 16 bits, in terms of the lanes of a trellis_words_*.h: include after it.
// Magnitudes and levels are in 1/512 step, costs in 1/256 squared step.
#pragma once
#include "ectcq.h"
#include "ectcq_code.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// |x| in 1/unit step, at most `most` steps.
static COMMPRESS_INLINE Words ectcq_words(const float* x, float gain, float inverse, float most, float unit) {
  return words_from([&](int i) __attribute__((always_inline)) {
    const Floats v = absolute(load(x + 16 * i) * all(gain) * all(inverse));
    return rounded(floats(smaller(bits(v), bits(all(most)))) * all(unit));
  });
}

// What the search remembers of one row: |k| div 2 for each quantiser and parity, four bits each, and for each state
// whether an odd index led there.
template <int STATES>
struct EctcqRow {
  static constexpr int SETS = STATES < 16 ? 1 : STATES / 16, STATES_OF_SET = STATES < 16 ? STATES : 16;
  uint16_t halves[WORD_LANES], odd[SETS][WORD_LANES];
};

struct EctcqBranches {
  WordTable levels[4], prices[4];
  Words offsets[4];
  explicit EctcqBranches(const EctcqTables& t) {
    for (int c = 0; c < 4; ++c) {
      levels[c] = WordTable(t.levels[c]);
      prices[c] = WordTable(t.prices[c]);
      offsets[c] = all_words(static_cast<uint16_t>(t.offsets[c]));
    }
  }
  // Costs by 2 quantiser + parity; the choices.
  COMMPRESS_INLINE Words weigh(Words a, Words (&cost)[4]) const {
    Words halves = all_words(0);
    each<4>([&](auto c) __attribute__((always_inline)) {
      const Words h = shift_right(larger_signed(a + offsets[c], all_words(0)), 11);
      const WordIndex at(h);
      const Words error = shift_left(a - look_up(levels[c], at), 3);
      cost[c] = smaller(high_square(error) + look_up(prices[c], at), all_words(ECTCQ_MOST_COST));
      halves = halves | shift_left(h, 4 * c);
    });
    return halves;
  }
};

// Costs stay below 2^16: a state is reached from every other one within log2(STATES) rows, so that they differ by at
// most 8 ECTCQ_MOST_COST, and four rows add as much as 4 ECTCQ_MOST_COST.
template <int STATES>
static COMMPRESS_INLINE void ectcq_renormalise(Words* cost) {
  Words least = cost[0];
  for (int s = 1; s < STATES; ++s) least = smaller(least, cost[s]);
  for (int s = 0; s < STATES; ++s) cost[s] = cost[s] - least;
}

template <int STATES>
static COMMPRESS_INLINE void ectcq_advance(const Words* cost, const Words (&branch)[4], Words* next,
                                           EctcqRow<STATES>& row) {
  using Trellis = EctcqTrellis<STATES>;
  using Row = EctcqRow<STATES>;
  for (int set = 0; set < Row::SETS; ++set) {
    Words odd = all_words(0);
    const auto state = [&](auto i) __attribute__((always_inline)) {
      const uint32_t s = static_cast<uint32_t>(16 * set + i), q = Trellis::quantiser(s);
      const Words even = cost[Trellis::from(s, 0)] + branch[2 * q];
      next[s] = smaller(even, cost[Trellis::from(s, 1)] + branch[2 * q + 1]);
      odd = odd | without(all_words(1u << i), where_equal(next[s], even));
    };
    each<Row::STATES_OF_SET>(state);
    store_words(row.odd[set], odd);
  }
}

// Rows of WORD_LANES coordinates, 32 apart, from lane `first` of each block on; the state of least cost of each lane.
template <int STATES>
static void ectcq_walk(const EctcqBlock* blocks, int64_t count, int first, float gain, float inverse,
                       EctcqRow<STATES>* row, uint16_t* last) {
  Words costs[2][STATES];
  for (int s = 0; s < STATES; ++s) costs[0][s] = all_words(s == 0 ? 0 : 0x8000);
  for (int64_t b = 0; b < count; ++b) {
    const EctcqBranches branches(*blocks[b].tables);
    const float* const x = blocks[b].x + first;
    for (int i = 0; i < 16; i += 2) {
      if (i % 4 == 0) ectcq_renormalise<STATES>(costs[0]);
      each<2>([&](auto turn) __attribute__((always_inline)) {
        Words branch[4];
        const Words a = ectcq_words(x + 32 * (i + turn), gain, inverse, ECTCQ_MOST_MAGNITUDE, 512.0f);
        store_words(row->halves, branches.weigh(a, branch));
        ectcq_advance<STATES>(costs[turn], branch, costs[1 - turn], *row++);
      });
    }
  }
  alignas(64) uint16_t cost[STATES][WORD_LANES];
  for (int s = 0; s < STATES; ++s) store_words(cost[s], costs[0][s]);
  for (int lane = 0; lane < WORD_LANES; ++lane) {
    last[lane] = 0;
    for (uint16_t s = 1; s < STATES; ++s)
      if (cost[s][lane] < cost[last[lane]][lane]) last[lane] = s;
  }
}

// Up to 16 states: lanes side by side.
template <int STATES>
static COMMPRESS_INLINE Words ectcq_step_back(const EctcqRow<STATES>& row, Words state, const WordTable& bit,
                                              const WordTable& place, uint8_t* cells) {
  using Trellis = EctcqTrellis<STATES>;
  const Words one = all_words(1), zero = all_words(0);
  const Words q = shift_right(state, Trellis::HIGHEST);
  const Words even = where_equal(load_words(row.odd[0]) & look_up(bit, WordIndex(state)), zero);
  const Words p = without(one, even);
  const Words moved =
      state ^ ((zero - q) & all_words(Trellis::CODE.feedback)) ^ without(all_words(Trellis::CODE.parity), even);
  const Words which = shift_left(q, 1) | p;
  const Words h = shift_right(load_words(row.halves) * look_up(place, WordIndex(which)), 12);
  store_low_bytes(cells, shift_left(q, 5) | shift_left(h, 1) | p);
  return shift_left(moved, 1) | q;
}

template <int STATES>
static void ectcq_trace_words(const EctcqBlock* blocks, int64_t count, const EctcqRow<STATES>* rows,
                              const uint16_t* last) {
  constexpr int PARTS = 32 / WORD_LANES;
  static constexpr uint16_t BITS[16] = {1,     2,     4,     8,     0x10,   0x20,   0x40,   0x80,
                                        0x100, 0x200, 0x400, 0x800, 0x1000, 0x2000, 0x4000, 0x8000},
                            PLACES[16] = {0x1000, 0x100, 0x10, 1};
  const WordTable bit(BITS), place(PLACES);
  Words state[PARTS];
  for (int part = 0; part < PARTS; ++part) state[part] = load_words(last + WORD_LANES * part);
  for (int64_t at = 16 * count; at-- > 0;) {
    uint8_t* const cells = blocks[at / 16].cells + 32 * (at % 16);
    for (int part = 0; part < PARTS; ++part)
      state[part] = ectcq_step_back(rows[16 * count * part + at], state[part], bit, place, cells + WORD_LANES * part);
  }
}

template <int STATES>
static void ectcq_trace_lanes(const EctcqBlock* blocks, int64_t count, const EctcqRow<STATES>* rows, int first,
                              uint16_t* state) {
  using Trellis = EctcqTrellis<STATES>;
  for (int64_t at = 16 * count; at-- > 0;) {
    uint8_t* const cells = blocks[at / 16].cells + 32 * (at % 16) + first;
    const EctcqRow<STATES>& row = rows[at];
    for (int lane = 0; lane < WORD_LANES; ++lane) {
      const uint32_t s = state[lane], q = Trellis::quantiser(s), p = row.odd[s / 16][lane] >> s % 16 & 1u;
      cells[lane] = static_cast<uint8_t>(q << 5 | (row.halves[lane] >> 4 * (2 * q + p) & 15) << 1 | p);
      state[lane] = static_cast<uint16_t>(Trellis::from(s, p));
    }
  }
}

template <int STATES>
static void ectcq_search_states(const EctcqBlock* blocks, int64_t count, float gain, float inverse, void* scratch) {
  auto* const rows = static_cast<EctcqRow<STATES>*>(scratch);
  alignas(64) uint16_t last[32];
  for (int first = 0; first < 32; first += WORD_LANES) {
    EctcqRow<STATES>* const mine = rows + (STATES <= 16 ? 16 * count * (first / WORD_LANES) : 0);
    ectcq_walk<STATES>(blocks, count, first, gain, inverse, mine, last + first);
    if constexpr (STATES > 16) ectcq_trace_lanes<STATES>(blocks, count, rows, first, last + first);
  }
  if constexpr (STATES <= 16) ectcq_trace_words<STATES>(blocks, count, rows, last);
}

static void ectcq_search(int states, const EctcqBlock* blocks, int64_t count, float gain, float inverse,
                         void* scratch) {
  switch (states) {
    case 8:
      return ectcq_search_states<8>(blocks, count, gain, inverse, scratch);
    case 16:
      return ectcq_search_states<16>(blocks, count, gain, inverse, scratch);
    case 32:
      return ectcq_search_states<32>(blocks, count, gain, inverse, scratch);
    case 64:
      return ectcq_search_states<64>(blocks, count, gain, inverse, scratch);
    case 128:
      return ectcq_search_states<128>(blocks, count, gain, inverse, scratch);
    default:
      return ectcq_search_states<256>(blocks, count, gain, inverse, scratch);
  }
}

// In 1/256 step, at most 64; whether any of them is beyond ECTCQ_FARTHEST.
static COMMPRESS_INLINE bool ectcq_magnitudes(const EctcqBlock& block, float gain, float inverse, uint16_t* w) {
  Words most = all_words(0);
  for (int64_t i = 0; i < ECSQ_BLOCK; i += WORD_LANES) {
    const Words here = ectcq_words(block.x + i, gain, inverse, 64.0f, 256.0f);
    store_words(w + i, here);
    most = larger_signed(most, here);
  }
  uint16_t lanes[WORD_LANES];
  store_words(lanes, most);
  bool beyond = false;
  for (const uint16_t lane : lanes) beyond |= lane > ECTCQ_FARTHEST;
  return beyond;
}

static void ectcq_count(const EctcqBlock& block, float gain, float inverse, EctcqCounts& counts) {
  alignas(64) uint16_t w[ECSQ_BLOCK];
  const bool beyond = ectcq_magnitudes(block, gain, inverse, w);
  for (int64_t i = 0; i < ECSQ_BLOCK; i += 4)
    each<4>([&](auto k) __attribute__((always_inline)) {
      counts.parts[k][block.cells[i + k]] += uint64_t{1} << 40 | w[i + k];
    });
  counts.squares += sum_squares(w, ECSQ_BLOCK);
  for (int64_t i = 0; beyond && i < ECSQ_BLOCK; ++i)
    if (w[i] > ECTCQ_FARTHEST) {
      counts.parts[i % 4][block.cells[i]] -= uint64_t{1} << 40 | w[i];
      counts.squares -= static_cast<int64_t>(w[i]) * w[i];
      ++counts.beyond[block.cells[i] >> 5];
    }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
