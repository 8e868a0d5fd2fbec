// The entropy-coded quantisers, encoded: a block of threads does all of a segment, as ecsq_encode() does.
#pragma once
#include "cuda_encode_ectcq.h"
#include "cuda_entropy_classes.h"
#include "cuda_entropy_rate.h"
#include "cuda_entropy_writer.h"

namespace commpress {
namespace cuda {

// What the header says of a class's levels, by one thread; adds to what rho is the quotient of.
struct Placement {
  int64_t one, two, slope;
};
enum Moment { N1, W1, N2, W2, N3, W3, Q3, X3, SQUARES, MOMENTS };
COMMPRESS_DEVICE Placement placement_of(const unsigned long long* moments, double& energy, double& product) {
  int64_t of[MOMENTS];
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < MOMENTS; ++i) of[i] = static_cast<int64_t>(moments[i]);
  const int64_t one = ecsq_mean(of[W1] - 256 * of[N1], of[N1]), two = ecsq_mean(of[W2] - 512 * of[N2], of[N2]);
  const int64_t slope = ecsq_mean(16 * (of[W3] - 256 * of[Q3] - two * of[N3]), of[Q3] - 2 * of[N3]);
  energy += static_cast<double>(16 * of[SQUARES]);
  product += static_cast<double>(16 * (256 + one) * of[W1] + 16 * (512 + two) * of[W2] + (4096 + slope) * of[X3] +
                                 (16 * two - 2 * slope) * of[W3]);
  return {one, two, slope};
}

// Nine for each class, in place of the entries of symbols, which nothing wants any more.
COMMPRESS_DEVICE unsigned long long* moments_of(const EncoderMemory& m, int kind) {
  uint32_t* const words = m.classes;
  COMMPRESS_GLOBAL(words);
  return reinterpret_cast<unsigned long long*>(words) + MOMENTS * kind;
}

// Of values with a symbol, for their placement, without dither and raw bits; a warp for each block. Ends in step.
COMMPRESS_DEVICE void add_moments(EncoderSpace& s, const EncoderMemory& m) {
  for (int i = thread(); i < MOST_CLASSES * MOMENTS; i += threads()) *(moments_of(m, 0) + i) = 0;
  __syncthreads();
  for (int b = warp(); b < s.blocks; b += ENCODER_WARPS) {
    const int kind = m.kinds[b];
    if (kind < 0 || s.quantisers[kind].raw) continue;
    const EcsqQuantiser q = s.quantisers[kind];
    const int largest = s.models[kind].get().largest, n = size_of(s, b);
    const float* const y = m.y + static_cast<int64_t>(b) * GROUP_COORDINATES;
    uint32_t of[MOMENTS] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
    for (int i = lane(); i < n; i += 32) {
      const float v = y[i] * q.gain * q.inverse;
      const int32_t value = ecsq_value(q, v, 0), a = value < 0 ? -value : value;
      if (a > largest) continue;
      const uint32_t fine = static_cast<uint32_t>(round_to_int(float_of(bits_of(v) & 0x7FFFFFFFu) * 256.0f));
      of[SQUARES] += fine * fine;
      of[N1] += a == 1;
      of[W1] += a == 1 ? fine : 0;
      of[N2] += a == 2;
      of[W2] += a == 2 ? fine : 0;
      of[N3] += a > 2;
      of[W3] += a > 2 ? fine : 0;
      of[Q3] += a > 2 ? static_cast<uint32_t>(a) : 0;
      of[X3] += a > 2 ? fine * static_cast<uint32_t>(a) : 0;
    }
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < MOMENTS; ++i) {
      const int64_t sum = warp_sum(of[i]);
      if (lane() == 0 && sum) atomicAdd(moments_of(m, kind) + i, static_cast<unsigned long long>(sum));
    }
  }
  __syncthreads();
}

// Header and tables of classes, by one thread.
COMMPRESS_SELDOM void write_header(EncoderSpace& s, const EncoderMemory& m, int64_t j, uint8_t* out) {
  uint8_t* to = out + write_beginning(s, m, ECSQ_CODED, j, out);
  double energy = 0, product = 0;
  for (int k = 0; k < s.count; ++k) {
    if (!s.present[k]) continue;
    const entropy::Model& model = s.models[k].get();
    *to++ = static_cast<uint8_t>((model.shift + 64) | model.escape << 7);
    *to++ = static_cast<uint8_t>(model.largest | model.shape << 5);
    if (s.codec().dither) continue;
    const Placement place = placement_of(moments_of(m, k), energy, product);
    *to++ = static_cast<uint8_t>(place.one);
    *to++ = static_cast<uint8_t>(place.two);
    *to++ = static_cast<uint8_t>(place.slope);
  }
  const float rho = product > 0 ? static_cast<float>(energy / product) : 1.0f;
  if (ecsq_has_rho(s.codec())) store_word(bits_of(rho), out + 18);
}

// With the models in s.models. False, and nothing was written: there is not enough room. Ends in step.
COMMPRESS_SELDOM bool write_segment(EncoderSpace& s, const EncoderMemory& m, int64_t j, uint8_t* out) {
  set_step(s, j);
  __syncthreads();
  fill_entries(s, m, j);
  const uint32_t entries = static_cast<uint32_t>(s.header - (s.substreams - 1) * static_cast<int>(ECSQ_ENTRY_NBYTES));
  const uint32_t body = place_raw_bits(s, m, static_cast<uint32_t>(s.header + s.kinds_nbytes),
                                       [&](int kind) { return s.quantisers[kind].raw; });
  int current = -1;
  write_streams(s, m, s.lanes, [&](int b, int kind, StreamWriter& writer) {
    uint32_t* const table = words_of_warp(s);
    const EcsqQuantiser q = s.quantisers[kind];
    if (kind != current) {
      __syncwarp();
      for (int i = lane(); i < (is_folded(q) ? WARP_WORDS : 64); i += 32) table[i] = m.classes[WARP_WORDS * kind + i];
      __syncwarp();
      current = kind;
    }
    write_block(s, m, q, s.models[kind].get().largest, s.models[kind].get().empty(), s.lanes, b, table, writer);
  });
  if (!place_streams(s, m, body, entries, out)) return false;
  for (int b = warp(); b < s.blocks; b += ENCODER_WARPS) {
    const int kind = m.kinds[b];
    if (kind >= 0 && s.quantisers[kind].raw)
      write_raw_bits(s, m, s.quantisers[kind], s.models[kind].get().largest, b, out);
  }
  if (!s.codec().dither) add_moments(s, m);
  if (thread() == 0) write_header(s, m, j, out);
  write_kinds(s, m, entries, out);
  __syncthreads();
  return true;
}

// False: there is no room even for a coarse step.
COMMPRESS_SELDOM bool encode_classes_of(EncoderSpace& s) {
  if (!find_step(s, s.memory)) return false;
  if (thread() == 0) s.j = s.best_step;
  __syncthreads();
  COMMPRESS_ROLLED
  while (!write_segment(s, s.memory, s.j, s.out)) bytes_at(s, s.memory, s.j + 16, 1);  // more than was counted
  return true;
}

COMMPRESS_SELDOM void write_mode(const EncoderSpace& s, int mode, uint8_t* out) {
  for (uint32_t i = thread(); i < s.nbytes; i += threads()) out[i] = i ? 0 : static_cast<uint8_t>(mode);
}

COMMPRESS_SELDOM void write_values(const EncoderSpace& s, Values x, uint8_t* out) {
  const int n = s.n;
  for (int i = thread(); i < n; i += threads()) {
    const float value = x[i];
    uint32_t bits = bits_of(value * s.gain);
    if (magnitude(value) >= SCALE32_INFINITY)
      bits = bits_of(value);
    else if ((bits & 0x7FFFFFFFu) >= SCALE32_INFINITY)
      bits = bits_of(value * s.gain < 0 ? -ECSQ_FLT_MAX : ECSQ_FLT_MAX);
    store_word(bits, out + 1 + 4 * static_cast<int64_t>(i));
  }
  for (uint32_t i = 1 + 4 * static_cast<uint32_t>(n) + thread(); i < s.nbytes; i += threads()) out[i] = 0;
  if (thread() == 0) out[0] = ECSQ_RAW;
}

// Ends in step.
COMMPRESS_DEVICE void encode_segment(EncoderSpace& s, const Values& x) {
  if (s.nbytes >= 1 + 4 * static_cast<int64_t>(s.n)) {
    write_values(s, x, s.out);
    __syncthreads();
    return;
  }
  load_segment(s, s.memory, x);
  fill_lengths(s.memory);
  bool done = false;
  if (measure_blocks(s, s.memory)) {
    classify(s, s.memory);
    done = (s.codec().states && s.nbytes >= ECTCQ_LEAST_NBYTES && ectcq_encode(s)) || encode_classes_of(s);
  }
  if (!done) write_mode(s, s.any_nan ? ECSQ_NAN : ECSQ_ZERO, s.out);
  __syncthreads();
}

// Segments are layers; how many of them there are only the last unit's knows.
static __global__ void __launch_bounds__(ENCODER_THREADS, 1)
    encode_entropy_kernel(const __grid_constant__ Job job, const __grid_constant__ Values x, float gain, uint8_t* out,
                          const __grid_constant__ Scratch scratch) {
  COMMPRESS_SHARED(EncoderSpace, shared, 1);
  EncoderSpace& s = shared[0];
  const int layers = job.layers ? job.layer_of_unit[job.units - 1] + 1 : 1;
  for (int number = static_cast<int>(blockIdx.x); number < layers; number += static_cast<int>(gridDim.x)) {
    Layer layer = job.single;  // a copy: a reference would put the parameters into memory
    if (job.layers) layer = job.layers[number];
    if (layer.family != ENTROPY) continue;
    Key key = job.key;
    key.tensor += static_cast<uint32_t>(layer.tensor);
    if (job.step) key.step += static_cast<uint32_t>(*job.step);
    if (thread() == 0) begin_segment(s, layer, key, gain, out + layer.byte, scratch.words + blockIdx.x * scratch.each);
    __syncthreads();
    encode_segment(s, x.from(layer.first));
  }
}

inline void launch_encode_entropy(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                                  const Queue& queue) {
  const Values values{x.data, x.input};
  const unsigned grid = static_cast<unsigned>(job.units < scratch.count ? job.units : scratch.count);
  COMMPRESS_LAUNCH(encode_entropy_kernel, grid, ENCODER_THREADS, static_cast<cudaStream_t>(queue.stream), job, values,
                   gain, out, scratch);
}

}  // namespace cuda
}  // namespace commpress
