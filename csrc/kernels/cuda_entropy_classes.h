// Preparation of a segment: scaled, rotated, and its blocks sorted into classes, as EcsqClasses does it.
#pragma once
#include "cuda_entropy_encoder.h"

namespace commpress {
namespace cuda {

// What ecsq_level() can give: that of a negative mean, of a negative gain, is the highest.
constexpr int LOWEST_LEVEL = -16 * 127;
static_assert(WORK_WORDS >= 16 * 512, "a counter for every level");

// How many blocks have the level.
COMMPRESS_DEVICE uint32_t& blocks_at(EncoderSpace& s, int level) {
  int place = level - LOWEST_LEVEL;
  COMMPRESS_OPAQUE(place);  // an address with a negative part is none to the executor of PTX
  return s.work[place];
}

// Scales and rotates to m.y. A barrier must follow.
COMMPRESS_SELDOM void load_segment(EncoderSpace& s, const EncoderMemory& m, Values x) {
  const int n = s.n;
  uint32_t most = 0, finite = 0;
  for (int i = thread(); i < n; i += threads()) {
    const uint32_t a = magnitude(x[i]);
    most = larger(most, a);
    finite = larger(finite, a < SCALE32_INFINITY ? a : 0);
  }
  most = block_largest(most, s.scratch);
  finite = block_largest(finite, s.scratch);
  const bool rotate = s.codec().rotate;
  const float gain = s.gain;
  const auto beyond = [](int exponent) { return exponent < -60 || exponent > 60; };
  const int of_gain = exponent_of(gain);
  const bool usual = most >= bits_of(0x1p-60f) && most < bits_of(0x1p60f) && !(rotate && beyond(of_gain));
  const int of_values = usual || finite == 0 ? 0 : exponent_of(float_of(finite));
  const bool scales = beyond(of_values) || beyond(of_gain);
  const int exponent = scales ? -of_values : 0;
  __syncthreads();
  if (thread() == 0 && scales) {
    s.gain = scale_by_power(gain, -of_gain);
    s.shift = of_values + of_gain;
  }
  if (!rotate) {
    for (int i = thread(); i < n; i += threads()) m.y[i] = scale_by_power(x[i], exponent);
    return;
  }
  Workspace w = s.workspace();
  for (int first = 0; first < n; first += static_cast<int>(BLOCK)) {
    const int here = smaller(static_cast<int>(BLOCK), n - first);
    for (int i = thread(); i < here; i += threads()) w.y[i] = scale_by_power(x[first + i], exponent);
    ecsq_rotations(here, [&](int64_t start, int64_t size) {
      Workspace part = w;
      part.y = w.y + start;
      careful_rotate(part, s.key, ROTATE_FIRST, s.index + first + start, static_cast<int>(size));
      const float norm = divide(1.0f, square_root(static_cast<float>(size)));
      for (int i = thread(); i < static_cast<int>(size); i += threads()) part.y[i] *= norm;
    });
    __syncthreads();
    for (int i = thread(); i < here; i += threads()) m.y[first + i] = w.y[i];
  }
}

// Kinds and levels of blocks, in the order of docs/wire-format.md section 5: a warp for each block. False if no block
// has a value that is finite and not zero. Ends in step.
COMMPRESS_SELDOM bool measure_blocks(EncoderSpace& s, const EncoderMemory& m) {
  if (thread() == 0) {
    s.least = INT32_MAX;
    s.greatest = INT32_MIN;
    s.any_nan = 0;
  }
  __syncthreads();
  const float gain = s.gain;
  for (int b = warp(); b < s.blocks; b += ENCODER_WARPS) {
    const float* const y = m.y + static_cast<int64_t>(b) * GROUP_COORDINATES;
    const int n = size_of(s, b);
    // Lanes 0 .. 15 have rows 0, 2, 4, ... of sixteen, the others rows 1, 3, 5, ...
    float sums[2] = {0.0f, 0.0f};
    uint32_t most = 0;
    COMMPRESS_UNROLL_ALL
    for (int pair = 0; pair < GROUP_COORDINATES / 32; ++pair) {
      const int i = 32 * pair + lane();
      const uint32_t a = i < n ? magnitude(y[i]) : 0;
      sums[pair % 2] += float_of(a);
      most = larger(most, a);
    }
    most = warp_largest(most);
    const float low = sums[0] + __shfl_xor_sync(ALL_LANES, sums[0], 16),
                high = sums[1] + __shfl_xor_sync(ALL_LANES, sums[1], 16);
    float sum = low + high;
    for (int width = 8; width; width /= 2) sum += __shfl_down_sync(ALL_LANES, sum, width, 16);
    if (lane() != 0) continue;
    const int kind = most >= SCALE32_INFINITY ? entropy::KIND_NAN : most == 0 ? entropy::KIND_ZERO : 0;
    m.kinds[b] = static_cast<int8_t>(kind);
    if (kind == entropy::KIND_NAN) atomicOr(&s.any_nan, 1);
    if (kind < 0) continue;
    const int level = static_cast<int>(ecsq_level(divide(sum, static_cast<float>(n)) * gain));
    m.at[b] = level;
    atomicMin(&s.least, level);
    atomicMax(&s.greatest, level);
  }
  __syncthreads();
  return s.least <= s.greatest;
}

// The first step, and the place where classes begin; in every thread. Ends in step.
COMMPRESS_DEVICE int64_t place_classes(EncoderSpace& s, const EncoderMemory& m, int64_t& first_step) {
  for (int i = thread(); i < WORK_WORDS; i += threads()) s.work[i] = 0;
  __syncthreads();
  for (int b = thread(); b < s.blocks; b += threads())
    if (m.kinds[b] >= 0) atomicAdd(&blocks_at(s, m.at[b]), 1u);
  __syncthreads();
  const int least = s.least, greatest = s.greatest;
  const int short_level = m.kinds[s.blocks - 1] >= 0 ? m.at[s.blocks - 1] : INT32_MIN;  // of the last block
  first_step = ecsq_first_step(s.nbytes, least, greatest, [&](int64_t t) {
    int64_t total = 0;
    for (int level = least + thread(); level <= greatest; level += threads()) {
      const int64_t missing = level == short_level ? GROUP_COORDINATES - s.last : 0;
      const int64_t weight = static_cast<int64_t>(GROUP_COORDINATES) * blocks_at(s, level) - missing;
      total += weight * entropy::rate_at(level * int64_t{128} + 64 - t * 128);
    }
    return block_sum(s, total);
  });
  constexpr int PLACES = static_cast<int>(ECSQ_CLASS_WIDTH);
  if (thread() < PLACES)
    s.totals[thread()] = ecsq_gathered(thread(), least, greatest, [&](int64_t level) {
      return static_cast<int64_t>(blocks_at(s, static_cast<int>(level)));
    });
  __syncthreads();
  int64_t phase = 0;
  for (int p = 1; p < PLACES; ++p)
    if (s.totals[p] > s.totals[phase]) phase = p;
  __syncthreads();
  return phase;
}

// Takes the bytes of coded classes as far as there is room for them, and counts all.
struct KindsSink {
  uint8_t* to;
  uint32_t room, met;
  COMMPRESS_DEVICE void operator()(uint8_t byte) {
    if (met < room) to[met] = byte;
    ++met;
  }
};

// Codes the classes of a substream, by one thread, whose contexts are in shared memory. Returns how many bytes they
// take.
constexpr int KINDS_THREADS = 256;
static_assert(sizeof(entropy::ClassContexts) * KINDS_THREADS <= 4 * WORK_WORDS, "contexts for each");
COMMPRESS_SELDOM uint32_t encode_kinds_of(EncoderSpace& s, const EncoderMemory& m, int substream, uint32_t at,
                                          uint32_t room) {
  const int first = first_block(s, substream);
  KindsSink sink{m.coded + at, room, 0};
  entropy::ClassContexts& contexts = reinterpret_cast<entropy::ClassContexts*>(s.work)[thread()];
  entropy::encode_classes(m.kinds + first, end_block(s, substream) - first, contexts, sink);
  return sink.met;
}

// Codes the classes of all substreams; what is more than the segment has bytes is lost. Ends in step.
COMMPRESS_DEVICE void encode_kinds(EncoderSpace& s, const EncoderMemory& m) {
  const int substreams = s.substreams;
  // One is written at once. Of several it must be known first where they begin.
  for (int i = thread(); i < substreams && thread() < KINDS_THREADS; i += KINDS_THREADS)
    m.kinds_nbytes[i] = encode_kinds_of(s, m, i, 0, substreams == 1 ? s.nbytes : 0);
  __syncthreads();
  const uint32_t all = block_scan(
      s, substreams, [&](int i) { return m.kinds_nbytes[i]; },
      [&](int i, uint32_t before) { m.at[s.blocks + i] = static_cast<int32_t>(before); });
  for (int i = thread(); substreams > 1 && i < substreams && thread() < KINDS_THREADS; i += KINDS_THREADS) {
    const uint32_t before = static_cast<uint32_t>(m.at[s.blocks + i]);
    encode_kinds_of(s, m, i, before, before < s.nbytes ? s.nbytes - before : 0);
  }
  if (thread() == 0) s.kinds_nbytes = static_cast<int>(all);
  __syncthreads();
}

// Ends in step.
COMMPRESS_SELDOM void classify(EncoderSpace& s, const EncoderMemory& m) {
  int64_t first_step;
  const int64_t phase = place_classes(s, m, first_step);
  EcsqClassRange range(phase, first_step, s.least, s.greatest);
  for (int flat = 0; flat < 2; ++flat) {
    if (flat) range.flatten();
    const int count = static_cast<int>(range.count());
    if (thread() < MOST_CLASSES) {
      s.members[thread()] = 0;
      s.sums[thread()] = 0;
    }
    __syncthreads();
    for (int b = thread(); b < s.blocks; b += threads()) {
      if (m.kinds[b] < 0) continue;
      const int kind = static_cast<int>(range.class_of(m.at[b]));
      m.kinds[b] = static_cast<int8_t>(kind);
      atomicAdd(s.members + kind, 1);
      atomicAdd(s.sums + kind, m.at[b]);
    }
    __syncthreads();
    if (thread() < count) {
      const int k = thread();
      s.present[k] = s.members[k] > 0;
      if (s.present[k])
        s.level_of[k] =
            static_cast<int>(floor_divide(128 * static_cast<int64_t>(s.sums[k]) + 64 * s.members[k], s.members[k]));
    }
    encode_kinds(s, m);
    int classes = 0;
    for (int k = 0; k < count; ++k) classes += s.present[k];
    const int header = static_cast<int>(ecsq_header_nbytes(s.codec())) + (count + 7) / 8 +
                       (s.substreams - 1) * static_cast<int>(ECSQ_ENTRY_NBYTES) +
                       classes * static_cast<int>(ecsq_class_nbytes(s.codec()));
    const int nbytes = static_cast<int>(s.nbytes), coded = s.kinds_nbytes;
    const int room = nbytes - header - coded - 3 * s.substreams * s.lanes - 8;
    __syncthreads();
    if (thread() == 0) {
      s.count = count;
      s.centre = static_cast<int>(range.centre());
      s.first_step = static_cast<int>(first_step);
      s.finest_step = static_cast<int>(range.finest_step());
      s.header = header;
      s.room = room;
    }
    __syncthreads();
    if (coded <= nbytes / 2 && room >= nbytes / 4) break;
  }
}

}  // namespace cuda
}  // namespace commpress
