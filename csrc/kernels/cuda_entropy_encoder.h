// The encoder of the entropy-coded quantisers: a block of threads has a whole segment. What it keeps in shared memory
// and in its share of a global scratch memory, and what all its parts do with these.
#pragma once
#include "cuda_block.h"
#include "cuda_launch.h"
#include "ecsq_symbols.h"
#include "ectcq.h"
#include "entropy_coders.h"
#include "entropy_model.h"

namespace commpress {
namespace cuda {

constexpr int ENCODER_THREADS = 512, ENCODER_WARPS = ENCODER_THREADS / 32;
constexpr int MOST_CLASSES = static_cast<int>(ECSQ_MOST_CLASSES), GROUP_COORDINATES = static_cast<int>(ECSQ_BLOCK);
// Words of shared memory that a warp has for itself: as many as a class has counts or a table entries.
constexpr int WARP_WORDS = static_cast<int>(CLASS_WORDS), WORK_WORDS = ENCODER_WARPS * WARP_WORDS;

// A share of the scratch memory. Blocks are blocks of coordinates.
struct EncoderMemory {
  float* y;           // the segment, scaled and rotated
  float* escapes;     // of each substream those it has, in order, up to the end of its coordinates
  uint8_t* streams;   // each up to stream_end()
  uint32_t* classes;  // CLASS_WORDS for each class: symbols met, or entries of symbols
  uint32_t* lengths;  // entropy::lengths()
  int32_t* at;        // of each block: its level, then where its raw bits begin; and behind, where each stream does
  uint32_t *kinds_nbytes, *streams_nbytes, *escaped;  // of each substream
  int8_t* kinds;                                      // of each block: a class or an entropy::Kind
  uint8_t* coded;                                     // the coded classes of all substreams
  uint32_t* trellis;                                  // entropy_trellis_words() of them
};

// What has initial values, which shared memory may not have.
template <class T>
struct Stored {
  alignas(T) uint8_t bytes[sizeof(T)];
  COMMPRESS_DEVICE Stored& operator=(const T& value) {
    *reinterpret_cast<T*>(bytes) = value;
    return *this;
  }
  COMMPRESS_DEVICE const T& get() const { return *reinterpret_cast<const T*>(bytes); }
};

// All positions are bytes of the segment.
struct EncoderSpace {
  alignas(16) uint32_t work[WORK_WORDS];  // WARP_WORDS for each warp, or whatever is under way
  uint32_t signs[128];
  uint32_t scratch[32];
  uint32_t magnitudes[ENCODER_WARPS][32];
  int64_t totals[ENCODER_WARPS];

  EncoderMemory memory;
  uint8_t* out;  // the payload's bytes of the segment
  Stored<EcsqCodec> stored_codec;
  Key key;
  int64_t index;
  int n, blocks, lanes;        // lanes: of each stream
  int substreams, each, last;  // blocks of a substream, and coordinates of the last block
  uint32_t nbytes;
  float gain;                                  // what is left of it
  int shift;                                   // power of two that values and gain were divided by
  int any_nan;                                 // a block is not finite
  int least, greatest;                         // level of the blocks that have a class
  int count, centre, first_step, finest_step;  // of the classes, as EcsqClasses has them
  int kinds_nbytes, header, room;              // of a segment without a trellis
  bool present[MOST_CLASSES];
  int members[MOST_CLASSES];
  int sums[MOST_CLASSES];  // of levels
  int level_of[MOST_CLASSES];

  // Of a step.
  EcsqQuantiser quantisers[MOST_CLASSES];
  Stored<entropy::Model> models[MOST_CLASSES], best[MOST_CLASSES];
  int64_t costs[MOST_CLASSES];
  entropy::Secant secant;
  int64_t j, raw_nbytes;  // the step that was tried last, and the raw bits it takes
  int64_t last_step;
  int stride;
  bool found;         // a step that fits
  int64_t best_step;  // the finest such
  int all_escapes;
  uint32_t first_stream;

  COMMPRESS_DEVICE const EcsqCodec& codec() const { return stored_codec.get(); }
  COMMPRESS_DEVICE Workspace workspace() {
    return {reinterpret_cast<float*>(work), nullptr, signs, nullptr, scratch, nullptr};
  }
};

COMMPRESS_DEVICE EncoderMemory encoder_memory_of(const EncoderSpace& s, uint32_t* words) {
  const EntropyScratch at(s.codec(), s.n);
  EncoderMemory m;
  m.y = reinterpret_cast<float*>(words);
  m.escapes = reinterpret_cast<float*>(words + at.escapes);
  m.streams = reinterpret_cast<uint8_t*>(words + at.streams);
  m.classes = words + at.classes;
  m.lengths = words + at.lengths;
  m.at = reinterpret_cast<int32_t*>(words + at.at);
  m.kinds_nbytes = words + at.substreams;
  m.streams_nbytes = m.kinds_nbytes + s.substreams;
  m.escaped = m.streams_nbytes + s.substreams;
  m.kinds = reinterpret_cast<int8_t*>(words + at.kinds);
  m.coded = reinterpret_cast<uint8_t*>(words + at.coded);
  m.trellis = words + at.trellis;
  return m;
}

// By one thread.
COMMPRESS_DEVICE void begin_segment(EncoderSpace& s, const Layer& layer, const Key& key, float gain, uint8_t* out,
                                    uint32_t* words) {
  const EcsqCodec codec = entropy_codec_of(layer);
  const EcsqSubstreams parts(codec, layer.numel);
  s.stored_codec = codec;
  s.key = key;
  s.index = layer.offset;
  s.n = static_cast<int>(layer.numel);
  s.blocks = static_cast<int>(parts.blocks);
  s.substreams = static_cast<int>(parts.count);
  s.each = static_cast<int>(parts.each);
  s.last = s.n - (s.blocks - 1) * GROUP_COORDINATES;
  s.nbytes = static_cast<uint32_t>(ecsq_segment_nbytes(codec, layer.numel));
  s.lanes = ecsq_lanes(s.nbytes);
  s.gain = gain;
  s.shift = 0;
  s.out = out;
  s.memory = encoder_memory_of(s, words);
}

COMMPRESS_DEVICE int warp() { return thread() / 32; }
COMMPRESS_DEVICE int lane() { return thread() % 32; }
COMMPRESS_DEVICE uint32_t* words_of_warp(EncoderSpace& s) { return s.work + WARP_WORDS * warp(); }
COMMPRESS_DEVICE int size_of(const EncoderSpace& s, int block) {
  return block + 1 < s.blocks ? GROUP_COORDINATES : s.last;
}
COMMPRESS_DEVICE int first_block(const EncoderSpace& s, int substream) { return substream * s.each; }
COMMPRESS_DEVICE int end_block(const EncoderSpace& s, int substream) {
  return smaller((substream + 1) * s.each, s.blocks);
}
// Where the streams' bytes of a substream end in scratch memory. A coordinate takes at most twelve bits of two bytes,
// so that in long substreams there is room for the coders' states; a short one is the only one.
COMMPRESS_DEVICE int64_t stream_end(const EncoderSpace& s, int substream) {
  return 2 * GROUP_COORDINATES * static_cast<int64_t>(end_block(s, substream)) + 4 * entropy::MOST_LANES;
}
COMMPRESS_DEVICE int64_t relative_of(const EncoderSpace& s, int kind, int64_t j) {
  return s.centre + kind * ECSQ_CLASS_WIDTH * 128 - j;
}
COMMPRESS_DEVICE int raw_nbytes(const EncoderSpace& s, int block, int raw) { return (size_of(s, block) * raw + 7) / 8; }

// ---- sums over the warp and the block of threads ----

COMMPRESS_DEVICE int64_t warp_sum(int64_t value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
}

// In every thread. Ends in step.
COMMPRESS_DEVICE int64_t block_sum(EncoderSpace& s, int64_t value) {
  value = warp_sum(value);
  if (lane() == 0) s.totals[warp()] = value;
  __syncthreads();
  int64_t sum = 0;
  for (int w = 0; w < ENCODER_WARPS; ++w) sum += s.totals[w];
  __syncthreads();
  return sum;
}

// store(i, sum of value(k) for k < i) for i < count; the sum of all, in every thread. Ends in step.
template <class Value, class Store>
COMMPRESS_DEVICE uint32_t block_scan(EncoderSpace& s, int count, const Value& value, const Store& store) {
  uint32_t before = 0;
  COMMPRESS_ROLLED
  for (int first = 0; first < count; first += ENCODER_THREADS) {
    const int i = first + thread();
    const uint32_t own = i < count ? value(i) : 0;
    uint32_t sum = own;
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(distance));
      sum += lane() >= distance ? other : 0;
    }
    if (lane() == 31) s.scratch[warp()] = sum;
    __syncthreads();
    uint32_t warps = before, all = before;
    for (int w = 0; w < ENCODER_WARPS; ++w) {
      if (w < warp()) warps += s.scratch[w];
      all += s.scratch[w];
    }
    if (i < count) store(i, warps + sum - own);
    before = all;
    __syncthreads();
  }
  return before;
}

// ---- coordinates of a block, a warp's lane each ----

// Dithers of one block of coordinates, sixteen in each lane.
struct Dithers {
  Words4 own;
  COMMPRESS_DEVICE Dithers(const EncoderSpace& s, int block) {
    own = philox(s.key, DITHER,
                 static_cast<uint32_t>((s.index + static_cast<int64_t>(block) * GROUP_COORDINATES) / 16) +
                     static_cast<uint32_t>(lane()));
  }
  // Of coordinate i; by all lanes, all of which want one of the same 32 from a multiple of 32 on.
  COMMPRESS_DEVICE int32_t at(int i) const {
    const int row = i / 16, from = 8 * (row / 8) + i % 16 / 2;
    const bool second = row / 4 % 2;
    const uint32_t even = __shfl_sync(ALL_LANES, second ? own.w[2] : own.w[0], from),
                   odd = __shfl_sync(ALL_LANES, second ? own.w[3] : own.w[1], from);
    return static_cast<int32_t>((rotate_left(i % 2 ? odd : even, 8 * (row % 4)) >> 8) - (1u << 23));
  }
};

}  // namespace cuda
}  // namespace commpress
