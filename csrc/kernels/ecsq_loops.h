// EcsqKernels in terms of lanes and of plain C++. Include after a lanes_*.h.
#pragma once
#include "ecsq_format.h"
#include "ecsq_symbols.h"
#include "entropy_coders.h"
#include "hadamard.h"

namespace commpress {
namespace COMMPRESS_ISA {

static void ecsq_statistics(const float* x, int64_t n, float& sum, uint32_t& most) {
  Floats sums[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
  Ints largest = all(0u);
  alignas(64) float rest[16] = {0};
  for (int64_t row = 0; 16 * row < n; ++row) {
    const float* from = x + 16 * row;
    if (16 * row + 16 > n) {
      memcpy(rest, from, 4 * (n - 16 * row));
      from = rest;
    }
    prefetch_line(from + 2 * ECSQ_BLOCK);
    const Floats a = absolute(load(from));
    sums[row % 4] = sums[row % 4] + a;
    largest = larger(bits(a), largest);
  }
  sum = fold(sums);
  most = largest_lane(largest);
}

[[maybe_unused]] static void ecsq_count(const EcsqQuantiser& c, const float* x, const int32_t* w, int64_t n,
                                        entropy::Counts& counts) {
  if (c.dither && !c.raw) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t q = ecsq_value(c, x[i] * c.gain * c.inverse, w[i]);
      const bool escaped = q < -entropy::LARGEST || q > entropy::LARGEST;
      ++counts.of[ecsq_cell(w[i])][escaped ? 0 : 32 + (w[i] < 0 ? -q : q)];
    }
    return;
  }
  int32_t met[4][64] = {{0}};  // four, so that neighbours with the same symbol do not wait for each other
  for (int64_t i = 0; i < n; ++i) {
    const int32_t q = ecsq_high(ecsq_value(c, x[i] * c.gain * c.inverse, c.dither ? w[i] : 0), c.raw),
                  a = q < 0 ? -q : q;
    ++met[i % 4][a <= entropy::LARGEST ? 32 + a : 0];
  }
  for (int s = 0; s < 64; ++s) counts.of[0][s] += met[0][s] + met[1][s] + met[2][s] + met[3][s];
}

[[maybe_unused]] static int64_t ecsq_settle(const EcsqQuantiser& least, const EcsqQuantiser& most, const float* x,
                                            const int32_t* w, int64_t n, entropy::Counts& counts, float* open,
                                            int32_t* open_w) {
  int64_t met = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t wi = least.dither ? w[i] : 0;
    const auto high = [&](const EcsqQuantiser& c) {
      return ecsq_high(ecsq_value(c, x[i] * c.gain * c.inverse, wi), c.raw);
    };
    const int32_t q = high(least), a = q < 0 ? -q : q;
    if (q != high(most)) {
      open[met] = x[i];
      open_w[met++] = wi;
    } else if (least.dither && !least.raw) {
      ++counts.of[ecsq_cell(wi)][a > entropy::LARGEST ? 0 : 32 + (wi < 0 ? -q : q)];
    } else {
      ++counts.of[0][a > entropy::LARGEST ? 0 : 32 + a];
    }
  }
  return met;
}

// Of coordinates `from` and on: what the coder writes, packed low bits, escapes, and sums for the decoder's placements.
[[maybe_unused]] static void ecsq_choose(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t from, int64_t n,
                                         int64_t index, uint32_t* entries, uint32_t* lows,
                                         std::vector<EcsqEscape>& escapes) {
  const EcsqQuantiser& quantiser = c.quantiser;
  const int raw = quantiser.raw;
  for (int64_t i = from; i < n; ++i) {
    const float v = x[i] * quantiser.gain * quantiser.inverse;
    const int32_t wi = quantiser.dither ? w[i] : 0;
    int32_t q = ecsq_value(quantiser, v, wi);
    const int32_t high = ecsq_high(q, raw), a = high < 0 ? -high : high;
    const bool escaped = a > c.largest;
    const int32_t symbol = escaped ? 0 : 32 + (c.folded && wi < 0 ? -high : high);
    entries[i] = c.entry[c.folded ? ecsq_cell(wi) : 0][symbol];
    if (escaped) {
      q = 0;
      escapes.push_back(ecsq_escape(index + i, v));
    } else if (!quantiser.dither && !raw) {
      const int64_t fine = round_to_int(float_of(bits_of(v) & 0x7FFFFFFFu) * 256.0f);
      c.squares += fine * fine;
      c.n1 += a == 1;
      c.w1 += a == 1 ? fine : 0;
      c.n2 += a == 2;
      c.w2 += a == 2 ? fine : 0;
      c.n3 += a > 2;
      c.w3 += a > 2 ? fine : 0;
      c.q3 += a > 2 ? a : 0;
      c.x3 += a > 2 ? fine * a : 0;
    }
    lows[i] = ecsq_low(q, raw);
  }
}

[[maybe_unused]] static uint8_t* ecsq_put(const uint32_t* entries, int64_t n, uint32_t* states, int lanes,
                                          uint8_t* out) {
  for (int64_t i = n; i-- > 0;) {
    uint32_t& state = states[i % lanes];
    state = entropy::rans_put(state, entries[i] & 0xFFFF, entries[i] >> 16, out);
  }
  return out;
}

[[maybe_unused]] static uint8_t* ecsq_encode_block(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t n,
                                                   int64_t index, uint32_t* states, int lanes, uint8_t* out,
                                                   uint8_t* low, std::vector<EcsqEscape>& escapes) {
  uint32_t entries[ECSQ_BLOCK], lows[ECSQ_BLOCK];
  ecsq_choose(c, x, w, 0, n, index, entries, lows, escapes);
  if (c.quantiser.raw) pack_string(lows, n, c.quantiser.raw, low);
  return c.empty ? out : ecsq_put(entries, n, states, lanes, out);
}

[[maybe_unused]] static void ecsq_decode_block(const EcsqClassDecoder& c, EcsqStream& stream, const int32_t* w,
                                               const uint8_t* low, int64_t n, float* z, std::vector<int32_t>& escapes) {
  uint32_t lows[ECSQ_BLOCK];
  if (c.raw) unpack_string(low, n, c.raw, lows);
  for (int64_t i = 0; i < n; ++i) {
    int32_t symbol = 32;
    if (!c.empty) {
      uint32_t& state = stream.states[i % stream.lanes];
      const uint32_t row = c.folded ? ecsq_cell(w[i]) : 0;
      const uint32_t slot = c.slots[row << entropy::PRECISION | (state & (entropy::TOTAL - 1))];
      state = entropy::rans_advance(state, slot & 0xFFF, slot >> 12 & 0xFFF, stream.in, stream.end);
      symbol = static_cast<int32_t>(slot >> 24);
    }
    if (symbol == 0) escapes.push_back(static_cast<int32_t>(i));
    if (!c.dither && !c.raw) {
      z[i] = c.values[symbol];
      continue;
    }
    int32_t q = symbol - 32;
    if (c.folded && w[i] < 0) q = -q;
    if (c.raw) q = q * (1 << c.raw) + static_cast<int32_t>(lows[i]) - (1 << c.raw >> 1);
    z[i] = static_cast<float>(q);
    if (c.dither) z[i] -= static_cast<float>(w[i]) * 0x1p-24f;
  }
}

static void ecsq_dither(const Key& key, int64_t index, int64_t n, int32_t* w) {
  const Philox random(key, DITHER);
  alignas(64) uint32_t rows[ECSQ_BLOCK];
  uint32_t* const to = n == ECSQ_BLOCK ? reinterpret_cast<uint32_t*>(w) : rows;
  for (int v = 0; 64 * v < n; v += 2) {
    Ints words[2];
    random.fill<1>(static_cast<uint32_t>(index / 16) + 8 * (v / 2), words);
    for (int half = 0; half < 2; ++half)
      each<4>([&](auto q) __attribute__((always_inline)) {
        store(to + 16 * (4 * (v + half) + q), shift_right(rotate_bytes(words[half], q), 8) - all(1u << 23));
      });
  }
  if (to == rows) memcpy(w, rows, 4 * n);
}

static void ecsq_rotate(const float* x, float* y, int64_t n, const Key& key, int64_t index) {
  const int rows = static_cast<int>(n / 16);
  Squares unused;
  rotate_far<Measure::NO>(x, rows, Signs(key, ROTATE_FIRST, static_cast<uint64_t>(index), n), y, unused);
  rotate_near(y, rows);
  const float norm = divide(1.0f, square_root(static_cast<float>(n)));
  for (int64_t i = 0; i < n; i += 16) store(y + i, load(y + i) * all(norm));
}

static void ecsq_scale(float* z, int64_t n, double factor) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)  // of a length that the compiler knows
    for (int k = 0; k < 16; ++k) z[i + k] = ecsq_scaled(z[i + k], factor);
  for (; i < n; ++i) z[i] = ecsq_scaled(z[i], factor);
}

static void ecsq_stream(const float* z, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) store_past_caches(out + i, load(z + i));
}

static void ecsq_accumulate(const float* z, int64_t n, float beta, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, load(out + i) * all(beta) + load(z + i));
  for (; i < n; ++i) out[i] = out[i] * beta + z[i];
}

static void ecsq_finish_stream() { finish_stores(); }

static void ecsq_unrotate(float* z, int64_t n, const Key& key, int64_t index) {
  const int rows = static_cast<int>(n / 16);
  rotate_near(z, rows);
  const Floats norm = all(divide(1.0f, square_root(static_cast<float>(n))));
  unrotate_far(z, rows, Signs(key, ROTATE_FIRST, static_cast<uint64_t>(index), n),
               [&](int row, Floats v) __attribute__((always_inline)) { store(z + 16 * row, v * norm); });
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
