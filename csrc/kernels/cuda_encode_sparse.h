// `topk`, encoded: the threshold by histograms of the magnitudes' bits -> a bit for each coordinate that is sent ->
// levels and values -> positions, which one thread for each stream codes in order.
#pragma once
#include "cuda_sparse.h"

namespace commpress {
namespace cuda {

constexpr int HISTOGRAM = 1 << 11;

struct SparseEncoderSpace : SparseSpace {
  uint32_t bins[HISTOGRAM];
};

// The k-th largest magnitude, and how many of those equal to it are sent; 1 and all if fewer than k are not zero.
struct Threshold {
  uint32_t value, equals;
};

// The bin, from the top, in which the `wanted`-th falls, and what it is there. Ends in step.
COMMPRESS_DEVICE Threshold bin_of(SparseEncoderSpace& s, uint32_t wanted, uint32_t& total) {
  constexpr int EACH = HISTOGRAM / SPARSE_THREADS;
  uint32_t sum = 0;
  for (int i = 0; i < EACH; ++i) sum += s.bins[EACH * thread() + i];
  const uint32_t before = sum_before(sum, s.scratch, total);
  uint32_t above = total - before - sum;
  if (above < wanted && wanted <= above + sum) {
    int bin = EACH * thread() + EACH - 1;
    for (; above + s.bins[bin] < wanted; --bin) above += s.bins[bin];
    s.scratch[16] = static_cast<uint32_t>(bin);
    s.scratch[17] = wanted - above;
  }
  __syncthreads();
  return {s.scratch[16], s.scratch[17]};
}

// Three passes of 11, 10 and 10 bits; each reads the segment. Zeros are never sent and do not count.
COMMPRESS_DEVICE Threshold threshold_of(SparseEncoderSpace& s, const Values& x, int n, uint32_t k) {
  Threshold found{0, k};
  for (int shift = 20; shift >= 0; shift -= 10) {
    const int digits = shift == 20 ? 11 : 10;
    for (int i = thread(); i < HISTOGRAM; i += threads()) s.bins[i] = 0;
    if (thread() == 0) s.scratch[16] = s.scratch[17] = 0;
    __syncthreads();
    for (int i = thread(); i < n; i += threads()) {
      const uint32_t u = magnitude(x[i]);
      if (u && (shift == 20 || u >> (shift + digits) == found.value))
        atomicAdd(&s.bins[u >> shift & ((1u << digits) - 1)], 1u);
    }
    __syncthreads();
    uint32_t total;
    const Threshold bin = bin_of(s, found.equals, total);
    if (shift == 20 && total <= k) return {1, 0xFFFFFFFFu};
    found = {found.value << digits | bin.value, bin.equals};
    __syncthreads();
  }
  return found;
}

// Bytes of positions, from the front or from the back.
struct DeviceGapWriter {
  uint8_t* out;
  int size, at;
  bool backward;
  COMMPRESS_DEVICE uint8_t& byte(int i) { return out[backward ? size - 1 - i : i]; }
  COMMPRESS_DEVICE void put(uint64_t word, int count) {
    for (int i = 0; i < count; ++i, ++at)
      if (at < size) byte(at) = static_cast<uint8_t>(word >> (56 - 8 * i));
  }
  COMMPRESS_DEVICE void carry() {
    for (int i = smaller(at, size); i-- > 0;)
      if (++byte(i) != 0) break;
  }
};

// Codes `count` positions from coordinate `next` on. Arguments that are structs would go through local memory.
COMMPRESS_SELDOM void encode_stream(const SparseSpace& s, int next, int count, uint8_t* out, int size, bool backward,
                                    int last) {
  const SharedModel model{s.symbols, s.survival, nullptr};
  GapEncoder<SharedModel, DeviceGapWriter> encoder(model, {out, size, 0, backward});
  int w = next / 32;
  uint32_t word = s.bits[w] & ~0u << (next % 32);
  for (; count; --count) {
    while (!word) word = s.bits[++w];
    const int position = 32 * w + __ffs(static_cast<int>(word)) - 1;
    word &= word - 1;
    encoder.gap(position - next);
    next = position + 1;
  }
  encoder.finish(last);
}

struct Encoded {
  Values x;
  float gain;
  COMMPRESS_DEVICE float operator[](int i) const { return sent_value(x[i], gain); }
};

// The number of borders that a magnitude reaches, of which there are count - 1, none below the one before.
COMMPRESS_DEVICE uint32_t code_of(const float* border, int count, uint32_t u) {
  int code = 0;
  for (int step = count / 2; step; step /= 2)
    if (float_of(u) >= border[code + step]) code += step;
  return static_cast<uint32_t>(code);
}

// Codes as a bit string. Eight of them are whole bytes, so a thread writes those eights whose first code is of its
// share, and looks on into the shares of others for the rest of the last one: no byte has two writers.
COMMPRESS_DEVICE void put_codes(const SparseSpace& s, const Encoded& y, const Share& share, int rank, int m, int bits,
                                uint8_t* out) {
  const int count = 1 << (bits - 1);
  int held = 0, eight = (rank + 7) / 8;
  uint64_t pending = 0;
  const auto flush = [&] {
    for (int i = 0; i < (held * bits + 7) / 8; ++i)
      out[static_cast<int64_t>(eight) * bits + i] = static_cast<uint8_t>(pending >> (8 * i));
    pending = 0;
    held = 0;
    ++eight;
  };
  for (int w = share.begin; rank < m && (w < share.end || held); ++w)
    for (uint32_t word = s.bits[w]; word; word &= word - 1, ++rank) {
      if (rank < 8 * eight) continue;
      if (w >= share.end && held == 0) return;
      const float value = y[32 * w + __ffs(static_cast<int>(word)) - 1];
      const uint32_t code = code_of(s.table, count, magnitude(value)) | bits_of(value) >> 31 << (bits - 1);
      pending |= static_cast<uint64_t>(code) << (held * bits);
      if (++held == 8) flush();
    }
  if (held) flush();
}

COMMPRESS_DEVICE Levels find_levels(SparseSpace& s, const Encoded& y, const Share& share, const MagnitudeSums& mine,
                                    int m, int count) {
  MagnitudeSums all;
  all.sum = sum_of_all(mine.sum, s.sums);
  all.least = ~block_largest(~mine.least, s.scratch);
  all.largest = block_largest(mine.largest, s.scratch);
  if (m == 0) return {0, 0};
  if (count != 2) return levels_of(all, m, count);
  const uint32_t mean = mean_magnitude(all, m);
  uint64_t above = 0, number = 0;
  for (int w = share.begin; w < share.end; ++w)
    each_bit(s.bits[w], w, [&](int i) {
      const uint32_t u = magnitude(y[i]);
      above += u > mean ? u : 0;
      number += u > mean;
    });
  above = sum_of_all(above, s.sums);
  number = sum_of_all(number, s.sums);
  return two_levels(all.sum, m, above, static_cast<int64_t>(number));
}

COMMPRESS_DEVICE void encode_segment(SparseEncoderSpace& s, const Segment& at, const Values& x, float gain,
                                     uint8_t* out) {
  const int n = at.n, nbytes = static_cast<int>(sparse_nbytes(at.codec, s.cost, n, at.k));
  for (int i = thread(); i < nbytes; i += threads()) out[i] = 0;
  if (thread() == 0) s.ends[0] = 0;  // read, though not used, also where there is one stream
  const Threshold threshold = threshold_of(s, x, n, static_cast<uint32_t>(at.k));
  for (int w = thread() / 32; 32 * w < n; w += SPARSE_WARPS) {
    const int i = 32 * w + thread() % 32;
    const uint32_t word = __ballot_sync(ALL_LANES, i < n && magnitude(x[i]) >= threshold.value);
    if (thread() % 32 == 0) s.bits[w] = word;
  }
  __syncthreads();
  // Ties go to the lower index: threads count theirs, and know from a scan how many come before.
  const Share share = share_of(n);
  uint32_t equals = 0, total;
  if (threshold.equals != 0xFFFFFFFFu)
    for (int w = share.begin; w < share.end; ++w)
      each_bit(s.bits[w], w, [&](int i) { equals += magnitude(x[i]) == threshold.value; });
  equals = sum_before(equals, s.scratch, total);
  const Encoded y{x, gain};
  MagnitudeSums mine;
  uint32_t sent = 0;
  bool finite = true;
  for (int w = share.begin; w < share.end; ++w) {
    uint32_t kept = s.bits[w];
    each_bit(kept, w, [&](int i) {
      const bool equal = magnitude(x[i]) == threshold.value;
      const float value = y[i];
      const bool tie_lost = equal && equals >= threshold.equals;
      equals += equal;
      if (tie_lost || value == 0.0f) {  // a gain may turn a value into zero
        kept &= ~(1u << (i % 32));
        return;
      }
      ++sent;
      mine.add(magnitude(value));
      finite = finite && magnitude(x[i]) < SCALE32_INFINITY;
    });
    s.bits[w] = kept;
  }
  uint32_t found;
  const uint32_t rank = sum_before(sent, s.scratch, found);
  finite = __syncthreads_and(finite);
  const int m = static_cast<int>(found), half = m < TWO_STREAMS ? m : m / 2;
  const bool exact = fits_exactly(at.codec, s.cost, n, at.k, m), quantised = sparse_quantised(at.codec) && !exact;
  const int bits = exact ? 32 : at.codec.bits, count = 1 << (bits - 1);
  Levels levels{0, 0};
  if (quantised) {
    levels = find_levels(s, y, share, mine, m, count);
    if (!finite) levels = {LEVELS_NON_FINITE, LEVELS_NON_FINITE};
    if (finite)
      for (int c = 1 + thread(); c < count; c += threads()) s.table[c] = level_border(levels, count, c);
  }
  if (thread() == 0) {
    store_word(found | (exact ? EXACT : 0), out);
    if (sparse_quantised(at.codec)) {
      store_half(levels.low, out + 4);
      store_half(levels.high, out + 6);
    }
  }
  uint8_t* const values = out + sparse_header_nbytes(at.codec);
  if (bits > 8 || m >= TWO_STREAMS) {
    int r = static_cast<int>(rank);
    for (int w = share.begin; w < share.end; ++w)
      each_bit(s.bits[w], w, [&](int i) {
        if (bits == 32)
          store_word(bits_of(y[i]), values + 4 * static_cast<int64_t>(r));
        else if (bits == 16)
          store_half(finite_bf16(y[i]), values + 2 * static_cast<int64_t>(r));
        if (++r == half) s.ends[0] = i + 1;  // where the second stream begins
      });
  }
  __syncthreads();
  if (quantised && finite) put_codes(s, y, share, static_cast<int>(rank), m, bits, values);
  if (m == 0) return;
  // Range coding is serial: a thread for each stream, in warps of their own, which do not wait for each other.
  const int stream = thread() / 32;
  if (thread() % 32 || stream > (m < TWO_STREAMS ? 0 : 1)) return;
  const int size = static_cast<int>(position_nbytes(s.cost, n, m));
  encode_stream(s, stream ? s.ends[0] : 0, stream ? m - half : half, values + packed_nbytes(m, bits), size, stream == 1,
                m < TWO_STREAMS ? 1 : 2);
}

static __global__ void __launch_bounds__(SPARSE_THREADS)
    encode_sparse_kernel(const __grid_constant__ Job job, const __grid_constant__ Values x, float gain, uint8_t* out) {
  COMMPRESS_SHARED(SparseEncoderSpace, shared, 1);
  SparseEncoderSpace& s = shared[0];
  if (thread() == 0) s.fraction = 0;
  for (int64_t unit = blockIdx.x; unit < job.units; unit += gridDim.x) {
    const Layer layer = layer_of(job, unit);
    if (layer.family != TOPK_SEGMENTS) continue;
    begin_segment(s, layer, unit);
    encode_segment(s, s.segment, x.from(s.segment.first), gain, out + s.segment.byte);
  }
}

inline void launch_encode_sparse(const Job& job, const Gradient& x, float gain, uint8_t* out, const Queue& queue) {
  const Values values{x.data, x.input};
  COMMPRESS_LAUNCH(encode_sparse_kernel, grid_of(job.units, queue), SPARSE_THREADS,
                   static_cast<cudaStream_t>(queue.stream), job, values, gain, out);
}

}  // namespace cuda
}  // namespace commpress
