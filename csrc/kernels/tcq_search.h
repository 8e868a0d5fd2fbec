// The search of tcq.h, sixteen runs at a time. Include after a trellis_lanes_*.h.
#pragma once
#include <memory>

#include "pack.h"
#include "tcq.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Bits of the sixteen runs at one place: for each state by which of its two predecessors it was reached, for each
// quantiser and parity whether the smaller index won.
struct TcqStep {
  uint16_t second[TCQ_STATES], smaller[4];
};

// The predecessors of each state, the lower first, and the parity that leads on from them.
struct TcqTrellis {
  int from[TCQ_STATES][2] = {}, parity[TCQ_STATES][2] = {};
  constexpr TcqTrellis() {
    int seen[TCQ_STATES] = {};
    for (int state = 0; state < TCQ_STATES; ++state)
      for (int p = 0; p < 2; ++p) {
        const int next = state >> 1 ^ (state & 1 ? TCQ_PARITY_0 >> 1 : 0) ^ (p ? TCQ_PARITY_1 >> 1 : 0);
        from[next][seen[next]] = state;
        parity[next][seen[next]++] = p;
      }
  }
};
static constexpr TcqTrellis TCQ_TRELLIS{};

// v: n rows of 16 lanes.
static void tcq_walk(const float* v, int64_t n, const TcqTables& tables, TcqStep* steps, float* costs) {
  Floats cost[TCQ_STATES];
  for (int s = 0; s < TCQ_STATES; ++s) cost[s] = all(s == 0 ? 0.0f : 1e30f);
  const Floats top = all(2.0f * TCQ_INDICES - 4), quarter = all(0.25f), zero = all(0.0f);
  for (int64_t i = 0; i < n; ++i) {
    const Floats a = absolute(load(v + 16 * i));
    uint32_t taken;
    const Floats clamped = lesser(top, a, taken);
    Floats branch[4];  // [quantiser][parity]
    for (int q = 0; q < 2; ++q)
      for (int p = 0; p < 2; ++p) {
        const Ints half = rounded((clamped + all(static_cast<float>(q - 2 * p))) * quarter);
        const Ints k = shift_left(half, 1) + all(static_cast<uint32_t>(p));
        // One less than half, but not below zero.
        const Ints less = rounded(larger(to_float(half) + all(-1.0f), zero));
        const Ints smaller = shift_left(less, 1) + all(static_cast<uint32_t>(p));
        const auto weigh = [&](Ints index) __attribute__((always_inline)) {
          const Ints place = index + all(static_cast<uint32_t>(q * TCQ_INDICES));
          const Floats error = a - look_up(tables.levels, place);
          return error * error + look_up(tables.prices, place);
        };
        branch[2 * q + p] = lesser(weigh(k), weigh(smaller), taken);
        steps[i].smaller[2 * q + p] = static_cast<uint16_t>(taken);
      }
    Floats next[TCQ_STATES];
    each<TCQ_STATES>([&](auto s) __attribute__((always_inline)) {
      const int f = TCQ_TRELLIS.from[s][0], g = TCQ_TRELLIS.from[s][1];
      next[s] = lesser(cost[f] + branch[2 * (f & 1) + TCQ_TRELLIS.parity[s][0]],
                       cost[g] + branch[2 * (g & 1) + TCQ_TRELLIS.parity[s][1]], taken);
      steps[i].second[s] = static_cast<uint16_t>(taken);
    });
    each<TCQ_STATES>([&](auto s) __attribute__((always_inline)) { cost[s] = next[s]; });
  }
  for (int s = 0; s < TCQ_STATES; ++s) store(costs + 16 * s, cost[s]);
}

void tcq_quantise(const float* v, int64_t blocks, int64_t n, const TcqTables& tables, int16_t* indices) {
  const std::unique_ptr<float[]> rows(new float[16 * n]);
  const std::unique_ptr<TcqStep[]> steps(new TcqStep[n]);
  for (int64_t first = 0; first < blocks; first += 16) {
    const int64_t count = blocks - first < 16 ? blocks - first : 16;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t lane = 0; lane < 16; ++lane) rows[16 * i + lane] = lane < count ? v[(first + lane) * n + i] : 0.0f;
    float costs[16 * TCQ_STATES];
    tcq_walk(rows.get(), n, tables, steps.get(), costs);
    for (int64_t lane = 0; lane < count; ++lane) {
      int state = 0;
      for (int s = 1; s < TCQ_STATES; ++s)
        if (costs[16 * s + lane] < costs[16 * state + lane]) state = s;
      for (int64_t i = n - 1; i >= 0; --i) {
        const int second = steps[i].second[state] >> lane & 1, p = TCQ_TRELLIS.parity[state][second];
        state = TCQ_TRELLIS.from[state][second];
        const int q = state & 1;
        const float x = rows[16 * i + lane];
        int k = tcq_nearest(x < 0.0f ? -x : x, q, p);
        if (steps[i].smaller[2 * q + p] >> lane & 1) k = tcq_smaller(k);
        indices[(first + lane) * n + i] = static_cast<int16_t>(x < 0.0f ? -k : k);
      }
    }
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
