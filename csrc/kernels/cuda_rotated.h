// `hadamard+lloyd` on whole blocks of ordinary values: 64 threads with 64 coordinates each, in registers; one exchange
// through shared memory parts the butterflies. A coordinate's index is 256 k + 16 row + lane.
#pragma once
#include "cuda_lloyd.h"
#include "cuda_rotated_pack.h"

namespace commpress {
namespace cuda {

constexpr int ROTATED_THREADS = 64;

COMMPRESS_DEVICE void butterfly(float& a, float& b) {
  const float sum = a + b, difference = a - b;
  a = sum;
  b = difference;
}

// Butterflies between elements of v that are FIRST, 2 FIRST, ... apart, below END.
template <int FIRST, int END>
COMMPRESS_DEVICE void butterflies(float (&v)[64]) {
  COMMPRESS_UNROLL_ALL
  for (int stride = FIRST; stride < END; stride *= 2) {
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 64; ++i)
      if (!(i & stride)) butterfly(v[i], v[i + stride]);
  }
}

// ---- encode. First the strides 256, 512, ... and 16, 32: a thread has all k and four neighbouring rows of a lane.
// Then 64, 128 and 1, 2, 4, 8: it has one k, every fourth row, and all lanes.

// Where the exchange keeps coordinate i: bits of the index that the threads of a warp differ in are put into those that
// choose the bank, so that neither side meets itself there. Multiples of four stay together.
COMMPRESS_DEVICE int exchanged(int i) { return i ^ (i >> 5 & 1) << 2 ^ (i >> 8 & 1) << 3 ^ (i >> 6 & 1) << 4; }

// Rows 0 .. 3 of all k, added to the four accumulators: part of the chain of docs/wire-format.md section 5.
COMMPRESS_DEVICE void add_squares(const float (&v)[64], float (&sum)[4]) {
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 4; ++row) {
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) sum[k % 4] += v[4 * k + row] * v[4 * k + row];
  }
}

// Energy of the block, in every thread; and the random signs, by the way. The chains go through the four half warps,
// one after the other, since the order of the additions decides the last bits.
COMMPRESS_DEVICE float fast_energy(const Workspace& w, const float (&v)[64], const Key& key, int64_t index) {
  const int warp = thread() / 32, lane = thread() % 16;
  COMMPRESS_ROLLED
  for (int turn = 0; turn < 2; ++turn) {
    if (turn == warp) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (turn == 1) {
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) sum[m] = w.sums[16 * m + lane];
      }
      COMMPRESS_ROLLED
      for (int half = 0; half < 2; ++half) {  // after the first, the lower half warp has the right sums; then the upper
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) sum[m] = half ? __shfl_sync(ALL_LANES, sum[m], lane) : sum[m];
        add_squares(v, sum);
      }
      if (thread() % 32 >= 16) {
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) w.sums[16 * m + lane] = sum[m];
      }
    } else if (turn == 0) {
      fill_signs_by(thread() - 32, w.signs, key, ROTATE_FIRST, index, static_cast<int>(BLOCK));
    }
    __syncthreads();
  }
  float all = (w.sums[lane] + w.sums[16 + lane]) + (w.sums[32 + lane] + w.sums[48 + lane]);
  COMMPRESS_UNROLL_ALL
  for (int width = 8; width; width /= 2) all += __shfl_down_sync(ALL_LANES, all, width, 16);
  return __shfl_sync(ALL_LANES, all, 0, 16);
}

// Codes of the thread's values, a byte each, to rows of `codes`; their shares of P to y, where the values were.
template <int B>
COMMPRESS_DEVICE void code_rows(const Workspace& w, const LloydTables<B>& tables, const float (&v)[64], float inverse) {
  const float scale = LloydMax<B>::PER_SIGMA * inverse;
  const int k = thread() / 4, low = thread() % 4;
  COMMPRESS_UNROLL_ALL
  for (int h = 0; h < 4; ++h) {
    const int row = 16 * k + 4 * h + low;
    uint32_t bytes[4];
    COMMPRESS_UNROLL_ALL
    for (int quad = 0; quad < 4; ++quad) {
      Coded c[4];
      COMMPRESS_UNROLL_ALL
      for (int l = 0; l < 4; ++l) c[l] = coded<B>(tables, v[16 * h + 4 * quad + l] * scale);
      bytes[quad] =
          static_cast<uint32_t>(c[0].code | c[1].code << 8 | c[2].code << 16) | static_cast<uint32_t>(c[3].code) << 24;
      *reinterpret_cast<float4*>(w.y + exchanged(16 * row + 4 * quad)) =
          make_float4(c[0].product, c[1].product, c[2].product, c[3].product);
    }
    reinterpret_cast<uint4*>(w.codes)[row ^ (row / 8 % 8)] = make_uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
  }
}

// Q, for the least-squares scale: the squares of the levels, added as P is.
COMMPRESS_DEVICE float chain_levels(const Workspace& w, const Groups& groups) {
  float sum = 0.0f;
  for (int i = 0; i < 64; ++i) {
    const int row = 4 * i + thread() / 16;
    const float level = level_of(groups.bits[row / 32], w.codes[16 * (row ^ (row / 8 % 8)) + thread() % 16]);
    sum += level * level;
  }
  return sum;
}

COMMPRESS_DEVICE float chain_products(const Workspace& w) {
  float sum = 0.0f;
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < 64; ++i) sum += w.y[exchanged(64 * i + 16 * (thread() / 16) + thread() % 16)];
  return sum;
}

// Packs eight rows of eight lanes. The staged codes begin at word 4, so that they are aligned; the scale is word 3.
COMMPRESS_DEVICE void pack_block(const Workspace& w, const Groups& groups, bool clear) {
  const int chunk = thread() / 2, side = thread() % 2, group = chunk / 4;
  uint32_t rows[2][8];
  COMMPRESS_UNROLL_ALL
  for (int r = 0; r < 8; ++r) {
    const int row = 8 * chunk + r;
    const uint2 both = reinterpret_cast<const uint2*>(w.codes)[2 * (row ^ (row / 8 % 8)) + side];
    rows[0][r] = clear ? 0 : both.x;
    rows[1][r] = clear ? 0 : both.y;
  }
  with_bits(groups.bits[group], [&](auto b) {
    COMMPRESS_UNROLL_ALL
    for (int quad = 0; quad < 2; ++quad) {
      uint32_t low[4], high[4];
      pack_rows<b.value>(rows[quad], low, high);
      put_rows<b.value>(low, high, chunk % 4, 8 * side + 4 * quad, w.staged + 4 + groups.byte[group] / 4);
    }
  });
}

// False if the block needs the careful way; then nothing is written.
COMMPRESS_DEVICE bool rotated_encode_fast(const Workspace& w, const LloydTables<4>& four, Groups& groups,
                                          const Values& x, Rate rate, const Key& key, int64_t index, float gain,
                                          uint8_t* out) {
  const int t = thread(), high = t / 16, lane = t % 16;
  float v[64];
  with_input(x, [&](auto values) {
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) {
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 4; ++row) v[4 * k + row] = values[256 * k + 64 * high + 16 * row + lane];
    }
  });
  fill_groups(groups, rate.value, index, 0);
  const float energy = fast_energy(w, v, key, index);
  if (!ordinary(energy)) return false;
  float most = 0.0f;
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k < 16; ++k) {
    const uint32_t signs = w.signs[16 * (k / 2) + lane] >> (4 * high + 16 * (k % 2));
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 4; ++row) {
      float& value = v[4 * k + row];
      const float a = float_of(magnitude(value));
      most = a > most ? a : most;
      value = with_sign(value, signs, row);
    }
  }
  // One rotation is enough unless a value dominates.
  if (__syncthreads_or(most * most * 32.0f > energy)) return false;
  butterflies<4, 64>(v);
  butterflies<1, 4>(v);
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k < 16; ++k) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 4; ++row) w.y[exchanged(256 * k + 64 * high + 16 * row + lane)] = v[4 * k + row];
  }
  __syncthreads();
  COMMPRESS_UNROLL_ALL
  for (int h = 0; h < 4; ++h) {
    COMMPRESS_UNROLL_ALL
    for (int quad = 0; quad < 4; ++quad) {
      const int i = 256 * (t / 4) + 64 * h + 16 * (t % 4) + 4 * quad;
      const float4 four_values = *reinterpret_cast<const float4*>(w.y + exchanged(i));
      v[16 * h + 4 * quad] = four_values.x;
      v[16 * h + 4 * quad + 1] = four_values.y;
      v[16 * h + 4 * quad + 2] = four_values.z;
      v[16 * h + 4 * quad + 3] = four_values.w;
    }
  }
  butterflies<16, 64>(v);
  butterflies<1, 16>(v);
  const float deviation = square_root(energy), inverse = divide(1.0f, deviation);
  with_bits(groups.bits[t / 8], [&](auto b) {
    if constexpr (b.value == 4)
      code_rows<4>(w, four, v, inverse);
    else
      code_rows<b.value>(w, LLOYD_TABLES<b.value>, v, inverse);
  });
  __syncthreads();
  const float p = fold(w, chain_products(w));
  const float q = rate.centroid ? fold(w, chain_levels(w, groups)) : 0.0f;
  const uint32_t scale = lloyd_scale(energy, deviation, p, q, static_cast<float>(BLOCK), rate.centroid, 0, gain);
  if (t == 0) w.staged[3] = scale;
  pack_block(w, groups, scale == 0);
  __syncthreads();
  store_bytes(w.staged, 12, 4 + groups.byte[BLOCK / GROUP], out);
  return true;
}

// ---- decode. First 16, ... 128 and 1, ... 8: a thread has sixteen rows of four lanes; 4 and 8 go through shuffles.
// Then 256, 512, ...: it has all k of four neighbours.

COMMPRESS_DEVICE int exchanged_back(int i) { return i ^ (i >> 8 & 1) << 4; }

COMMPRESS_DEVICE uint32_t scale_at(const uint8_t* in) {
  return in[0] | static_cast<uint32_t>(in[1]) << 8 | static_cast<uint32_t>(in[2]) << 16 |
         static_cast<uint32_t>(in[3]) << 24;
}

// Whether the scales of a whole block from every sender are ordinary, with one rotation.
COMMPRESS_DEVICE bool rotated_plain(const Sources& sources, int64_t byte, float gain) {
  bool plain = true;
  for (int i = thread(); i < sources.count; i += threads()) {
    const uint32_t scale = scale_at(sources.payload[i] + byte);
    plain = scale != 0 && scale < SCALE32_INFINITY && float_of(scale) * gain <= LARGE_FACTOR;
  }
  return !__syncthreads_or(!plain);
}

// Butterflies between the threads of four neighbouring lanes.
COMMPRESS_DEVICE void shuffled_butterflies(float (&v)[64]) {
  COMMPRESS_UNROLL_ALL
  for (int step = 1; step < 4; step *= 2) {
    const float sign = thread() & step ? -1.0f : 1.0f;
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 64; ++i) {
      const float other = __shfl_xor_sync(ALL_LANES, v[i], step);
      v[i] = __fmaf_rn(v[i], sign, other);  // the product is exact
    }
  }
}

COMMPRESS_DEVICE void rotated_decode_fast(const Workspace& w, const float* few_levels, const Groups& groups,
                                          const Sources& sources, const Place& at, float* out, const Delivery& delivery,
                                          Report* report) {
  const int t = thread();
  const bool aligned = aligned_for_four(out);
  uint32_t* const staged = reinterpret_cast<uint32_t*>(w.codes);
  float sum[64];
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k < 16; ++k) {
    float4 before = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const float* const from = out + 256 * k + 4 * t;
    if (delivery.accumulate)
      before = aligned ? *reinterpret_cast<const float4*>(from) : make_float4(from[0], from[1], from[2], from[3]);
    sum[4 * k] = before.x;
    sum[4 * k + 1] = before.y;
    sum[4 * k + 2] = before.z;
    sum[4 * k + 3] = before.w;
  }
  for (int sender = 0; sender < sources.count; ++sender) {
    Key key = at.key;
    key.sender_phase = sources.sender_phase[sender];
    const uint8_t* const in = sources.payload[sender] + at.byte;
    if (sender) __syncthreads();
    fill_signs_by(t, w.signs, key, ROTATE_FIRST, at.index, static_cast<int>(BLOCK));
    load_bytes(in + 4, groups.byte[BLOCK / GROUP], staged);
    __syncthreads();
    float v[64];
    with_bits(groups.bits[t / 8], [&](auto b) {
      get_rows<b.value>(staged + groups.byte[t / 8] / 4, t / 4 % 2, t % 4, [&](int i, uint32_t code) {
        if constexpr (b.value <= 4)
          v[i] = few_levels[(1 << b.value) + code];
        else
          v[i] = LLOYD_TABLES<b.value>.level[code];
      });
    });
    butterflies<4, 64>(v);
    butterflies<1, 4>(v);
    shuffled_butterflies(v);
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 16; ++row)
      *reinterpret_cast<float4*>(w.y + exchanged_back(256 * (t / 4) + 16 * row + 4 * (t % 4))) =
          make_float4(v[4 * row], v[4 * row + 1], v[4 * row + 2], v[4 * row + 3]);
    __syncthreads();
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) {
      const float4 four = *reinterpret_cast<const float4*>(w.y + exchanged_back(256 * k + 4 * t));
      v[4 * k] = four.x;
      v[4 * k + 1] = four.y;
      v[4 * k + 2] = four.z;
      v[4 * k + 3] = four.w;
    }
    butterflies<4, 64>(v);
    const Sink sink = sink_of(delivery, sender);
    const float factor = float_of(scale_at(in)) * sink.gain;
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) {
      const uint4 words = *reinterpret_cast<const uint4*>(w.signs + 16 * (k / 2) + 4 * (t % 4));
      COMMPRESS_UNROLL_ALL
      for (int l = 0; l < 4; ++l) {
        const uint32_t word = l == 0 ? words.x : l == 1 ? words.y : l == 2 ? words.z : words.w;
        const float value = with_sign(v[4 * k + l], word >> (t / 4), 16 * (k % 2));
        sum[4 * k + l] = delivered(sum[4 * k + l], value * factor, sink);
      }
    }
  }
  bool finite = true;
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k < 16; ++k) {
    float* const to = out + 256 * k + 4 * t;
    if (aligned) {
      *reinterpret_cast<float4*>(to) = make_float4(sum[4 * k], sum[4 * k + 1], sum[4 * k + 2], sum[4 * k + 3]);
    } else {
      COMMPRESS_UNROLL_ALL
      for (int l = 0; l < 4; ++l) to[l] = sum[4 * k + l];
    }
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) finite = finite && magnitude(sum[4 * k + l]) < SCALE32_INFINITY;
  }
  report_non_finite(report, !finite);
}

}  // namespace cuda
}  // namespace commpress
