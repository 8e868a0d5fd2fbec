// `hadamard+lloyd` on whole blocks of ordinary values at a bit or more: 128 threads with 32 coordinates each, in
// registers. A coordinate's index is 256 k + 16 row + lane. One exchange through shared memory parts the butterflies.
#pragma once
#include "cuda_lloyd.h"

namespace commpress {
namespace cuda {

COMMPRESS_DEVICE void butterfly(float& a, float& b) {
  const float sum = a + b, difference = a - b;
  a = sum;
  b = difference;
}

// Butterflies between elements of v that are FIRST, 2 FIRST, ... apart, below END.
template <int FIRST, int END>
COMMPRESS_DEVICE void butterflies(float (&v)[32]) {
  COMMPRESS_UNROLL_ALL
  for (int stride = FIRST; stride < END; stride *= 2) {
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 32; ++i)
      if (!(i & stride)) butterfly(v[i], v[i + stride]);
  }
}

// Butterflies between threads of a warp whose numbers differ in one bit.
COMMPRESS_DEVICE void shuffled_butterflies(float (&v)[32], int bit) {
  const float sign = thread() & bit ? -1.0f : 1.0f;
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < 32; ++i) {
    const float other = __shfl_xor_sync(ALL_LANES, v[i], bit);
    v[i] = __fmaf_rn(v[i], sign, other);  // the product is exact
  }
}

// ---- encode. First the strides 256, 512, ... and 16: a thread has all k and two neighbouring rows of a lane. Then 32,
// 64, 128 and 1, 2: it has one k, every other row, four lanes; and 4, 8 between threads.

// Rows 0 and 1 of all k, added to the four accumulators: part of the chain of docs/wire-format.md section 5.
COMMPRESS_DEVICE void add_squares(const float (&v)[32], float (&sum)[4]) {
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 2; ++row) {
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) sum[k % 4] += v[2 * k + row] * v[2 * k + row];
  }
}

// Energy of the block, in every thread; and the random signs, by the way. The chains go through the eight half warps,
// one after the other, since the order of the additions decides the last bits. Ends in step.
COMMPRESS_DEVICE float fast_energy(const Workspace& w, const float (&v)[32], const Key& key, int64_t index) {
  const int warp = thread() / 32, lane = thread() % 16;
  if (warp == 3) fill_signs_by(thread() % 32, w.signs, key, ROTATE_FIRST, index, static_cast<int>(BLOCK));
  COMMPRESS_ROLLED
  for (int turn = 0; turn < 4; ++turn) {
    if (turn == warp) {
      float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      if (turn > 0) {
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) sum[m] = w.sums[16 * m + lane];
      }
      COMMPRESS_ROLLED
      for (int half = 0; half < 2; ++half) {  // after the first the lower half warp has the right sums, then the upper
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) sum[m] = half ? __shfl_sync(ALL_LANES, sum[m], lane) : sum[m];
        add_squares(v, sum);
      }
      __syncwarp();  // all have read the sums
      if (thread() % 32 >= 16) {
        COMMPRESS_UNROLL_ALL
        for (int m = 0; m < 4; ++m) w.sums[16 * m + lane] = sum[m];
      }
    }
    __syncthreads();
  }
  float all = (w.sums[lane] + w.sums[16 + lane]) + (w.sums[32 + lane] + w.sums[48 + lane]);
  COMMPRESS_UNROLL_ALL
  for (int width = 8; width; width /= 2) all += __shfl_down_sync(ALL_LANES, all, width, 16);
  return __shfl_sync(ALL_LANES, all, 0, 16);
}

// Codes of the thread's eight rows (2 j + its parity) and their shares of P, which take the values' place in y.
template <int B>
COMMPRESS_DEVICE void code_rows(const LloydTables<B>& tables, const float (&v)[32], float inverse, float* y,
                                uint32_t (&low)[2][4], uint32_t (&high)[2][4]) {
  const float scale = LloydMax<B>::PER_SIGMA * inverse;
  const int parity = thread() / 4 % 2;
  COMMPRESS_UNROLL_ALL
  for (int j = 0; j < 8; ++j) {
    float product[4];
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) {
      const Coded c = coded<B>(tables, v[4 * j + l] * scale);
      product[l] = c.product;
      add_code4<B>(static_cast<uint32_t>(c.code4), 2 * (j % 4), low[j / 4][l], high[j / 4][l]);
    }
    *reinterpret_cast<float4*>(y + 32 * j + 16 * ((j & 1) ^ parity)) =
        make_float4(product[0], product[1], product[2], product[3]);
  }
}

// Two threads have the even and the odd rows of four lanes, as codes with gaps. After this the first has the codes of
// rows 0 to 7, the other those of 8 to 15.
template <int B>
COMMPRESS_DEVICE void join_rows(const uint32_t (&low)[2][4], const uint32_t (&high)[2][4], uint32_t (&joined_low)[4],
                                uint32_t (&joined_high)[4]) {
  const bool odd = thread() / 4 % 2;
  const uint32_t mask = lanes_of_group();  // the warp's other group may have codes of other lengths, and be elsewhere
  COMMPRESS_UNROLL_ALL
  for (int l = 0; l < 4; ++l) {
    uint32_t kept_low = odd ? low[1][l] : low[0][l], kept_high = odd ? high[1][l] : high[0][l];
    uint32_t other_low = __shfl_xor_sync(mask, odd ? low[0][l] : low[1][l], 4), other_high = 0;
    if (B > 4) other_high = __shfl_xor_sync(mask, odd ? high[0][l] : high[1][l], 4);
    uint32_t &even_low = odd ? other_low : kept_low, &even_high = odd ? other_high : kept_high;
    uint32_t &odd_low = odd ? kept_low : other_low, &odd_high = odd ? kept_high : other_high;
    joined_low[l] = even_low | odd_low << B;
    joined_high[l] = B > 4 ? even_high | (odd_high << B | odd_low >> (32 - B)) : 0;
  }
}

// The sums of four accumulators' sixteen lanes each, by the first two warps; then a barrier, and the first warp's
// threads know the total.
COMMPRESS_DEVICE float total_of_y(const Workspace& w) {
  const int m = thread() / 16, lane = thread() % 16;
  if (thread() < 64) {
    // Coordinate 64 i + 16 m + lane: bit 4 of its place is turned by bit 5 of the index.
    const float* const y = w.y + 32 * (m / 2) + 16 * ((m & 1) ^ (m / 2)) + lane;
    float sum = 0.0f;
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 64; ++i) sum += y[64 * i];
    w.sums[thread()] = sum;
  }
  __syncthreads();
  float all = 0.0f;
  if (thread() < 32) {
    all = (w.sums[lane] + w.sums[16 + lane]) + (w.sums[32 + lane] + w.sums[48 + lane]);
    COMMPRESS_UNROLL_ALL
    for (int width = 8; width; width /= 2) all += __shfl_down_sync(ALL_LANES, all, width, 16);
  }
  return all;
}

// The squares of the levels, where the shares of P were.
template <int B>
COMMPRESS_DEVICE void square_levels(const uint32_t (&low)[4], const uint32_t (&high)[4], const Spot& at, float* y) {
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    float square[4];
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) {
      const float level = LLOYD_TABLES<B>.level[code_of<B>(low[l], high[l], row)];
      square[l] = level * level;
    }
    const int i = 512 * at.group + 128 * at.chunk + 16 * row + 4 * at.quad;
    *reinterpret_cast<float4*>(y + (i ^ (i >> 5 & 1) << 4)) = make_float4(square[0], square[1], square[2], square[3]);
  }
}

// False if the block needs the careful way, and then what it wrote is not to be used. Ends in step.
COMMPRESS_DEVICE bool rotated_encode_fast(const Workspace& w, const LloydTables<4>& four, const Values& x,
                                          const Place& at, float gain, uint8_t* out) {
  const int t = thread(), high_rows = t / 16, lane = t % 16;  // rows 2 high_rows and the next, of all k
  float v[32];
  with_input(x.from(32 * high_rows + lane), [&](auto values) {
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) {
      v[2 * k] = values[256 * k];
      v[2 * k + 1] = values[256 * k + 16];
    }
  });
  const float energy = fast_energy(w, v, at.key, at.index);
  float most = 0.0f;
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < 32; ++i) most = fmaxf(most, fabsf(v[i]));
  // One rotation is enough unless a value dominates.
  if (__syncthreads_or(!ordinary(energy) || most * most * 32.0f > energy)) return false;
  COMMPRESS_UNROLL_ALL
  for (int pair = 0; pair < 8;
       ++pair) {  // k = 2 pair and 2 pair + 1: bits 2 high_rows and 16 + 2 high_rows, and the next
    const uint32_t word = w.signs[16 * pair + lane] << (14 - 2 * high_rows);
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < 4; ++i) {
      const int bit = 14 + 16 * (i / 2) + i % 2;
      v[4 * pair + i] = float_of(bits_of(v[4 * pair + i]) ^ (word << (31 - bit) & 0x80000000u));
    }
  }
  butterflies<2, 32>(v);
  butterflies<1, 2>(v);
  // Bit 4 of a coordinate's place in y is turned by bit 5 of its index, so that half warps meet different banks.
  float* const even = w.y + 32 * high_rows + 16 * (high_rows & 1) + lane;
  float* const odd = w.y + 32 * high_rows + 16 * (1 - (high_rows & 1)) + lane;
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k < 16; ++k) {
    even[256 * k] = v[2 * k];
    odd[256 * k] = v[2 * k + 1];
  }
  __syncthreads();
  const int k = t / 8, parity = t / 4 % 2, quad = t % 4;
  float* const y = w.y + 256 * k + 4 * quad;
  COMMPRESS_UNROLL_ALL
  for (int j = 0; j < 8; ++j) {
    const float4 row = *reinterpret_cast<const float4*>(y + 32 * j + 16 * ((j & 1) ^ parity));
    v[4 * j] = row.x;
    v[4 * j + 1] = row.y;
    v[4 * j + 2] = row.z;
    v[4 * j + 3] = row.w;
  }
  butterflies<4, 32>(v);
  butterflies<1, 4>(v);
  shuffled_butterflies(v, 1);
  shuffled_butterflies(v, 2);
  const float deviation = square_root(energy), inverse = divide(1.0f, deviation);
  const Spot spot{t / 16, 2 * (k & 1) + parity, quad};
  const GroupPlace place = group_place(at, spot.group, 0);
  uint32_t low[4], high[4];
  with_bits(place.bits, [&](auto b) {
    constexpr int B = decltype(b)::value;
    uint32_t part_low[2][4] = {}, part_high[2][4] = {};
    if constexpr (B == 4)
      code_rows<4>(four, v, inverse, y, part_low, part_high);
    else
      code_rows<B>(LLOYD_TABLES<B>, v, inverse, y, part_low, part_high);
    join_rows<B>(part_low, part_high, low, high);
    store_codes<B>(low, high, spot, reinterpret_cast<uint32_t*>(w.codes) + STAGED_CODES * spot.group,
                   out + 4 + place.byte);
  });
  __syncthreads();
  const float p = total_of_y(w);
  float q = 0.0f;
  if (at.codec.centroid) {
    __syncthreads();  // the first warp has read the sums
    with_bits(place.bits, [&](auto b) { square_levels<decltype(b)::value>(low, high, spot, w.y); });
    __syncthreads();
    q = total_of_y(w);
  }
  if (t == 0) {
    const uint32_t scale = lloyd_scale(energy, deviation, p, q, static_cast<float>(BLOCK), at.codec.centroid, 0, gain);
    store_word(scale, out);
    w.scratch[8] = scale;  // beyond what the careful way of a next block writes at once
  }
  __syncthreads();
  return w.scratch[8] != 0;  // a block that rounds to nothing has no codes
}

// ---- decode. First 16, 32, 64 and 1, 2: a thread has eight rows of four lanes; 128, 4 and 8 between threads. Then
// 256, 512, ...: it has all k of two neighbours.

// Whether the scales of a block from every sender are ordinary, with one rotation.
COMMPRESS_DEVICE bool rotated_plain(const Sources& sources, int64_t byte, float gain) {
  bool plain = true;
  for (int i = thread(); i < sources.count; i += threads()) {
    const uint32_t scale = word_from(sources.payload[i] + byte);
    plain = scale != 0 && scale < SCALE32_INFINITY && float_of(scale) * gain <= LARGE_FACTOR;
  }
  return !__syncthreads_or(!plain);
}

// For a block whose scales are plain. Ends in step.
COMMPRESS_DEVICE void rotated_decode_fast(const Workspace& w, const float* few_levels, const Sources& sources,
                                          const Place& at, float* out, const Delivery& delivery, Report* report) {
  const int t = thread();
  const Spot spot = spot_of_thread();
  const GroupPlace place = group_place(at, spot.group, 0);
  // Bit 4 of a coordinate's place in y is turned by bit 7 of its index, so that both sides meet different banks.
  const int turned = spot.chunk & 1, first = 512 * spot.group + 128 * spot.chunk + 4 * spot.quad;
  float* const even = w.y + first + 16 * turned;
  float* const odd = w.y + first - 16 * turned;
  const float* const y = w.y + (2 * t ^ (2 * t >> 7 & 1) << 4);
  float sum[16][2];
  load_sums<16, 256>(out + 2 * t, delivery, sum);
  for (int sender = 0; sender < sources.count; ++sender) {
    Key key = at.key;
    key.sender_phase = sources.sender_phase[sender];
    const uint8_t* const in = sources.payload[sender] + at.byte;
    float v[32];
    with_bits(place.bits, [&](auto b) {
      constexpr int B = decltype(b)::value;
      uint32_t low[4], high[4];
      load_codes<B>(in + 4 + place.byte, spot, low, high);
      COMMPRESS_UNROLL_ALL
      for (int l = 0; l < 4; ++l) {
        COMMPRESS_UNROLL_ALL
        for (int row = 0; row < 8; ++row) {
          const uint32_t code = code_of<B>(low[l], high[l], row);
          if constexpr (B <= 4)
            v[4 * row + l] = few_levels[(1 << B) + code];
          else
            v[4 * row + l] = LLOYD_TABLES<B>.level[code];
        }
      }
    });
    butterflies<4, 32>(v);
    shuffled_butterflies(v, 4);
    butterflies<1, 4>(v);
    shuffled_butterflies(v, 1);
    shuffled_butterflies(v, 2);
    fill_signs_by(t, w.signs, key, ROTATE_FIRST, at.index, static_cast<int>(BLOCK));
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row)
      *reinterpret_cast<float4*>((row % 2 ? odd : even) + 16 * row) =
          make_float4(v[4 * row], v[4 * row + 1], v[4 * row + 2], v[4 * row + 3]);
    __syncthreads();
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k < 16; ++k) {
      const float2 both = *reinterpret_cast<const float2*>(y + 256 * k);
      v[2 * k] = both.x;
      v[2 * k + 1] = both.y;
    }
    butterflies<2, 32>(v);
    const float factor = float_of(word_from(in)) * delivery.gain;
    COMMPRESS_UNROLL_ALL
    for (int pair = 0; pair < 8; ++pair) {  // k = 2 pair and 2 pair + 1: bits t / 8 and 16 + t / 8 of a word
      const uint2 words = *reinterpret_cast<const uint2*>(w.signs + 16 * pair + 2 * (t % 8));
      const uint32_t a = words.x << (15 - t / 8), b = words.y << (15 - t / 8);
      sum[2 * pair][0] += float_of(bits_of(v[4 * pair]) ^ (a << 16 & 0x80000000u)) * factor;
      sum[2 * pair][1] += float_of(bits_of(v[4 * pair + 1]) ^ (b << 16 & 0x80000000u)) * factor;
      sum[2 * pair + 1][0] += float_of(bits_of(v[4 * pair + 2]) ^ (a & 0x80000000u)) * factor;
      sum[2 * pair + 1][1] += float_of(bits_of(v[4 * pair + 3]) ^ (b & 0x80000000u)) * factor;
    }
    __syncthreads();
  }
  store_sums<16, 256>(out + 2 * t, sum, report);
}

}  // namespace cuda
}  // namespace commpress
