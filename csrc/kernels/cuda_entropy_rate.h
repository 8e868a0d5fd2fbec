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
COMMPRESS_SELDOM uint32_t row_frequencies(const entropy::Model& model, int64_t relative, bool folded, int cell) {
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
COMMPRESS_SELDOM int64_t price_of(const EncoderMemory& m, const entropy::Model& model, int64_t relative, bool folded,
                                  const uint32_t* counts, int64_t escaped) {
  int64_t sum = 0;
  for (int row = 0; row < (folded ? entropy::CELLS : 1); ++row) {
    const uint32_t f = row_frequencies(model, relative, folded, row);
    if (!(f & ROW_POSSIBLE)) return int64_t{1} << 62;
    if (lane() > 0) sum += static_cast<int64_t>(counts[64 * row + lane()]) * m.lengths[low_of(f)];
    sum += static_cast<int64_t>(counts[64 * row + 32 + lane()]) * m.lengths[high_of(f)];
  }
  return warp_sum(sum) + escaped * m.lengths[model.escape];
}

// entropy::fit() of the counts in the warp's words; by a whole warp.
COMMPRESS_SELDOM entropy::Model fit_model(EncoderSpace& s, const EncoderMemory& m, int64_t relative, bool dithered,
                                          int64_t& cost) {
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
  cost = 0;
  if (base.empty()) return base;
  int64_t least;
  const entropy::Model best = entropy::descend(
      base, [&](const entropy::Model& model) { return price_of(m, model, relative, folded, counts, escapes); }, least);
  cost = least + 32 * static_cast<int64_t>(escapes) * 65536;
  return best;
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
    for (int i = lane(); i < GROUP_COORDINATES; i += 32) add(i, dithers.at(i));
  } else {
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

// Bytes for every stride-th block, times stride; leaves the models in s.models. In every thread; ends in step.
COMMPRESS_SELDOM int64_t bytes_at(EncoderSpace& s, const EncoderMemory& m, int64_t j, int stride) {
  __syncthreads();
  set_step(s, j);
  const int64_t own = count_symbols(s, m, stride, [](int) { return true; });
  __syncthreads();
  for (int k = warp(); k < s.count; k += ENCODER_WARPS) {
    int64_t cost = 0;
    entropy::Model model;
    if (s.present[k]) {
      uint32_t* const counts = words_of_warp(s);
      __syncwarp();
      for (int i = lane(); i < WARP_WORDS; i += 32) counts[i] = m.classes[WARP_WORDS * k + i];
      __syncwarp();
      model = fit_model(s, m, relative_of(s, k, j), s.codec().dither, cost);
    }
    if (lane() == 0) {
      s.models[k] = model;
      s.costs[k] = cost;
    }
  }
  const int64_t raw = block_sum(s, own);
  int64_t bits = 0;
  for (int k = 0; k < s.count; ++k) bits += s.costs[k];
  return ((bits + (1 << 19) - 1) / (1 << 19) + raw) * stride;
}

// The finest step that fits, with its models in s.models; false if none does. In every thread; ends in step.
COMMPRESS_DEVICE bool find_step(EncoderSpace& s, const EncoderMemory& m, int64_t& j) {
  const int64_t room = s.room, finest = s.finest_step;
  j = s.first_step;
  if (s.blocks >= ECSQ_SAMPLED_BLOCKS)
    j = entropy::search([&](int64_t at) { return bytes_at(s, m, at, static_cast<int>(ECSQ_STRIDE)); }, room, j, finest,
                        room >> 11, s.n, 5)
            .last;
  int64_t best = 0;
  bool found = false;
  const auto full = [&](int64_t at) {
    const int64_t nbytes = bytes_at(s, m, at, 1);
    if (nbytes <= room && (!found || at < best)) {
      found = true;
      best = at;
      if (thread() < s.count) s.best[thread()] = s.models[thread()];
    }
    return nbytes;
  };
  int64_t last = entropy::search(full, room, j, finest, room >> 13, s.n, 8).last;
  for (int i = 0; i < 200 && !found; ++i) full(last += 512);
  __syncthreads();
  if (thread() < s.count) s.models[thread()] = s.best[thread()];
  __syncthreads();
  j = best;
  return found;
}

}  // namespace cuda
}  // namespace commpress
