// The search of `trellis` on the device: a warp has a span of blocks, each lane one of its 32 chains. Costs and choices
// are those of ectcq_search.h; eight states have their costs in registers, which hold those of a span, more in the
// warp's share of the scratch memory, in 16 bits.
#pragma once
#include "cuda_device.h"
#include "ectcq_chains.h"

namespace commpress {
namespace cuda {

// Adds to a number in global memory, of which the compiler cannot know that a pointer leads there that was in memory
// itself: it would add for every kind of memory.
COMMPRESS_DEVICE void add_globally(unsigned long long* to, unsigned long long value) {
#if defined(__CUDACC__)
  asm volatile("red.global.add.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "l"(value) : "memory");
#else
  atomicAdd(to, value);
#endif
}
COMMPRESS_DEVICE void add_globally(uint32_t* to, uint32_t value) {
#if defined(__CUDACC__)
  asm volatile("red.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(value) : "memory");
#else
  atomicAdd(to, value);
#endif
}

// A warp's share of shared memory.
struct ChainSpace {
  uint32_t branches[4][16];  // level | price << 16 of a class, by 2 quantiser + parity and |k| div 2
  uint32_t met[64];          // number << 22 | sum of magnitudes, of at most 256 coordinates
};

// What all spans have in common.
struct Chains {
  const float* x;  // of the segment
  int n;           // behind its end are zeros
  float gain, inverse;
  const int32_t* blocks;  // of the trellis
  const int8_t* kinds;    // of all blocks
  ChainClass* classes;
  uint8_t* cells;  // of all blocks

  // Coordinate i of a block.
  COMMPRESS_DEVICE float value(int block, int i) const {
    const int at = block * static_cast<int>(ECSQ_BLOCK) + i;
    return at < n ? x[at] : 0.0f;
  }
  // |v| in 1/unit step, at most `most` steps.
  COMMPRESS_DEVICE uint32_t magnitude_of(float v, float most, float unit) const {
    const float a = float_of(bits_of(v * gain * inverse) & 0x7FFFFFFFu);
    return static_cast<uint32_t>(round_to_int((bits_of(a) < bits_of(most) ? a : most) * unit));
  }
};

// The places first .. last - 1 of `blocks`, and where what the search remembers of them goes.
struct ChainSpan {
  int first, last;
  uint32_t* rows;
  uint16_t* costs;
};

// Fetches the tables of a class; by a warp, in step.
COMMPRESS_DEVICE void fetch_branches(ChainSpace& s, const EctcqTables& tables) {
  __syncwarp();  // lanes may still be at the block before
  for (int i = thread() % 32; i < 64; i += 32)
    s.branches[i / 16][i % 16] = tables.levels[i / 16][i % 16] | static_cast<uint32_t>(tables.prices[i / 16][i % 16])
                                                                     << 16;
  __syncwarp();
}

// Costs of magnitude a by 2 quantiser + parity; the choices.
COMMPRESS_DEVICE uint32_t weigh(const ChainSpace& s, const int (&offsets)[4], uint32_t a, uint32_t (&cost)[4]) {
  uint32_t halves = 0;
  COMMPRESS_UNROLL_ALL
  for (int c = 0; c < 4; ++c) {
    const int from = static_cast<int>(a) + offsets[c];
    const uint32_t h = from > 0 ? static_cast<uint32_t>(from) >> 11 : 0, branch = s.branches[c][h];
    const int error = static_cast<int16_t>(static_cast<uint16_t>((a - (branch & 0xFFFF)) << 3));
    const uint32_t sum = (static_cast<uint32_t>(error * error) >> 16) + (branch >> 16);
    cost[c] = sum < ECTCQ_MOST_COST ? sum : ECTCQ_MOST_COST;
    halves |= h << 4 * c;
  }
  return halves;
}

// One row of a chain whose costs are in registers; what is remembered of it.
template <int STATES>
COMMPRESS_DEVICE uint32_t advance(const uint32_t (&before)[STATES], const uint32_t (&branch)[4],
                                  uint32_t (&after)[STATES]) {
  using Trellis = EctcqTrellis<STATES>;
  uint32_t odd = 0;
  COMMPRESS_UNROLL_ALL
  for (int state = 0; state < STATES; ++state) {
    const uint32_t s = static_cast<uint32_t>(state), q = s >> Trellis::HIGHEST;
    const uint32_t even = before[Trellis::from(s, 0)] + branch[2 * q],
                   other = before[Trellis::from(s, 1)] + branch[2 * q + 1];
    after[state] = even <= other ? even : other;
    odd |= (even <= other ? 0u : 1u) << state;
  }
  return odd;
}

// A block of a span, and the offsets of its class.
struct ChainBlock {
  int block, offsets[4];
};
COMMPRESS_DEVICE ChainBlock enter_block(ChainSpace& s, const Chains& chains, int place) {
  ChainBlock at;
  at.block = chains.blocks[place];
  const EctcqTables& tables = chains.classes[chains.kinds[at.block]].tables;
  fetch_branches(s, tables);
  COMMPRESS_UNROLL_ALL
  for (int c = 0; c < 4; ++c) at.offsets[c] = tables.offsets[c];
  return at;
}
constexpr int ROWS_AT_ONCE = 4;  // loaded together; and as often costs of 16 bits have their least taken away
COMMPRESS_DEVICE void load_rows(const Chains& chains, int block, int row, uint32_t (&a)[ROWS_AT_ONCE]) {
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < ROWS_AT_ONCE; ++i)
    a[i] = chains.magnitude_of(chains.value(block, 32 * (row + i) + thread() % 32), ECTCQ_MOST_MAGNITUDE, 512.0f);
}

// The state of least cost at the end of each chain, the first of equals.
template <int STATES>
COMMPRESS_DEVICE uint32_t walk_in_registers(ChainSpace& s, const Chains& chains, const ChainSpan& span) {
  uint32_t cost[STATES], other[STATES];
  COMMPRESS_UNROLL_ALL
  for (int state = 0; state < STATES; ++state) cost[state] = state == 0 ? 0 : 0x8000;
  uint32_t* row = span.rows + thread() % 32;
  COMMPRESS_ROLLED
  for (int place = span.first; place < span.last; ++place) {
    const ChainBlock at = enter_block(s, chains, place);
    COMMPRESS_ROLLED
    for (int i = 0; i < 16; i += ROWS_AT_ONCE) {
      uint32_t a[ROWS_AT_ONCE], branch[4];
      load_rows(chains, at.block, i, a);
      COMMPRESS_UNROLL_ALL
      for (int turn = 0; turn < ROWS_AT_ONCE; turn += 2) {
        const uint32_t first = weigh(s, at.offsets, a[turn], branch);
        row[0] = first << 16 | advance<STATES>(cost, branch, other);
        const uint32_t second = weigh(s, at.offsets, a[turn + 1], branch);
        row[32] = second << 16 | advance<STATES>(other, branch, cost);
        row += 64;
      }
    }
  }
  uint32_t best = 0, least = cost[0];
  COMMPRESS_UNROLL_ALL
  for (int state = 1; state < STATES; ++state)
    if (cost[state] < least) {
      least = cost[state];
      best = static_cast<uint32_t>(state);
    }
  return best;
}

// The same of more states.
COMMPRESS_DEVICE uint32_t predecessor(const EctcqCode& code, uint32_t highest, uint32_t state, uint32_t odd) {
  const uint32_t q = state >> highest;
  return (state ^ (q ? code.feedback : 0) ^ (odd ? code.parity : 0)) << 1 | q;
}
COMMPRESS_DEVICE uint32_t walk_in_memory(ChainSpace& s, const Chains& chains, const ChainSpan& span,
                                         const EctcqCode& code, uint32_t highest) {
  const int states = code.states, lane = thread() % 32;
  uint16_t *cost = span.costs + lane, *other = cost + 32 * states;
  for (int state = 0; state < states; ++state) cost[32 * state] = state == 0 ? 0 : 0x8000;
  uint32_t* row = span.rows + lane;
  COMMPRESS_ROLLED
  for (int place = span.first; place < span.last; ++place) {
    const ChainBlock at = enter_block(s, chains, place);
    COMMPRESS_ROLLED
    for (int i = 0; i < 16; i += ROWS_AT_ONCE) {
      uint32_t a[ROWS_AT_ONCE], branch[4];
      load_rows(chains, at.block, i, a);
      uint32_t least = cost[0];
      for (int state = 1; state < states; ++state) least = cost[32 * state] < least ? cost[32 * state] : least;
      COMMPRESS_UNROLL_ALL
      for (int turn = 0; turn < ROWS_AT_ONCE; ++turn) {
        row[0] = weigh(s, at.offsets, a[turn], branch);
        COMMPRESS_ROLLED
        for (int set = 0; set < states; set += 32) {
          uint32_t odd = 0;
          for (int k = 0; k < 32 && k < states; ++k) {
            const uint32_t state = static_cast<uint32_t>(set + k);
            const bool upper = state >> highest;  // the quantiser
            const uint32_t even = cost[32 * predecessor(code, highest, state, 0)] + (upper ? branch[2] : branch[0]) -
                                  least,
                           with_odd = cost[32 * predecessor(code, highest, state, 1)] +
                                      (upper ? branch[3] : branch[1]) - least;
            other[32 * state] = static_cast<uint16_t>(even <= with_odd ? even : with_odd);
            odd |= (even <= with_odd ? 0u : 1u) << k;
          }
          row[32 + set] = odd;
        }
        least = 0;
        uint16_t* const swapped = cost;
        cost = other;
        other = swapped;
        row += chain_row_words(states);
      }
    }
  }
  uint32_t best = 0;
  for (int state = 1; state < states; ++state)
    if (cost[32 * state] < cost[32 * best]) best = static_cast<uint32_t>(state);
  return best;
}

// What a warp has counted of a class, two cells for each lane.
class ChainTally final {
 public:
  COMMPRESS_DEVICE explicit ChainTally(ChainSpace& s) : s_(s) {
    s_.met[thread() % 32] = s_.met[32 + thread() % 32] = 0;
    __syncwarp();
    clear();
  }
  COMMPRESS_DEVICE void add(uint32_t cell, uint32_t w) {
    if (w <= ECTCQ_FARTHEST) {
      atomicAdd(&s_.met[cell], 1u << 22 | w);
      squares_ += w * w;
    } else {
      beyond_ += cell < 32 ? 1 : 1 << 16;
    }
  }
  // At least after every 256 coordinates, in step.
  COMMPRESS_DEVICE void fold() {
    __syncwarp();
    COMMPRESS_UNROLL_ALL
    for (int half = 0; half < 2; ++half) {
      uint32_t& met = s_.met[32 * half + thread() % 32];
      cells_[half] += static_cast<unsigned long long>(met >> 22) << 40 | (met & 0x3FFFFF);
      met = 0;
    }
    __syncwarp();
  }
  // To the class, as often as `blocks` says: -1 takes away. In step.
  COMMPRESS_DEVICE void deliver(ChainClass& c, int blocks) {
    const auto signed_by = [&](unsigned long long x) { return blocks < 0 ? 0ull - x : x; };
    COMMPRESS_UNROLL_ALL
    for (int half = 0; half < 2; ++half)
      if (cells_[half]) add_globally(&c.counts.cells[32 * half + thread() % 32], signed_by(cells_[half]));
    for (int distance = 16; distance; distance /= 2) squares_ += __shfl_xor_sync(ALL_LANES, squares_, distance);
    const uint32_t beyond = __reduce_add_sync(ALL_LANES, beyond_);
    if (thread() % 32 == 0) {
      add_globally(&c.counts.squares, signed_by(squares_));
      if (beyond & 0xFFFF) add_globally(&c.counts.beyond[0], signed_by(beyond & 0xFFFF));
      if (beyond >> 16) add_globally(&c.counts.beyond[1], signed_by(beyond >> 16));
      add_globally(reinterpret_cast<unsigned long long*>(&c.counted), signed_by(1));
    }
    clear();
  }

 private:
  COMMPRESS_DEVICE void clear() {
    cells_[0] = cells_[1] = squares_ = 0;
    beyond_ = 0;
  }
  ChainSpace& s_;
  unsigned long long cells_[2], squares_;
  uint32_t beyond_;
};

// The way back from each chain's last state: cells, counted.
COMMPRESS_DEVICE void trace(ChainSpace& s, const Chains& chains, const ChainSpan& span, const EctcqCode& code,
                            uint32_t highest, uint32_t state) {
  const int lane = thread() % 32, words = chain_row_words(code.states);
  ChainTally tally(s);
  COMMPRESS_ROLLED
  for (int place = span.last; place-- > span.first;) {
    const int block = chains.blocks[place];
    uint8_t* const cells = chains.cells + block * ECSQ_BLOCK + lane;
    const uint32_t* const rows = span.rows + (place - span.first) * (16 * words) + lane;
    COMMPRESS_ROLLED
    for (int row = 15; row >= 0; --row) {
      const uint32_t choices = rows[row * words], q = state >> highest;
      const uint32_t odd =
          code.states == 8 ? choices >> state & 1 : rows[row * words + 32 * (1 + state / 32)] >> (state % 32) & 1;
      const uint32_t halves = code.states == 8 ? choices >> 16 : choices;
      const uint32_t cell = q << 5 | (halves >> 4 * (2 * q + odd) & 15) << 1 | odd;
      cells[32 * row] = static_cast<uint8_t>(cell);
      tally.add(cell, chains.magnitude_of(chains.value(block, 32 * row + lane), 64.0f, 256.0f));
      if (row % 8 == 0) tally.fold();
      state = predecessor(code, highest, state, odd);
    }
    tally.deliver(chains.classes[chains.kinds[block]], 1);
  }
}

// Takes back what the cells of a span were counted as.
COMMPRESS_DEVICE void count_back(ChainSpace& s, const Chains& chains, int first, int last) {
  const int lane = thread() % 32;
  ChainTally tally(s);
  for (int place = first; place < last; ++place) {
    const int block = chains.blocks[place];
    for (int row = 0; row < 16; ++row) {
      tally.add(chains.cells[block * ECSQ_BLOCK + 32 * row + lane],
                chains.magnitude_of(chains.value(block, 32 * row + lane), 64.0f, 256.0f));
      if (row % 8 == 7) tally.fold();
    }
    tally.deliver(chains.classes[chains.kinds[block]], -1);
  }
}

// Finds and counts the cells of a span; by a warp, in step.
COMMPRESS_DEVICE void search_span(ChainSpace& s, const Chains& chains, const ChainSpan& span, const EctcqCode& code) {
  uint32_t highest = 0, best;
  while (2 << highest < code.states) ++highest;
  if (code.states == 8)
    best = walk_in_registers<8>(s, chains, span);
  else
    best = walk_in_memory(s, chains, span, code, highest);
  trace(s, chains, span, code, highest, best);
}

}  // namespace cuda
}  // namespace commpress
