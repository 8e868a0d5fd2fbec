// `topk` and `threshold` on the device: what encoder and decoder share. A block of threads works on a segment of up to
// 2^18 coordinates. Lists of what is sent can be as long as the segment and would not fit in shared memory, so what is
// sent is a bit for each coordinate (32 KiB at most), and values are read again from global memory (mostly from L2,
// which holds the segment from the first pass on) where they are wanted.
#pragma once
#include "cuda_block.h"
#include "cuda_launch.h"
#include "gap_coder.h"
#include "topk.h"

namespace commpress {
namespace cuda {

constexpr int SPARSE_THREADS = 256, SPARSE_WARPS = SPARSE_THREADS / 32;
constexpr int SEGMENT_WORDS = static_cast<int>(SPARSE_LARGEST_BLOCK / 32);

struct Segment {
  SparseCodec codec;
  int64_t first, byte;
  int n, k;
};

// Shared memory of a block of threads.
struct SparseSpace {
  uint64_t survival[GAP_SYMBOLS + 1];  // of the model of `fraction`, which stays from one segment to the next
  GapCost cost;                        // likewise
  Segment segment;                     // the one at work
  uint64_t sums[SPARSE_WARPS];
  uint32_t bits[SEGMENT_WORDS];
  uint32_t scratch[32];
  float table[256];  // borders between levels, or values of codes
  int32_t fraction, symbols, ends[2];
};

// The model of positions as threads read it.
struct SharedModel {
  int symbols;
  const uint64_t* survival;
  const uint16_t* guess;
  COMMPRESS_DEVICE uint64_t below(int j) const { return survival[0] - survival[j]; }
  COMMPRESS_DEVICE int look(uint64_t code, uint64_t unit) const {
    const float place = divide(static_cast<float>(static_cast<uint32_t>(code >> 32)) * static_cast<float>(GAP_CELLS),
                               static_cast<float>(static_cast<uint32_t>(unit)));
    return guess[place < GAP_CELLS - 1.0f ? static_cast<int>(place) : GAP_CELLS - 1];
  }
};

// Fills in the segment of `unit`, and the model if it is another; true if so. Begins and ends in step. One thread does
// it for all: it is divisions of 64-bit numbers, and what it finds would cost every thread registers.
COMMPRESS_DEVICE bool begin_segment(SparseSpace& s, const Layer& layer, int64_t unit) {
  const SparseCodec codec = unpacked_topk(static_cast<int32_t>(layer.rate));
  __syncthreads();  // warps may still be at segments before
  const bool known = s.fraction == codec.fraction;
  __syncthreads();
  if (thread() == 0) {
    if (!known) {
      s.symbols = fill_survival(codec.fraction, s.survival);
      s.cost = gap_cost(codec.fraction);
      s.fraction = codec.fraction;
    }
    const int64_t start = (unit - layer.unit) * codec.block;
    const int n = static_cast<int>(layer.numel - start < codec.block ? layer.numel - start : codec.block);
    const int k = static_cast<int>(sparse_kept(codec, layer.offset + start, n));
    s.segment = {codec, layer.first + start, layer.byte + sparse_payload_nbytes(codec, s.cost, layer.offset, start), n,
                 k};
  }
  __syncthreads();
  return !known;
}

// The sum over all threads before this one; `total` is that over all. Ends in step.
COMMPRESS_DEVICE uint32_t sum_before(uint32_t value, uint32_t* scratch, uint32_t& total) {
  const int lane = thread() % 32, warp = thread() / 32;
  uint32_t sum = value;
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t other = __shfl_up_sync(ALL_LANES, sum, static_cast<unsigned>(distance));
    sum += lane >= distance ? other : 0;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  uint32_t before = 0;
  total = 0;
  for (int i = 0; i < SPARSE_WARPS; ++i) {
    before += i < warp ? scratch[i] : 0;
    total += scratch[i];
  }
  __syncthreads();
  return before + sum - value;
}

COMMPRESS_DEVICE uint64_t sum_of_all(uint64_t value, uint64_t* sums) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
  if (thread() % 32 == 0) sums[thread() / 32] = value;
  __syncthreads();
  uint64_t total = 0;
  for (int i = 0; i < SPARSE_WARPS; ++i) total += sums[i];
  __syncthreads();
  return total;
}

// Words of bits that a thread looks after: neighbours, so that threads and coordinates are in the same order.
struct Share {
  int begin, end;
};
COMMPRESS_DEVICE Share share_of(int n) {
  const int words = (n + 31) / 32, each = (words + threads() - 1) / threads();
  return {smaller(thread() * each, words), smaller((thread() + 1) * each, words)};
}

// f(coordinate) for each bit that is set.
template <class F>
COMMPRESS_DEVICE void each_bit(uint32_t word, int w, F&& f) {
  for (; word; word &= word - 1) f(32 * w + __ffs(static_cast<int>(word)) - 1);
}

}  // namespace cuda
}  // namespace commpress
