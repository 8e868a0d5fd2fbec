// Rate control of a segment without a trellis: the symbols met at a step, the models that fit them, and the search of
// the step.
#pragma once
#include "cuda_entropy_encoder.h"

namespace commpress {
namespace cuda {

COMMPRESS_DEVICE void fill_lengths(const EncoderMemory& m) {
  for (int f = thread(); f <= entropy::TOTAL; f += threads())
    m.lengths[f] = f ? static_cast<uint32_t>(entropy::length_of(static_cast<uint32_t>(f))) : 0;
}

COMMPRESS_DEVICE bool is_folded(const EcsqQuantiser& q) { return q.dither && q.raw == 0; }

// ---- frequencies, by a whole warp ----

// Of symbols number lane() and 32 + lane(): low | high << 13, and 1 << 31 if the row is possible.
constexpr uint32_t ROW_POSSIBLE = 1u << 31;
COMMPRESS_SELDOM uint32_t row_frequencies(entropy::Model model, int64_t relative, bool folded, int cell) {
  const int64_t level = entropy::nominal(relative) - 32 * entropy::raw_bits(relative) + model.shift;
  const int l = lane(), largest = model.largest;
  int32_t low, high;
  if (folded) {
    // The part above the thresholds of values l - 32 and l, and of the next ones.
    const int64_t first = entropy::dithered_tail(model.shape, level, cell, l - 31),
                  second = entropy::dithered_tail(model.shape, level, cell, l + 1);
    const int64_t before = __shfl_up_sync(ALL_LANES, first, 1), middle = __shfl_sync(ALL_LANES, first, 31),
                  between = __shfl_up_sync(ALL_LANES, second, 1);
    low = l == 0 ? 0 : entropy::frequency(before, first);
    high = entropy::frequency(l == 0 ? middle : between, second);
  } else {
    const int64_t tail = entropy::plain_tail(model.shape, level, entropy::dead_zone(relative), l + 1),
                  before = __shfl_up_sync(ALL_LANES, tail, 1);
    high = entropy::frequency(before, tail);
    low = __shfl_sync(ALL_LANES, high, (32 - l) % 32);
  }
  if (32 - l > largest) low = 0;
  if (l > largest || l == 0) high = 0;
  const int32_t zero = entropy::TOTAL - model.escape - __reduce_add_sync(ALL_LANES, low + high);
  if (l == 0) {
    low = model.escape;
    high = zero;
  }
  return (static_cast<uint32_t>(low) & 0x1FFF) | (static_cast<uint32_t>(high) & 0x1FFF) << 13 |
         (zero >= 1 ? ROW_POSSIBLE : 0);
}
COMMPRESS_DEVICE uint32_t low_of(uint32_t frequencies) { return frequencies & 0x1FFF; }
COMMPRESS_DEVICE uint32_t high_of(uint32_t frequencies) { return frequencies >> 13 & 0x1FFF; }

// ---- models ----

// What symbols cost under a model, `escaped` ones included; `counts` has 64 for each row. By a whole warp.
COMMPRESS_SELDOM int64_t price_of(const EncoderMemory& m, entropy::Model model, int64_t relative, bool folded,
                                  const uint32_t* counts, int64_t escaped) {
  int64_t sum = 0;
  COMMPRESS_ROLLED
  for (int row = 0; row < (folded ? entropy::CELLS : 1); ++row) {
    const uint32_t f = row_frequencies(model, relative, folded, row);
    if (!(f & ROW_POSSIBLE)) return int64_t{1} << 62;
    if (lane() > 0) sum += static_cast<int64_t>(counts[64 * row + lane()]) * m.lengths[low_of(f)];
    sum += static_cast<int64_t>(counts[64 * row + 32 + lane()]) * m.lengths[high_of(f)];
  }
  return warp_sum(sum) + escaped * m.lengths[model.escape];
}

// entropy::fit() of the counts in the warp's words; by a whole warp.
struct Fitted {
  entropy::Model model;
  int64_t cost;
};
COMMPRESS_SELDOM Fitted fit_model(EncoderSpace& s, const EncoderMemory& m, int64_t relative, bool dithered) {
  const bool folded = dithered && entropy::raw_bits(relative) == 0;
  const uint32_t* const counts = words_of_warp(s);
  uint32_t met = 0, escapes = 0;
  for (int row = 0; row < (folded ? entropy::CELLS : 1); ++row) {
    met += counts[64 * row + 32 + lane()] + (lane() ? counts[64 * row + 32 - lane()] : 0);
    escapes += counts[64 * row];
  }
  uint32_t* const magnitudes = s.magnitudes[warp()];
  magnitudes[lane()] = met;
  __syncwarp();
  struct Magnitudes {
    const uint32_t* of;
    COMMPRESS_DEVICE int64_t operator[](int k) const { return of[k]; }
  };
  entropy::Model base;
  base.largest = entropy::largest_symbol(Magnitudes{magnitudes}, escapes);
  escapes += __reduce_add_sync(ALL_LANES, lane() > base.largest ? met : 0u);
  base.escape = escapes > 0;
  if (base.empty()) return {base, 0};
  int64_t least;
  const entropy::Model best = entropy::descend(
      base, [&](const entropy::Model& model) { return price_of(m, model, relative, folded, counts, escapes); }, least);
  return {best, least + 32 * static_cast<int64_t>(escapes) * 65536};
}

// ---- symbols met ----

// Of a class without dither at 32 + magnitude, as entropy::Counts; by a whole warp, to its words.
COMMPRESS_DEVICE void count_block(EncoderSpace& s, const EncoderMemory& m, const EcsqQuantiser& q, int block,
                                  uint32_t* counts) {
  const float* const y = m.y + static_cast<int64_t>(block) * GROUP_COORDINATES;
  const int n = size_of(s, block);
  const bool folded = is_folded(q);
  const auto add = [&](int i, int32_t w) {
    if (i >= n) return;
    const int32_t high = ecsq_high(ecsq_value(q, y[i] * q.gain * q.inverse, w), q.raw), a = high < 0 ? -high : high;
    const int32_t symbol = a > entropy::LARGEST ? 0 : 32 + (folded ? (w < 0 ? -high : high) : a);
    atomicAdd(counts + (folded ? 64 * ecsq_cell(w) : 0) + symbol, 1u);
  };
  if (q.dither) {
    const Dithers dithers(s, block);
    COMMPRESS_ROLLED
    for (int i = lane(); i < GROUP_COORDINATES; i += 32) add(i, dithers.at(i));
  } else {
    COMMPRESS_ROLLED
    for (int i = lane(); i < n; i += 32) add(i, 0);
  }
}

// Adds up what the blocks of all classes have that wanted(block) names, every `stride`-th one, in m.classes, which is
// cleared before. Returns the bytes of raw bits that the thread's own blocks take. A barrier must follow.
template <class Wanted>
COMMPRESS_DEVICE int64_t count_symbols(EncoderSpace& s, const EncoderMemory& m, int stride, const Wanted& wanted) {
  for (int i = thread(); i < s.count * WARP_WORDS; i += threads()) m.classes[i] = 0;
  uint32_t* const met = m.classes;
  COMMPRESS_GLOBAL(met);
  uint32_t* const counts = words_of_warp(s);
  for (int i = lane(); i < WARP_WORDS; i += 32) counts[i] = 0;
  __syncthreads();
  const int taken = (s.blocks + stride - 1) / stride, each = (taken + ENCODER_WARPS - 1) / ENCODER_WARPS;
  const int end = smaller((warp() + 1) * each, taken);
  int64_t raw = 0;
  int current = -1;
  const auto deliver = [&] {
    __syncwarp();
    for (int i = lane(); current >= 0 && i < WARP_WORDS; i += 32)
      if (counts[i]) {
        atomicAdd(met + WARP_WORDS * current + i, counts[i]);
        counts[i] = 0;
      }
    __syncwarp();
  };
  for (int i = warp() * each; i < end; ++i) {
    const int b = i * stride, kind = m.kinds[b];
    if (kind < 0 || !wanted(b)) continue;
    if (kind != current) deliver();
    current = kind;
    const EcsqQuantiser q = s.quantisers[kind];
    count_block(s, m, q, b, counts);
    if (lane() == 0) raw += raw_nbytes(s, b, q.raw);
  }
  deliver();
  return raw;
}

// ---- the step ----

COMMPRESS_DEVICE void set_step(EncoderSpace& s, int64_t j) {
  if (thread() < s.count)
    s.quantisers[thread()] = ecsq_quantiser(s.gain, relative_of(s, thread(), j), j, s.codec().dither);
}

// Bytes for every stride-th block, times stride; leaves the models in s.models. In every thread; ends in step. What is
// alive while models are fitted is in shared memory: there are few registers that calls leave alone.
COMMPRESS_SELDOM int64_t bytes_at(EncoderSpace& s, const EncoderMemory& m, int64_t j, int stride) {
  __syncthreads();
  set_step(s, j);
  if (thread() == 0) {
    s.j = j;
    s.stride = stride;
  }
  const int64_t raw = block_sum(s, count_symbols(s, m, stride, [](int) { return true; }));
  if (thread() == 0) s.raw_nbytes = raw;
  COMMPRESS_ROLLED
  for (int k = warp(); k < s.count; k += ENCODER_WARPS) {
    Fitted fitted{{}, 0};
    if (s.present[k]) {
      uint32_t* const counts = words_of_warp(s);
      __syncwarp();
      for (int i = lane(); i < WARP_WORDS; i += 32) counts[i] = m.classes[WARP_WORDS * k + i];
      __syncwarp();
      fitted = fit_model(s, m, relative_of(s, k, s.j), s.codec().dither);
    }
    if (lane() == 0) {
      s.models[k] = fitted.model;
      s.costs[k] = fitted.cost;
    }
  }
  __syncthreads();
  int64_t bits = 0;
  for (int k = 0; k < s.count; ++k) bits += s.costs[k];
  return ((bits + (1 << 19) - 1) / (1 << 19) + s.raw_nbytes) * s.stride;
}

// Tries a step, and keeps its models if it is the finest yet that fits. By all; ends in step.
COMMPRESS_DEVICE void try_step(EncoderSpace& s, const EncoderMemory& m, int64_t j, bool full) {
  const int64_t nbytes = bytes_at(s, m, j, full ? 1 : static_cast<int>(ECSQ_STRIDE));
  const bool better = s.stride == 1 && nbytes <= s.room && (!s.found || s.j < s.best_step);
  __syncthreads();
  if (better && thread() < s.count) s.best[thread()] = s.models[thread()];
  if (thread() == 0) {
    if (better) {
      s.found = true;
      s.best_step = s.j;
    }
    s.secant.take(nbytes);
  }
  __syncthreads();
}

// From s.secant.j on. What the search remembers is in shared memory: it would be alive in registers all along.
COMMPRESS_SELDOM void search_step(EncoderSpace& s, const EncoderMemory& m, bool full) {
  __syncthreads();  // warps may still be at the search before
  if (thread() == 0) s.secant.begin(s.room, s.secant.j, s.finest_step, s.room >> (full ? 13 : 11), s.n, full ? 8 : 5);
  __syncthreads();
  COMMPRESS_ROLLED
  while (!s.secant.done) try_step(s, m, s.secant.j, full);
}

// The finest step that fits, in s.best_step, with its models in s.models; false if none does. In every thread; ends in
// step.
COMMPRESS_DEVICE bool find_step(EncoderSpace& s, const EncoderMemory& m) {
  if (thread() == 0) {
    s.found = false;
    s.secant.j = s.first_step;
  }
  __syncthreads();
  if (s.blocks >= ECSQ_SAMPLED_BLOCKS) search_step(s, m, false);
  search_step(s, m, true);
  if (thread() == 0) s.last_step = s.secant.j;
  __syncthreads();
  COMMPRESS_ROLLED
  for (int i = 0; i < 200 && !s.found; ++i) try_step(s, m, s.last_step + 512 * (i + 1), true);
  if (thread() < s.count) s.models[thread()] = s.best[thread()];
  __syncthreads();
  return s.found;
}

}  // namespace cuda
}  // namespace commpress
