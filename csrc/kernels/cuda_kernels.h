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

// Threads that work on a block, and how many such blocks a multiprocessor should hold at least.
template <int FAMILY>
struct Shape {
  static constexpr int THREADS = FAMILY == UNIFORM ? UNIFORM_THREADS : ROTATED_THREADS;
  static constexpr int ENCODERS = FAMILY == UNIFORM ? 5 : 6, DECODERS = FAMILY == UNIFORM ? 4 : 5;
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
  Groups groups;
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

COMMPRESS_SELDOM void plain_encode(Workspace w, Values x, Place at, float gain, uint8_t* out) {
  const bool raw = at.codec.family == RAW;
  uint16_t* const halves = reinterpret_cast<uint16_t*>(w.y);
  for (int i = thread(); i < at.n; i += threads()) {
    const float value = x[i];
    if (raw)
      w.y[i] = gain == 1.0f ? value : value * gain;
    else
      halves[i] = at.codec.family == CAST_FP16 ? to_fp16(value * gain) : to_bf16(value * gain);
  }
  __syncthreads();
  store_bytes(reinterpret_cast<uint32_t*>(w.y), 0, (raw ? 4 : 2) * at.n, out);
  __syncthreads();
}

COMMPRESS_SELDOM void plain_decode(Workspace w, const uint8_t* in, Place at, float* out, Sink sink) {
  const bool raw = at.codec.family == RAW;
  load_bytes(in, (raw ? 4 : 2) * at.n, reinterpret_cast<uint32_t*>(w.y));
  __syncthreads();
  const uint16_t* const halves = reinterpret_cast<const uint16_t*>(w.y);
  for (int i = thread(); i < at.n; i += threads()) {
    if (raw)
      deliver(out + i, sink.gain == 1.0f ? w.y[i] : w.y[i] * sink.gain, sink);
    else
      deliver(out + i, (at.codec.family == CAST_FP16 ? from_fp16(halves[i]) : from_bf16(halves[i])) * sink.gain, sink);
  }
  __syncthreads();
}

// ---- encode ----

template <int FAMILY>
__global__ void __launch_bounds__(Shape<FAMILY>::THREADS, Shape<FAMILY>::ENCODERS)
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
      if (plain) plain_encode(w, from, at, gain, to);
      continue;
    }
    if (!is_mine<FAMILY>(at.codec.family)) continue;
    const bool whole = at.n == BLOCK && !below_one_bit(at.codec.rate);
    const Rate rate{at.codec.rate, at.codec.centroid};
    if constexpr (FAMILY == UNIFORM) {
      if (!whole || !uniform_encode_fast(w.staged, shared[0].groups, from, rate.value, at.key, at.index, gain, to))
        uniform_encode_careful(w, from, at.n, rate.value, at.key, at.index, gain, to);
    } else if (at.codec.family == LLOYD) {
      lloyd_encode_careful(w, from, at.n, rate.value, at.key, at.index, gain, to);
    } else {
      if (!whole || !rotated_encode_fast(w, shared[0].four, shared[0].groups, from, rate, at.key, at.index, gain, to))
        rotated_encode_any(w, from, at.n, rate, at.key, at.index, gain, to);
    }
    __syncthreads();
  }
}

// ---- decode ----

// One sender's block, whatever it is.
template <int FAMILY>
COMMPRESS_DEVICE bool decode_careful(const Workspace& w, const uint8_t* in, const Place& at, float* out,
                                     const Sink& sink) {
  if (is_plain(at.codec.family)) {
    plain_decode(w, in, at, out, sink);
    return true;
  }
  if constexpr (FAMILY == UNIFORM)
    return uniform_decode_careful(w, in, at.n, at.codec.rate, at.key, at.index, out, sink) >= 0;
  else if (at.codec.family == LLOYD)
    return lloyd_decode_careful(w, in, at.n, at.codec.rate, at.key, at.index, out, sink) >= 0;
  else
    return rotated_decode_any(w, in, at.n, {at.codec.rate, at.codec.centroid}, at.key, at.index, out, sink);
}

template <int FAMILY>
__global__ void __launch_bounds__(Shape<FAMILY>::THREADS, Shape<FAMILY>::DECODERS)
    decode_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                  const __grid_constant__ Delivery delivery, Report* report, bool plain) {
  COMMPRESS_SHARED(Shared<FAMILY>, shared, 1);
  const Workspace w = shared[0].workspace();
  fill_tables(shared[0]);
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    Place at = place_of(job, unit);
    if (is_plain(at.codec.family) ? !plain : !is_mine<FAMILY>(at.codec.family)) continue;
    float* const to = out + at.first;
    if (!is_plain(at.codec.family) && at.n == BLOCK && !below_one_bit(at.codec.rate)) {
      fill_groups(shared[0].groups, at.codec.rate, at.index, FAMILY == UNIFORM ? 2 : 0);
      __syncthreads();
      if constexpr (FAMILY == UNIFORM) {
        if (uniform_plain(shared[0].groups, sources, at.byte)) {
          uniform_decode_fast(w.staged, shared[0].groups, sources, at.byte, to, delivery, report);
          __syncthreads();
          continue;
        }
      } else {
        if (at.codec.family == HADAMARD_LLOYD && rotated_plain(sources, at.byte, delivery.gain)) {
          rotated_decode_fast(w, shared[0].few_levels, shared[0].groups, sources, at, to, delivery, report);
          __syncthreads();
          continue;
        }
      }
    }
    for (int sender = 0; sender < sources.count; ++sender) {
      at.key.sender_phase = sources.sender_phase[sender];
      const bool valid =
          decode_careful<FAMILY>(w, sources.payload[sender] + at.byte, at, to, sink_of(delivery, sender));
      if (!valid && thread() == 0) report_invalid(report, sources, sender);
    }
    note_non_finite(to, at.n, report);
    __syncthreads();
  }
}

}  // namespace cuda
}  // namespace commpress
