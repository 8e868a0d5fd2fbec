// The Viterbi search of the bitshift trellis and the levels of its codewords. Include after a trellis_lanes_*.h.
//
// A state has length L; the newest k bits are its top ones, the oldest k its lowest. After a codeword the oldest bits
// are forgotten, so a path is known by its L - k newest bits: its `node`. From node m the bits j lead to the state (j,
// m) and the node (j, m >> k); the 2^k nodes that differ in their lowest bits, p, meet there.
#pragma once
#include <limits>

#include "bitshift_codec.h"
#include "hadamard.h"

namespace commpress {
namespace COMMPRESS_ISA {

// The 16 * 2^K floats from p on, parted by their number's lowest K bits.
template <int K>
static COMMPRESS_INLINE void part(const float* p, Floats (&out)[1 << K]) {
  if constexpr (K == 1) {
    load_pairs(p, out[0], out[1]);
  } else {
    Floats low[1 << (K - 1)], high[1 << (K - 1)];
    part<K - 1>(p, low);  // of the first half
    part<K - 1>(p + (16 << (K - 1)), high);
    // low[r], high[r] hold the numbers i 2^(K-1) + r of their halves; the parity of i is the top bit wanted.
    each<(1 << (K - 1))>(
        [&](auto r) __attribute__((always_inline)) { split_pairs(low[r], high[r], out[r], out[r + (1 << (K - 1))]); });
  }
}

// The least of COUNT candidates, the first of equals; bit b of its number, for each lane, in bits[b].
template <int COUNT>
static COMMPRESS_INLINE Floats least(const Floats* c, uint32_t* bits) {
  if constexpr (COUNT == 2) {
    return lesser(c[0], c[1], bits[0]);
  } else {
    constexpr int TOP = COUNT == 4 ? 1 : COUNT == 8 ? 2 : 3;
    uint32_t low[TOP], high[TOP];
    const Floats a = least<COUNT / 2>(c, low), b = least<COUNT / 2>(c + COUNT / 2, high);
    const Floats best = lesser(a, b, bits[TOP]);
    for (int i = 0; i < TOP; ++i) bits[i] = (low[i] & ~bits[TOP]) | (high[i] & bits[TOP]);
    return best;
  }
}

// One codeword: the costs of all nodes before it, to those after it and the decisions p that led there.
// cost = (cost before + half the energy) -+ <target, row>, each sum rounded. SINGLE: one coordinate in a codeword.
template <int K, bool SINGLE>
static void advance(const Trellis& t, const float* search, const float* target, const float* before, float* after,
                    uint16_t* decisions) {
  constexpr int P = 1 << K;
  const int values = SINGLE ? 1 : t.values, vectors = 1 << (t.length - 2 * K - 4);  // of 16 nodes for each j
  const Floats y = all(target[0]);
  for (int i = 0; i < vectors; ++i) {
    Floats met[P];
    part<K>(before + (i << (K + 4)), met);
    each<P / 2>([&](auto newest) __attribute__((always_inline)) {
      Floats sum[P], product[P / 2];
      each<P / 2>([&](auto oldest) __attribute__((always_inline)) {
        product[oldest] = SINGLE ? load(search) : y * load(search);
        if constexpr (!SINGLE)
          for (int v = 1; v < values; ++v)
            product[oldest] = plus_product(product[oldest], all(target[v]), load(search + 16 * v));
        const Floats energy = load(search + 16 * values);
        sum[2 * oldest] = met[2 * oldest] + energy;
        sum[2 * oldest + 1] = met[2 * oldest + 1] + energy;
        search += 16 * (values + 1);
      });
      each<2>([&](auto top) __attribute__((always_inline)) {
        Floats cost[P];
        each<P>([&](auto p) __attribute__((always_inline)) {
          if constexpr (SINGLE)
            cost[p] =
                (p + top) % 2 ? plus_product(sum[p], y, product[p / 2]) : minus_product(sum[p], y, product[p / 2]);
          else
            cost[p] = (p + top) % 2 ? sum[p] + product[p / 2] : sum[p] - product[p / 2];
        });
        uint32_t bits[K];
        const int node = ((top * (P / 2) + newest) * vectors + i);  // in vectors
        store(after + 16 * node, least<P>(cost, bits));
        for (int b = 0; b < K; ++b) decisions[b * P * vectors + node] = static_cast<uint16_t>(bits[b]);
      });
    });
  }
}

// Searches one chain. Scratch memory is given, so that nothing is allocated for each.
class ChainSearch {
 public:
  explicit ChainSearch(const Trellis& t)
      : t_(t), search_(codebook_of(t).search.get()), nodes_(1 << (t.length - t.bits)) {}

  int64_t cost_floats() const { return 2 * nodes_; }
  int64_t decision_floats(int64_t codewords) const {  // held as floats' bytes
    return (codewords > 2 * TRELLIS_WARM_UP ? codewords : 2 * TRELLIS_WARM_UP) * stride() / 2;
  }

  // targets: codewords * V values of trellis_target(); codes: the k new bits of each codeword.
  void operator()(const float* targets, int64_t codewords, float* costs, float* decisions, uint8_t* codes) const {
    uint16_t* const steps = reinterpret_cast<uint16_t*>(decisions);
    // The circle is cut where it begins. A walk across the seam, from codewords before it to as many behind, tells the
    // node there; the search proper begins and ends in it.
    const int64_t warm = codewords < TRELLIS_WARM_UP ? codewords : TRELLIS_WARM_UP;
    for (int64_t m = 0; m < nodes_; ++m) costs[m] = 0.0f;
    const float* end = walk(targets, codewords, codewords - warm, 2 * warm, costs, steps);
    int64_t node = 0;
    for (int64_t m = 1; m < nodes_; ++m)
      if (end[m] < end[node]) node = m;
    for (int64_t i = 2 * warm - 1; i >= warm; --i) node = previous(steps + i * stride(), node);
    for (int64_t m = 0; m < nodes_; ++m) costs[m] = m == node ? 0.0f : std::numeric_limits<float>::infinity();
    walk(targets, codewords, 0, codewords, costs, steps);
    for (int64_t i = codewords - 1; i >= 0; --i) {
      codes[i] = static_cast<uint8_t>(node >> (t_.length - 2 * t_.bits));
      node = previous(steps + i * stride(), node);
    }
  }

 private:
  int64_t stride() const { return nodes_ / 16 * t_.bits; }

  int64_t previous(const uint16_t* decisions, int64_t node) const {
    int64_t p = 0;
    for (int b = 0; b < t_.bits; ++b) p |= int64_t{(decisions[b * (nodes_ / 16) + node / 16] >> (node % 16)) & 1} << b;
    return (node << t_.bits | p) & (nodes_ - 1);
  }

  // Over `count` codewords of the circle from `first` on; returns where the costs at the end lie.
  float* walk(const float* targets, int64_t codewords, int64_t first, int64_t count, float* costs,
              uint16_t* steps) const {
    float *before = costs, *after = costs + nodes_;
    for (int64_t i = 0; i < count; ++i) {
      step(targets + (first + i) % codewords * t_.values, before, after, steps + i * stride());
      float* const swapped = before;
      before = after;
      after = swapped;
    }
    return before;
  }

  void step(const float* target, const float* before, float* after, uint16_t* decisions) const {
    switch (t_.bits) {
      case 1:
        return t_.values == 1 ? advance<1, true>(t_, search_, target, before, after, decisions)
                              : advance<1, false>(t_, search_, target, before, after, decisions);
      case 2:
        return advance<2, true>(t_, search_, target, before, after, decisions);
      case 3:
        return t_.values == 1 ? advance<3, true>(t_, search_, target, before, after, decisions)
                              : advance<3, false>(t_, search_, target, before, after, decisions);
      default:
        return advance<4, true>(t_, search_, target, before, after, decisions);
    }
  }

  const Trellis t_;
  const float* const search_;
  const int64_t nodes_;
};

// Levels of the n coordinates of a chain whose bits begin at bit `start` of `in` (of `nbytes`), to z.
template <int K>
static void chain_levels(const Trellis& t, const float* levels, const uint8_t* in, int64_t nbytes, int64_t start,
                         int64_t n, float* z) {
  // The circle unrolled: the L - k last bits, then all. The window of codeword i begins at its bit i k.
  constexpr int64_t LONGEST = 4 * BLOCK;  // 4 bits for each of 4096 coordinates
  uint8_t bits[LONGEST / 8 + 64] = {};
  const int64_t codewords = trellis_codewords(t, n), count = codewords * K;
  const int seam = t.length - K;
  const auto bit = [&](int64_t i) { return in[(start + i) / 8] >> (start + i) % 8 & 1; };
  const int64_t head = (seam + 7) / 8 * 8;
  for (int64_t i = 0; i < head && i < seam + count; ++i)
    bits[i / 8] |= static_cast<uint8_t>(bit(i < seam ? count - seam + i : i - seam) << (i % 8));
  for (int64_t i = head; i < seam + count; i += 8) {
    const int64_t at = start + i - seam, byte = at / 8, next = byte + 1 < nbytes ? in[byte + 1] : 0;
    bits[i / 8] = static_cast<uint8_t>((in[byte] | next << 8) >> at % 8);
  }
  const uint32_t row_mask = (1u << (t.length - 2)) - 1;
  if (t.values == 1) {
    for (int64_t i = 0; i < n; i += 16) {
      const Ints state = windows<K>(bits + i * K / 8);
      store(z + i, flip(look_up(levels, shift_right(state, 1) & all(row_mask)),
                        state ^ shift_right(state, t.length - 1), count_of(31)));
    }
    return;
  }
  for (int64_t i = 0; i < codewords; ++i) {
    uint32_t state;
    memcpy(&state, bits + i * K / 8, 4);
    state = state >> i * K % 8 & ((1u << t.length) - 1);
    const float* row = levels + trellis_row(state, t.length) * t.values;
    const uint32_t sign = trellis_sign(state, t.length) << 31;
    const int64_t here = n - i * t.values < t.values ? n - i * t.values : t.values;
    for (int64_t v = 0; v < here; ++v) z[i * t.values + v] = float_of(bits_of(row[v]) ^ sign);
  }
}

static void piece_levels(const Trellis& t, const uint8_t* in, int64_t n, float* z) {
  const int64_t chain = trellis_chain(t, n), count = trellis_codewords(t, chain) * t.bits;
  const float* const levels = codebook_of(t).levels.get();
  const int64_t nbytes = trellis_piece_nbytes(t, n) - 4;
  for (int64_t i = 0; i < n / chain; ++i) {
    with_bits(t.bits, [&](auto k) {
      if constexpr (k <= 4) chain_levels<k>(t, levels, in, nbytes, i * count, chain, z + i * chain);
    });
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
