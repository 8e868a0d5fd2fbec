// `topk`, decoded and added up from several senders: positions to a bit for each coordinate, by one thread for each
// stream; then values, by all.
#pragma once
#include "cuda_sparse.h"

namespace commpress {
namespace cuda {

struct SparseDecoderSpace : SparseSpace {
  uint16_t guess[GAP_CELLS];
};

// Bytes of positions, from the front or from the back; zeros beyond.
struct DeviceGapReader {
  const uint8_t* in;
  int size, at;
  bool backward;
  COMMPRESS_DEVICE uint64_t take(int count) {
    uint64_t bytes = 0;
    for (; count; --count, ++at)
      bytes = bytes << 8 | (at < size ? __ldg(in + (backward ? size - 1 - at : at)) : uint8_t{0});
    return bytes;
  }
};

// Marks `count` positions from `next` on, in reverse order from the end if `mirrored`. Returns the end of the last one,
// or n + 1 if one is not below n. Arguments that are structs would go through local memory.
COMMPRESS_SELDOM int decode_stream(SparseDecoderSpace& s, const uint8_t* in, int size, bool backward, int next,
                                   int count, int n, bool mirrored) {
  const SharedModel model{s.symbols, s.survival, s.guess};
  DeviceGapReader from{in, size, 0, backward};
  const uint64_t code = from.take(8);
  GapDecoder<SharedModel, DeviceGapReader> decoder(model, code, from);
  for (; count; --count) {
    const int64_t position = next + decoder.gap(n);
    if (position >= n) return n + 1;
    next = static_cast<int>(position) + 1;
    const int bit = mirrored ? n - next : next - 1;
    atomicOr(&s.bits[bit / 32], 1u << (bit % 32));  // the streams meet in one word
  }
  return next;
}

// 32 coordinates' bits. Those from `next` on are the second stream's, which lie in reverse order at the end.
COMMPRESS_DEVICE uint32_t bits_in_order(const uint32_t* bits, int w, int next, int n) {
  const int base = 32 * w, words = (n + 31) / 32;
  if (base + 32 <= next) return bits[w];
  const int low = n - 1 + next - base - 31, first = low >> 5;
  const auto word = [&](int i) { return i >= 0 && i < words ? bits[i] : 0u; };
  uint32_t mirrored = __brev(window_of(word(first), word(first + 1), low & 31));
  if (n < base + 32) mirrored &= (1u << (n - base)) - 1;
  if (next <= base) return mirrored;
  const uint32_t early = (1u << (next - base)) - 1;
  return (bits[w] & early) | (mirrored & ~early);
}

// Marks all positions. Returns where the second stream's begin, n if nothing lies in reverse order. Ends in step.
COMMPRESS_DEVICE int mark_positions(SparseDecoderSpace& s, const Segment& at, const uint8_t* in, int m) {
  const int n = at.n, size = static_cast<int>(position_nbytes(s.cost, n, m)), warp = thread() / 32;
  const int streams = m < TWO_STREAMS ? 1 : 2, half = streams == 1 ? m : m / 2;
  for (int w = thread(); 32 * w < n; w += threads()) s.bits[w] = 0;
  __syncthreads();
  if (thread() % 32 == 0 && warp < streams)
    s.ends[warp] = decode_stream(s, in, size, warp == 1, 0, warp ? m - half : half, n, warp == 1);
  __syncthreads();
  if (streams == 1) return n;
  const int next = s.ends[0];
  if (next + s.ends[1] <= n) return next;
  // No encoder's bytes: the streams overlap. Once more, one after the other.
  __syncthreads();
  for (int w = thread(); 32 * w < n; w += threads()) s.bits[w] = 0;
  __syncthreads();
  if (thread() == 0) {
    const int end = decode_stream(s, in, size, false, 0, half, n, false);
    if (end < n) decode_stream(s, in, size, true, end, m - half, n, false);
  }
  __syncthreads();
  return n;
}

// One sender's segment; false if its header is none that an encoder writes. Ends in step.
COMMPRESS_DEVICE bool decode_segment(SparseDecoderSpace& s, const Segment& at, const uint8_t* in, float* out,
                                     const Sink& sink) {
  const int n = at.n;
  Header header{word_from(in), false, {0, 0}};
  if (sparse_quantised(at.codec)) header.levels = {half_from(in + 4), half_from(in + 6)};
  header.exact = header.sent & EXACT;
  header.sent &= ~EXACT;
  if (!sink.add)
    for (int i = thread(); i < n; i += threads()) out[i] = 0.0f;
  else if (sink.beta != 1.0f)
    for (int i = thread(); i < n; i += threads()) out[i] *= sink.beta;
  const bool valid = header_valid(at.codec, s.cost, header, n, at.k);
  const int m = valid ? static_cast<int>(header.sent) : 0, bits = header.exact ? 32 : at.codec.bits;
  __syncthreads();
  if (m == 0) return valid;
  if (bits <= 8) {
    const int count = 1 << (bits - 1);
    const bool finite = header.levels.low != LEVELS_NON_FINITE;
    for (int c = thread(); c < count; c += threads()) {
      s.table[c] = finite ? level_value(header.levels, count, c) : float_of(QUIET_NAN);
      s.table[count + c] = -s.table[c];
    }
  }
  const uint8_t* const values = in + sparse_header_nbytes(at.codec);
  const int next = mark_positions(s, at, values + packed_nbytes(m, bits), m);
  const Share share = share_of(n);
  uint32_t count = 0, total;
  for (int w = share.begin; w < share.end; ++w) count += __popc(bits_in_order(s.bits, w, next, n));
  int64_t rank = sum_before(count, s.scratch, total);
  for (int w = share.begin; w < share.end; ++w)
    each_bit(bits_in_order(s.bits, w, next, n), w, [&](int i) {
      float value;
      if (bits == 32) {
        value = float_of(word_from(values + 4 * rank));
      } else if (bits == 16) {
        value = from_bf16(half_from(values + 2 * rank));
      } else {
        const int64_t bit = rank * bits;
        const int shift = static_cast<int>(bit % 8);
        uint32_t both = __ldg(values + bit / 8);
        if (shift + bits > 8) both |= static_cast<uint32_t>(__ldg(values + bit / 8 + 1)) << 8;
        value = s.table[both >> shift & ((1u << bits) - 1)];
      }
      value *= sink.gain;
      out[i] = sink.add ? out[i] + value : value;  // beta is in it already
      ++rank;
    });
  __syncthreads();
  return true;
}

static __global__ void __launch_bounds__(SPARSE_THREADS)
    decode_sparse_kernel(const __grid_constant__ Job job, const __grid_constant__ Sources sources, float* out,
                         const __grid_constant__ Delivery delivery, Report* report) {
  COMMPRESS_SHARED(SparseDecoderSpace, shared, 1);
  SparseDecoderSpace& s = shared[0];
  if (thread() == 0) s.fraction = 0;
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const Layer layer = layer_of(job, unit);
    if (layer.family != TOPK_SEGMENTS) continue;
    if (begin_segment(s, layer, unit)) {
      const SharedModel model{s.symbols, s.survival, s.guess};
      for (int i = thread(); i < GAP_CELLS; i += threads()) {
        int j = 0;
        for (int step = GAP_SYMBOLS; step; step /= 2)
          if (j + step <= model.symbols && model.below(j + step) <= static_cast<uint64_t>(i) << (32 - GAP_CELL_BITS))
            j += step;
        s.guess[i] = static_cast<uint16_t>(j);
      }
      __syncthreads();
    }
    const Segment& at = s.segment;
    float* const to = out + at.first;
    for (int sender = 0; sender < sources.count; ++sender)
      if (!decode_segment(s, at, sources.payload[sender] + at.byte, to, sink_of(delivery, sender)) && thread() == 0)
        report_invalid(report, sources, sender);
    note_non_finite(to, at.n, report);
  }
}

inline void launch_decode_sparse(const Job& job, const Sources& sources, float* out, const Delivery& delivery,
                                 Report* report, const Queue& queue) {
  COMMPRESS_LAUNCH(decode_sparse_kernel, grid_of(job.units, queue), SPARSE_THREADS,
                   static_cast<cudaStream_t>(queue.stream), job, sources, out, delivery, report);
}

}  // namespace cuda
}  // namespace commpress
