// The bitshift trellis, decoded and added up from several senders. A block of threads works on 4096 coordinates. Where
// a piece is rotated as a whole they depend on all of its up to sixteen blocks; these do not fit in shared memory, but
// any codeword can be decoded alone, so each block of threads decodes all of the piece, and runs only those butterflies
// between blocks that lead to its own. What is seldom and takes many registers has a kernel of its own: rests, and
// pieces that a sender has rotated twice.
#pragma once
#include "cuda_trellis.h"

namespace commpress {
namespace cuda {

struct TrellisDecoderSpace : TrellisSpace {
  alignas(16) float y[BLOCK];
  uint32_t flips[MOST_BLOCKS][SIGN_WORDS];  // of the trellis, for all blocks of a piece
};

// Coordinate i of a block of the piece, with the coin that is flipped for it where there is a rotation.
COMMPRESS_DEVICE float flipped_level(const TrellisDecoderSpace& s, int block, int i) {
  const float level = level_at(s, block * static_cast<int>(BLOCK) + i);
  return with_sign(level, s.flips[block][i / 512 * 16 + i % 16], i / 16);
}

// The butterflies between `blocks` blocks, of which block `wanted` is to be known, for EACH coordinates. leaf(block,
// value) fills in those of a block; the result is in `value`. A node of the tree waits for its right neighbour: sums
// with other brackets would differ, after a rotation in their rounding, and before one in the signs of zeros.
template <int EACH, class Leaf>
COMMPRESS_DEVICE void butterfly_tree(int blocks, int wanted, float (&value)[EACH], const Leaf& leaf) {
  float waiting[BLOCK_DIGITS][EACH];
  COMMPRESS_ROLLED
  for (int block = 0; block < blocks; ++block) {
    leaf(block, value);
    COMMPRESS_UNROLL_ALL
    for (int level = 0; level < BLOCK_DIGITS; ++level) {
      const int below = (1 << level) - 1;
      if ((block & below) != below) continue;  // waits further down
      const bool right = block >> level & 1, minus = wanted >> level & 1;
      COMMPRESS_UNROLL_ALL
      for (int j = 0; j < EACH; ++j) {
        if (!right)
          waiting[level][j] = value[j];
        else
          value[j] = minus ? waiting[level][j] - value[j] : waiting[level][j] + value[j];
      }
    }
  }
}

// The part of a piece with one rotation, but for the butterflies within blocks, to y. Ends in step.
COMMPRESS_DEVICE void gather_block(TrellisDecoderSpace& s, int wanted) {
  const Part& part = s.part;
  const int blocks = part.n / part.size;
  for (int i = thread(); i < part.size; i += threads()) {
    float value[1];
    butterfly_tree<1>(blocks, wanted, value,
                      [&](int block, float (&level)[1]) { level[0] = flipped_level(s, block, i); });
    s.y[i] = value[0];
  }
  __syncthreads();
}

// The same for two rotations, of which the first needs all blocks: each is found in its turn, in the place of y.
COMMPRESS_DEVICE void gather_rotated(TrellisDecoderSpace& s, uint32_t sender_phase) {
  constexpr int EACH = static_cast<int>(BLOCK) / TRELLIS_THREADS;
  const Part& part = s.part;
  float sum[EACH];
  butterfly_tree<EACH>(part.n / part.size, part.block, sum, [&](int block, float (&value)[EACH]) {
    gather_block(s, block);
    careful_unrotate(s.workspace(s.y), key_of(s, sender_phase), ROTATE_SECOND, part.index + block * BLOCK, part.size);
    COMMPRESS_UNROLL_ALL
    for (int j = 0; j < EACH; ++j) {
      const int i = j * TRELLIS_THREADS + thread();
      value[j] = i < part.size ? s.y[i] : 0.0f;  // written by this thread alone when the next block is gathered
    }
  });
  COMMPRESS_UNROLL_ALL
  for (int j = 0; j < EACH; ++j) {
    const int i = j * TRELLIS_THREADS + thread();
    if (i < part.size) s.y[i] = sum[j];
  }
  __syncthreads();
}

COMMPRESS_DEVICE float scaled_level(float level, float factor) {
  return factor <= LARGE_SCALE ? level * factor : finite_product(level, factor);
}

// The part of one sender's piece, rotated twice only if CAREFUL; false for a scale that no encoder writes. Ends where
// the next sender's may begin.
template <bool CAREFUL>
COMMPRESS_DEVICE bool decode_part(TrellisDecoderSpace& s, uint32_t sender_phase, const uint8_t* in, float* out,
                                  const Sink& sink) {
  const Part& part = s.part;
  const uint32_t scale = word_from(in);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(part.size, scale ? float_of(QUIET_NAN) : 0.0f, out, sink);
    return true;
  }
  const int nbytes = part.nbytes - 4;
  load_bytes(in + 4, nbytes, s.bits, thread(), threads());
  // What the last window reaches: the word's rest and another.
  for (int i = nbytes + thread(); i < (nbytes + 3) / 4 * 4 + 4; i += threads()) bytes_of(s.bits)[i] = 0;
  if (s.trellis().rotated)
    for (int i = thread(); i < 32 * (part.n / part.size); i += threads())
      fill_signs_by(i % 32, s.flips[i / 32], key_of(s, sender_phase), TRELLIS_SIGN, part.index + i / 32 * BLOCK,
                    part.size);
  __syncthreads();
  const float factor = float_of(scale & ~SCALE32_TWO_ROTATIONS) * sink.gain;
  if (!s.trellis().rotated) {
    for (int i = thread(); i < part.size; i += threads())
      deliver(out + i, scaled_level(level_at(s, part.block * static_cast<int>(BLOCK) + i), factor), sink);
    __syncthreads();
    return !(scale & SCALE32_TWO_ROTATIONS) && scale32_valid(scale);
  }
  if (CAREFUL && scale & SCALE32_TWO_ROTATIONS)
    gather_rotated(s, sender_phase);
  else
    gather_block(s, part.block);
  careful_unrotate(s.workspace(s.y), key_of(s, sender_phase), ROTATE_FIRST, part.index + part.block * BLOCK, part.size);
  for (int i = thread(); i < part.size; i += threads()) deliver(out + i, scaled_level(s.y[i], factor), sink);
  return scale32_valid(scale);
}

// What is left of a payload, a block of a scalar codec; likewise.
COMMPRESS_DEVICE bool decode_rest(TrellisDecoderSpace& s, uint32_t sender_phase, const uint8_t* in, float* out,
                                  const Sink& sink) {
  const Codec codec = trellis_rest(s.trellis());
  const Workspace w = s.workspace(s.y);
  const Key key = key_of(s, sender_phase);
  const int64_t index = s.part.index;
  const int n = s.part.size;
  return s.trellis().rotated ? rotated_decode_any(w, in, n, {codec.rate, codec.centroid}, key, index, out, sink)
                             : lloyd_decode_careful(w, in, n, codec.rate, key, index, out, sink) >= 0;
}

// Whether the part is one for the careful kernel, which is so for all senders or none: their order is that of sums.
COMMPRESS_DEVICE bool needs_care(const TrellisDecoderSpace& s, const Sources& sources) {
  if (s.part.n < SMALLEST_PIECE) return true;
  const bool twice = s.trellis().rotated && thread() < sources.count &&
                     word_from(sources.payload[thread()] + s.part.byte) & SCALE32_TWO_ROTATIONS;
  return __syncthreads_or(twice) != 0;
}

template <bool CAREFUL>
static __global__ void __launch_bounds__(TRELLIS_THREADS, CAREFUL ? 1 : 4)
    decode_trellis_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                          const __grid_constant__ Delivery delivery, Report* report) {
  COMMPRESS_SHARED(TrellisDecoderSpace, shared, 1);
  TrellisDecoderSpace& s = shared[0];
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x)
    for (int done = 0; next_part(s, job, unit, done); done += s.part.size) {
      if (needs_care(s, sources) != CAREFUL) continue;
      float* const to = out + s.part.first;
      for (int sender = 0; sender < sources.count; ++sender) {
        const uint8_t* const in = sources.payload[sender] + s.part.byte;
        const Sink sink = sink_of(delivery, sender);
        const bool valid = CAREFUL && s.part.n < SMALLEST_PIECE
                               ? decode_rest(s, sources.sender_phase[sender], in, to, sink)
                               : decode_part<CAREFUL>(s, sources.sender_phase[sender], in, to, sink);
        if (!valid && thread() == 0) report_invalid(report, sources, sender);
      }
      note_non_finite(to, s.part.size, report);
    }
}

template <bool CAREFUL>
void launch_decode_trellis(const Job& job, const Sources& sources, float* out, const Delivery& delivery, Report* report,
                           const Queue& queue) {
  const auto kernel = decode_trellis_kernel<CAREFUL>;
  COMMPRESS_LAUNCH(kernel, grid_of(job.units, queue), TRELLIS_THREADS, static_cast<cudaStream_t>(queue.stream), job,
                   sources, out, delivery, report);
}

}  // namespace cuda
}  // namespace commpress
