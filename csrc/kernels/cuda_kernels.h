// The kernels: a persistent grid of blocks of threads works through the blocks of all layers.
#pragma once
#include "cuda_rotated.h"

namespace commpress {
namespace cuda {

// One kernel for `uniform`, one for both families with Lloyd-Max codes (FAMILY = HADAMARD_LLOYD).
template <int FAMILY>
COMMPRESS_DEVICE bool is_mine(int family) {
  return family == FAMILY || (FAMILY == HADAMARD_LLOYD && family == LLOYD);
}

// Blocks of threads that a multiprocessor should hold at least; the compiler keeps registers few enough for that.
template <int FAMILY>
struct Resident {
  static constexpr int ENCODERS = FAMILY == UNIFORM ? 5 : 3, DECODERS = FAMILY == UNIFORM ? 4 : 3;
};
constexpr int BLOCKS_PER_PROCESSOR = 8;  // in a grid: as many as can be resident, whatever the kernel

// Where a block's working memory lies. `uniform` packs while its values are still wanted; the others pack after.
template <int FAMILY>
struct Shared {
  static constexpr int VALUES = static_cast<int>(BLOCK) + (FAMILY == UNIFORM ? STAGED_WORDS : 0);
  alignas(16) float y[VALUES];
  alignas(16) uint8_t codes[BLOCK];
  alignas(16) uint32_t signs[128];
  float sums[64];
  uint32_t scratch[32];
  LloydTables<4> four;   // in reach of all lanes at once
  float few_levels[32];  // level of code c of b <= 4 bits: number 2^b + c

  COMMPRESS_DEVICE Workspace workspace() {
    return {y, codes, signs, sums, scratch, reinterpret_cast<uint32_t*>(y) + (FAMILY == UNIFORM ? BLOCK : BLOCK / 4)};
  }
};

// Copies the tables that the fast ways look up for every coordinate. Ends in step.
template <int FAMILY>
COMMPRESS_DEVICE void fill_tables(Shared<FAMILY>& shared) {
  if constexpr (FAMILY != UNIFORM) {
    static_assert(sizeof(LloydTables<4>) % 4 == 0, "words");
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(&LLOYD_TABLES<4>);
    uint32_t* const to = reinterpret_cast<uint32_t*>(&shared.four);
    for (int i = thread(); i < static_cast<int>(sizeof(LloydTables<4>) / 4); i += threads()) to[i] = from[i];
    for (int i = 2 + thread(); i < 32; i += threads()) {
      const int bits = i < 4 ? 1 : i < 8 ? 2 : i < 16 ? 3 : 4;
      shared.few_levels[i] = level_of(bits, static_cast<uint32_t>(i - (1 << bits)));
    }
  }
  __syncthreads();
}

// ---- fp32 as it is, and casts ----

COMMPRESS_DEVICE bool is_plain(int family) { return family <= CAST_BF16; }

COMMPRESS_DEVICE uint32_t narrowed(int family, float x) { return family == CAST_FP16 ? to_fp16(x) : to_bf16(x); }
COMMPRESS_DEVICE float widened(int family, uint32_t half) {
  return family == CAST_FP16 ? from_fp16(static_cast<uint16_t>(half)) : from_bf16(static_cast<uint16_t>(half));
}
COMMPRESS_DEVICE float times(float x, float gain) { return gain == 1.0f ? x : x * gain; }  // 1 leaves every NaN alone

// Sixteen bytes of the payload at a time, and the rest value by value.
COMMPRESS_DEVICE void plain_encode(const Values& x, const Place& at, float gain, uint8_t* out) {
  const int family = at.codec.family, step = family == RAW ? 4 : 8, whole = at.n / step;
  for (int c = thread(); c < whole; c += threads()) {
    uint32_t words[4];
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 4; ++i)
      words[i] = family == RAW
                     ? bits_of(times(x[4 * c + i], gain))
                     : narrowed(family, x[8 * c + 2 * i] * gain) | narrowed(family, x[8 * c + 2 * i + 1] * gain) << 16;
    store_four(gathered(words), out + 16 * c);
  }
  for (int i = whole * step + thread(); i < at.n; i += threads()) {
    if (family == RAW)
      store_word(bits_of(times(x[i], gain)), out + 4 * i);
    else
      store_half(narrowed(family, x[i] * gain), out + 2 * i);
  }
}

COMMPRESS_DEVICE void plain_decode(const uint8_t* in, const Place& at, float* out, const Sink& sink) {
  const int family = at.codec.family, step = family == RAW ? 4 : 8, whole = at.n / step;
  for (int c = thread(); c < whole; c += threads()) {
    uint32_t words[4];
    spread(load_four(in + 16 * c), words);
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 4; ++i) {
      if (family == RAW) {
        deliver(out + 4 * c + i, times(float_of(words[i]), sink.gain), sink);
      } else {
        deliver(out + 8 * c + 2 * i, widened(family, words[i] & 0xFFFF) * sink.gain, sink);
        deliver(out + 8 * c + 2 * i + 1, widened(family, words[i] >> 16) * sink.gain, sink);
      }
    }
  }
  for (int i = whole * step + thread(); i < at.n; i += threads()) {
    if (family == RAW)
      deliver(out + i, times(float_of(word_from(in + 4 * i)), sink.gain), sink);
    else
      deliver(out + i, widened(family, half_from(in + 2 * i)) * sink.gain, sink);
  }
}

// ---- encode ----

template <int FAMILY>
__global__ void __launch_bounds__(BLOCK_THREADS, Resident<FAMILY>::ENCODERS)
    encode_kernel(const __grid_constant__ Job job, const __grid_constant__ Values x, float gain, uint8_t* out,
                  bool plain) {
  COMMPRESS_SHARED(Shared<FAMILY>, shared, 1);
  const Workspace w = shared[0].workspace();
  fill_tables(shared[0]);
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const Place at = place_of(job, unit);
    const Values from = x.from(at.first);
    uint8_t* const to = out + at.byte;
    if (is_plain(at.codec.family)) {
      if (plain) plain_encode(from, at, gain, to);
      continue;
    }
    if (!is_mine<FAMILY>(at.codec.family)) continue;
    const bool whole = at.n == BLOCK && !below_one_bit(at.codec.rate);
    if constexpr (FAMILY == UNIFORM) {
      if (whole) {
        uniform_encode_fast(w, from, at, gain, to);
        continue;
      }
      __syncthreads();  // warps may still be at blocks before
      uniform_encode_careful(w, from, at.n, at.codec.rate, at.key, at.index, gain, to);
    } else if (at.codec.family == LLOYD) {
      lloyd_encode_careful(w, from, at.n, at.codec.rate, at.key, at.index, gain, to);
    } else if (!whole || !rotated_encode_fast(w, shared[0].four, from, at, gain, to)) {
      rotated_encode_any(w, from, at.n, {at.codec.rate, at.codec.centroid}, at.key, at.index, gain, to);
    }
  }
}

// ---- decode ----

// One sender's block, whatever it is.
template <int FAMILY>
COMMPRESS_DEVICE bool decode_careful(const Workspace& w, const uint8_t* in, const Place& at, float* out,
                                     const Sink& sink) {
  if constexpr (FAMILY == UNIFORM)
    return uniform_decode_careful(w, in, at.n, at.codec.rate, at.key, at.index, out, sink) >= 0;
  else if (at.codec.family == LLOYD)
    return lloyd_decode_careful(w, in, at.n, at.codec.rate, at.key, at.index, out, sink) >= 0;
  else
    return rotated_decode_any(w, in, at.n, {at.codec.rate, at.codec.centroid}, at.key, at.index, out, sink);
}

template <int FAMILY>
__global__ void __launch_bounds__(BLOCK_THREADS, Resident<FAMILY>::DECODERS)
    decode_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                  const __grid_constant__ Delivery delivery, Report* report, bool plain) {
  COMMPRESS_SHARED(Shared<FAMILY>, shared, 1);
  const Workspace w = shared[0].workspace();
  fill_tables(shared[0]);
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    Place at = place_of(job, unit);
    float* const to = out + at.first;
    if (is_plain(at.codec.family)) {
      if (!plain) continue;
      for (int sender = 0; sender < sources.count; ++sender)
        plain_decode(sources.payload[sender] + at.byte, at, to, sink_of(delivery, sender));
      __syncthreads();
      note_non_finite(to, at.n, report);
      continue;
    }
    if (!is_mine<FAMILY>(at.codec.family)) continue;
    if (at.n == BLOCK && !below_one_bit(at.codec.rate)) {
      if constexpr (FAMILY == UNIFORM) {
        uniform_decode_fast(w, sources, at, to, delivery, report);
        continue;
      } else if (at.codec.family == HADAMARD_LLOYD && rotated_plain(sources, at.byte, delivery.gain)) {
        rotated_decode_fast(w, shared[0].few_levels, sources, at, to, delivery, report);
        continue;
      }
    }
    __syncthreads();  // warps may still be at blocks before
    for (int sender = 0; sender < sources.count; ++sender) {
      at.key.sender_phase = sources.sender_phase[sender];
      const bool valid =
          decode_careful<FAMILY>(w, sources.payload[sender] + at.byte, at, to, sink_of(delivery, sender));
      if (!valid && thread() == 0) report_invalid(report, sources, sender);
    }
    note_non_finite(to, at.n, report);
  }
}

}  // namespace cuda
}  // namespace commpress
