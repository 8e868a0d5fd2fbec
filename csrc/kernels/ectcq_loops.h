// EctcqKernels in terms of lanes and of plain C++. Include after a trellis_lanes_*.h and a Table16.
#pragma once
#include "ectcq.h"
#include "entropy_coders.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

// The choices of sixteen chains at one place: for each state by which of its two predecessors it was reached, and
// |k| div 2 for each quantiser and parity, four bits each.
struct EctcqStep {
  uint32_t halves[16];
  uint16_t second[TCQ_STATES];
};

// The predecessors of each state, the lower first, and the parity that leads on from them.
struct EctcqTrellis {
  uint32_t from[2][TCQ_STATES] = {}, parity[2][TCQ_STATES] = {};
  constexpr EctcqTrellis() {
    int seen[TCQ_STATES] = {};
    for (int state = 0; state < TCQ_STATES; ++state)
      for (int p = 0; p < 2; ++p) {
        const int next = state >> 1 ^ (state & 1 ? TCQ_PARITY_0 >> 1 : 0) ^ (p ? TCQ_PARITY_1 >> 1 : 0);
        from[seen[next]][next] = static_cast<uint32_t>(state);
        parity[seen[next]++][next] = static_cast<uint32_t>(p);
      }
  }
};
static constexpr EctcqTrellis ECTCQ_TRELLIS{};

// Rows of 16 coordinates, 32 apart, `half` the first or the second of a block's; the state of least cost of each lane.
static void ectcq_walk(const EctcqBlock* blocks, int64_t count, int half, float gain, float inverse, EctcqStep* steps,
                       uint32_t* last) {
  Floats cost[TCQ_STATES];
  for (int s = 0; s < TCQ_STATES; ++s) cost[s] = all(s == 0 ? 0.0f : 1e30f);
  const Ints top = bits(all(60.0f));
  const Floats quarter = all(0.25f), by = all(gain), over = all(inverse);
  for (int64_t b = 0; b < count; ++b) {
    const EctcqTables& t = *blocks[b].tables;
    Table16 levels[4], prices[4];
    for (int c = 0; c < 4; ++c) {
      levels[c] = Table16(t.levels[c]);
      prices[c] = Table16(t.prices[c]);
    }
    for (int row = 0; row < 16; ++row, ++steps) {
      // Costs are at least +0: their order is that of their bits.
      const Floats a = floats(smaller(bits(absolute(load(blocks[b].x + 32 * row + 16 * half) * by * over)), top));
      Floats branch[4];
      Ints halves = all(0u);
      each<4>([&](auto c) __attribute__((always_inline)) {
        const int q = c / 2, p = c % 2;
        const Ints near = rounded((a + all(static_cast<float>(q - 2 * p))) * quarter);
        const Ints less = smaller(near - all(1u), near);  // one less, but not below zero
        const auto weigh = [&](Ints h) __attribute__((always_inline)) {
          const Floats error = a - levels[c][h];
          return error * error + prices[c][h];
        };
        const Ints first = bits(weigh(near)), second = bits(weigh(less));
        branch[c] = floats(smaller(first, second));
        halves = halves | shift_left(where_less(second, first, less, near), 4 * c);
      });
      store(steps->halves, halves);
      Floats next[TCQ_STATES];
      each<TCQ_STATES>([&](auto s) __attribute__((always_inline)) {
        const uint32_t f = ECTCQ_TRELLIS.from[0][s], g = ECTCQ_TRELLIS.from[1][s];
        uint32_t taken;
        next[s] = lesser(cost[f] + branch[2 * (f & 1) + ECTCQ_TRELLIS.parity[0][s]],
                         cost[g] + branch[2 * (g & 1) + ECTCQ_TRELLIS.parity[1][s]], taken);
        steps->second[s] = static_cast<uint16_t>(taken);
      });
      each<TCQ_STATES>([&](auto s) __attribute__((always_inline)) { cost[s] = next[s]; });
    }
  }
  float costs[TCQ_STATES][16];
  for (int s = 0; s < TCQ_STATES; ++s) store(costs[s], cost[s]);
  for (int lane = 0; lane < 16; ++lane) {
    last[lane] = 0;
    for (uint32_t s = 1; s < TCQ_STATES; ++s)
      if (costs[s][lane] < costs[last[lane]][lane]) last[lane] = s;
  }
}

template <class Trace>
static void ectcq_search_with(const Trace& trace, const EctcqBlock* blocks, int64_t count, float gain, float inverse) {
  alignas(64) EctcqStep steps[16 * ECTCQ_SPAN];
  for (int half = 0; half < 2; ++half) {
    alignas(64) uint32_t last[16];
    ectcq_walk(blocks, count, half, gain, inverse, steps, last);
    trace(blocks, count, half, steps, last);
  }
}

[[maybe_unused]] static void ectcq_trace(const EctcqBlock* blocks, int64_t count, int half, const EctcqStep* steps,
                                         uint32_t* states) {
  for (int64_t row = 16 * count; row-- > 0;) {
    const EctcqStep& step = steps[row];
    uint8_t* const cells = blocks[row / 16].cells + 32 * (row % 16) + 16 * half;
    for (int lane = 0; lane < 16; ++lane) {
      const uint32_t state = states[lane], second = step.second[state] >> lane & 1u;
      const uint32_t from = ECTCQ_TRELLIS.from[second][state], p = ECTCQ_TRELLIS.parity[second][state], q = from & 1;
      cells[lane] = static_cast<uint8_t>(q << 5 | (step.halves[lane] >> 4 * (2 * q + p) & 15) << 1 | p);
      states[lane] = from;
    }
  }
}

// Magnitudes in 1/256 step, at most 64.
static COMMPRESS_INLINE Ints ectcq_magnitudes(const Floats& v) {
  return rounded(floats(smaller(bits(absolute(v)), bits(all(64.0f)))) * all(256.0f));
}

static void ectcq_count(const EctcqBlock& block, float gain, float inverse, EctcqCounts& counts) {
  uint32_t w[ECSQ_BLOCK];
  for (int64_t i = 0; i < ECSQ_BLOCK; i += 16)
    store(w + i, ectcq_magnitudes(load(block.x + i) * all(gain) * all(inverse)));
  uint64_t met[4][64] = {{0}};  // four, so that neighbours do not wait for each other
  int64_t squares = 0;
  for (int64_t i = 0; i < ECSQ_BLOCK; ++i) {
    const uint64_t a = w[i];
    met[i % 4][block.cells[i]] += uint64_t{1} << 40 | a;
    squares += static_cast<int64_t>(a * a);
    if (a > ECTCQ_FARTHEST) {
      met[i % 4][block.cells[i]] -= uint64_t{1} << 40 | a;
      squares -= static_cast<int64_t>(a * a);
      counts.of[64 + (block.cells[i] >> 5)] += uint64_t{1} << 40;
    }
  }
  counts.squares += squares;
  for (int c = 0; c < 64; ++c) counts.of[c] += met[0][c] + met[1][c] + met[2][c] + met[3][c];
}

// A value that has no symbol; its lowest bit is the parity of the index.
static COMMPRESS_INLINE EcsqEscape ectcq_escape(int64_t index, float v, uint32_t parity) {
  constexpr float MOST = 0x1.fffffep99f;  // so that it stays below ECSQ_FARTHEST with its lowest bit set
  const float kept = v < -MOST ? -MOST : v > MOST ? MOST : v;
  return {index, float_of((bits_of(kept) & ~1u) | parity)};
}

[[maybe_unused]] static uint8_t* ectcq_encode_block(EctcqClassCoder& c, const EctcqBlock& block, float gain,
                                                    float inverse, int64_t index, uint32_t* states, uint8_t* out,
                                                    std::vector<EcsqEscape>& escapes) {
  if (c.empty) return out;
  uint32_t w[ECSQ_BLOCK];
  for (int64_t i = 0; i < ECSQ_BLOCK; i += 16)
    store(w + i, ectcq_magnitudes(load(block.x + i) * all(gain) * all(inverse)));
  for (int64_t i = ECSQ_BLOCK; i-- > 0;) {
    const float v = block.x[i] * gain * inverse;
    const int k = block.cells[i] & 31, q = block.cells[i] >> 5;
    int symbol = v < 0 ? 32 - k : 32 + k;
    if (k > c.largest || w[i] > ECTCQ_FARTHEST) {
      symbol = 0;
      escapes.push_back(ectcq_escape(index + i, v, k & 1));
      if (w[i] <= ECTCQ_FARTHEST) c.escaped += static_cast<int64_t>(w[i]) * w[i];
    }
    uint32_t& state = states[i % ECTCQ_LANES];
    state = entropy::rans_put(state, c.entry[q][symbol] & 0xFFFF, c.entry[q][symbol] >> 16, out);
  }
  return out;
}

static void ectcq_decode_block(const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at, const uint8_t* parity,
                               int64_t left, float* z, std::vector<int32_t>& escapes) {
  for (int64_t i = 0; i < ECSQ_BLOCK; ++i) {
    uint32_t &chain = at[i % ECTCQ_LANES], &state = stream.states[i % ECTCQ_LANES];
    const uint32_t q = chain & 1;
    uint32_t symbol = 32;
    if (!c.empty) {
      const uint32_t slot = c.slots[q << entropy::PRECISION | (state & (entropy::TOTAL - 1))];
      state = entropy::rans_advance(state, slot & 0xFFF, slot >> 12 & 0xFFF, stream.in, stream.end);
      symbol = slot >> 24;
    }
    uint32_t odd = symbol & 1;
    if (symbol == 0) {
      escapes.push_back(static_cast<int32_t>(i));
      if (left > 0) odd = *parity & 1;
      parity += 4;
      --left;
    }
    z[i] = c.values[q][symbol];
    chain = static_cast<uint32_t>(tcq_next(static_cast<int>(chain), static_cast<int>(odd)));
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
