// The `uniform` family on the device.
#pragma once
#include "cuda_block.h"

namespace commpress {
namespace cuda {

// ---- the careful way: a warp works on a run of up to 512 coordinates ----

// A run with few values that are not zero lists gain times them, if they fit. For all lanes of a warp.
COMMPRESS_DEVICE bool list_run(const float* y, int n, int nbytes, float gain, uint32_t* words, int start) {
  const int lane = thread() % 32;
  const bool first = lane < 8 && 64 * lane < n && bits_of(y[64 * lane]) << 1 != 0;
  if (__popc(__ballot_sync(ALL_LANES, first)) > 4) return false;
  int count = 0;
  bool finite = true;
  for (int i = 0; i < n; i += 32) {
    const float value = i + lane < n ? y[i + lane] * gain : 0.0f;
    finite = finite && magnitude(value) < SCALE32_INFINITY;
    count += __popc(__ballot_sync(ALL_LANES, value != 0.0f));
  }
  if (!__all_sync(ALL_LANES, finite) || count == 0 || count * LIST_ENTRY_NBYTES > nbytes) return false;
  if (lane == 0) put_half(words, start, SCALE16_LIST + static_cast<uint32_t>(count));
  const int entry = static_cast<int>(LIST_ENTRY_NBYTES);
  int before = 0;
  for (int i = 0; i < n; i += 32) {
    const float value = i + lane < n ? y[i + lane] * gain : 0.0f;
    const uint32_t some = __ballot_sync(ALL_LANES, value != 0.0f);
    if (value != 0.0f) {
      const int at = start + 2 + entry * (before + __popc(some & ((1u << lane) - 1)));
      put_half(words, at, static_cast<uint32_t>(i + lane));
      put_half(words, at + 2, bits_of(value));
      put_half(words, at + 4, bits_of(value) >> 16);
    }
    before += __popc(some);
  }
  for (int i = entry * count + lane; i < nbytes; i += 32) bytes_of(words)[start + 2 + i] = 0;
  return true;
}

COMMPRESS_DEVICE void encode_run(float* y, uint8_t* codes, int n, int bits, const Key& key, int64_t index, float gain,
                                 uint32_t* words, int start) {
  const int lane = thread() % 32, nbytes = static_cast<int>(packed_nbytes(n, bits));
  if (list_run(y, n, nbytes, gain, words, start)) return;
  uint32_t top = 0;
  for (int i = lane; i < n; i += 32) top = larger(top, magnitude(y[i]));
  top = warp_largest(top);
  float largest = float_of(top);
  UniformScale scale{0, 0.0f};
  if (top >= SCALE32_INFINITY) {
    scale.code = SCALE16_NON_FINITE;
  } else if (top != 0) {
    int exponent = 0;
    if (!ordinary(largest)) {
      exponent = exponent_of(largest);
      for (int i = lane; i < n; i += 32) y[i] = scale_by_power(y[i], -exponent);
      largest = scale_by_power(largest, -exponent);
    }
    scale = uniform_scale(largest, exponent, bits, gain);
  }
  if (lane == 0) put_half(words, start, scale.code);
  for (int i = lane; i < n; i += 32)
    codes[i] = scale.multiplier == 0.0f
                   ? 0
                   : static_cast<uint8_t>(uniform_code(y[i], scale.multiplier, bits,
                                                       rounding_word(key, static_cast<uint64_t>(index + i))));
  __syncwarp();
  pack_run(codes, n, bits, words, start + 2, lane, 32);
}

// n values of `y` as runs, to byte 0 of what is staged on. Returns their bytes. Ends in step.
COMMPRESS_DEVICE int encode_runs(const Workspace& w, int n, int32_t rate, const Key& key, int64_t index, float gain) {
  int byte = 0, run = 0;
  for (int i = 0; i < n; i += static_cast<int>(GROUP), ++run) {
    const int m = smaller(n - i, static_cast<int>(GROUP)), bits = group_bits(rate, index + i);
    if (run % (threads() / 32) == thread() / 32)
      encode_run(w.y + i, w.codes + i, m, bits, key, index + i, gain, w.staged, byte);
    byte += 2 + static_cast<int>(packed_nbytes(m, bits));
  }
  __syncthreads();
  return byte;
}

// Any n coordinates. `staged` must not share its place with `y`. Returns the bytes written.
COMMPRESS_SELDOM int uniform_encode_careful(Workspace w, Values x, int n, int32_t rate, Key key, int64_t index,
                                            float gain, uint8_t* out) {
  int sent = n;
  if (below_one_bit(rate)) {
    uint32_t most = 0;
    for (int i = thread(); i < n; i += threads()) most = larger(most, magnitude(x[i]));
    const bool finite = block_largest(most, w.scratch) < SCALE32_INFINITY;
    sent = static_cast<int>(selected(rate, index, n));
    for (int j = thread(); j < sent; j += threads()) {
      const Window at = window(key, static_cast<uint64_t>(index), n, sent, j);
      // One value that is not finite marks the whole block, selected or not.
      w.y[j] = finite ? window_value(x[static_cast<int>(at.chosen)], at.length) : float_of(SCALE32_INFINITY);
    }
  } else {
    for (int i = thread(); i < n; i += threads()) w.y[i] = x[i];
  }
  __syncthreads();
  const int nbytes = encode_runs(w, sent, rate, key, index, gain);
  store_bytes(w.staged, 0, nbytes, out);
  __syncthreads();
  return nbytes;
}

// Whether a list of `count` entries is one that an encoder writes. For all lanes of a warp.
COMMPRESS_DEVICE bool list_valid(const uint32_t* words, int start, int count, int n, int nbytes) {
  const int entry = static_cast<int>(LIST_ENTRY_NBYTES);
  if (count < 1 || count * entry > nbytes) return false;
  bool valid = true;
  for (int e = thread() % 32; e < count; e += 32) {
    const int at = start + 2 + entry * e, position = half_at(words, at);
    const int last = e ? half_at(words, at - entry) : -1;
    const uint32_t value = half_at(words, at + 2) | static_cast<uint32_t>(half_at(words, at + 4)) << 16;
    valid = valid && position > last && position < n && (value & 0x7FFFFFFFu) - 1 < SCALE32_INFINITY - 1;
  }
  return __all_sync(ALL_LANES, valid);
}

// Values of a run to y; false if its scale is one that no encoder writes.
COMMPRESS_DEVICE bool decode_run(const uint32_t* words, int start, int n, int bits, float gain, float* y) {
  const int lane = thread() % 32, nbytes = static_cast<int>(packed_nbytes(n, bits));
  const uint16_t code = half_at(words, start);
  const float step = from_bf16(code) * gain;
  if (code == 0 || code == SCALE16_NON_FINITE) {
    for (int i = lane; i < n; i += 32) y[i] = code ? float_of(QUIET_NAN) : 0.0f;
    return true;
  }
  if (code & SCALE16_LIST) {
    const int entry = static_cast<int>(LIST_ENTRY_NBYTES), count = code - SCALE16_LIST;
    for (int i = lane; i < n; i += 32) y[i] = 0.0f * gain;
    if (!list_valid(words, start, count, n, nbytes)) return false;
    __syncwarp();
    for (int e = lane; e < count; e += 32) {
      const int at = start + 2 + entry * e;
      const uint32_t value = half_at(words, at + 2) | static_cast<uint32_t>(half_at(words, at + 4)) << 16;
      y[half_at(words, at)] = float_of(value) * gain;
    }
    return true;
  }
  for (int i = lane; i < n; i += 32) y[i] = uniform_value(packed_code(words, start + 2, n, bits, i), bits, step);
  return scale16_valid(code);
}

// Any n coordinates. Returns the bytes read, or -1 for a payload that no encoder writes.
COMMPRESS_SELDOM int uniform_decode_careful(Workspace w, const uint8_t* in, int n, int32_t rate, Key key, int64_t index,
                                            float* out, Sink sink) {
  const bool part = below_one_bit(rate);
  const int sent = part ? static_cast<int>(selected(rate, index, n)) : n;
  const int nbytes = static_cast<int>(run_nbytes(rate, index, sent, 2));
  load_bytes(in, nbytes, w.staged);
  __syncthreads();
  bool valid = true;
  int byte = 0, run = 0;
  for (int i = 0; i < sent; i += static_cast<int>(GROUP), ++run) {
    const int m = smaller(sent - i, static_cast<int>(GROUP)), bits = group_bits(rate, index + i);
    if (run % (threads() / 32) == thread() / 32)
      valid = decode_run(w.staged, byte, m, bits, sink.gain, w.y + i) && valid;
    byte += 2 + static_cast<int>(packed_nbytes(m, bits));
  }
  valid = !__syncthreads_or(!valid);
  if (!part) {
    deliver_all(w, n, out, sink);
  } else {
    bool finite = true;
    for (int j = thread(); j < sent; j += threads()) finite = finite && w.y[j] == w.y[j];
    for (int i = thread(); i < n; i += threads()) w.codes[i] = 0;
    if (__syncthreads_or(!finite)) {
      deliver_constant(n, float_of(QUIET_NAN), out, sink);
    } else {
      for (int j = thread(); j < sent; j += threads()) {
        const int chosen = static_cast<int>(window(key, static_cast<uint64_t>(index), n, sent, j).chosen);
        w.codes[chosen] = 1;
        deliver(out + chosen, w.y[j], sink);
      }
      __syncthreads();
      for (int i = thread(); i < n; i += threads())
        if (!w.codes[i]) deliver(out + i, 0.0f, sink);
      __syncthreads();
    }
  }
  return valid ? nbytes : -1;
}

// ---- the fast way: a whole block of four warps, each with two groups; a thread has eight rows of four lanes ----

constexpr int UNIFORM_THREADS = 128;

struct UniformPlace {
  int group, chunk, quad;  // chunk: eight rows of the group; quad: four lanes
};
COMMPRESS_DEVICE UniformPlace uniform_place() {
  const int lane = thread() % 32;
  return {2 * (thread() / 32) + lane / 16, lane / 4 % 4, lane % 4};
}

// The eight codes of a lane are 8 B bits, B bytes of the lane's string: written where they belong, by units that the
// lane's words hold whole.
template <int B>
COMMPRESS_DEVICE void put_codes(uint32_t low, uint32_t high, const UniformPlace& at, int lane, uint32_t* words,
                                int start) {
  constexpr int unit = B % 2 == 0 ? 2 : 1;  // payloads of groups begin at even bytes
  uint8_t* const to = bytes_of(words) + start + 4 * (4 * at.quad + lane);
  COMMPRESS_UNROLL_ALL
  for (int i = 0; i < B; i += unit) {
    const uint32_t part = (i < 4 ? low : high) >> (8 * (i % 4));
    const int byte = at.chunk * B + i, address = 64 * (byte / 4) + byte % 4;
    if (unit == 2)
      *reinterpret_cast<uint16_t*>(to + address) = static_cast<uint16_t>(part);
    else
      to[address] = static_cast<uint8_t>(part);
  }
}

template <int B>
COMMPRESS_DEVICE void uniform_put_group(const float4 (&x)[8], const uint32_t (&noise)[8], float multiplier,
                                        const UniformPlace& at, uint32_t* words, int start) {
  COMMPRESS_UNROLL_ALL
  for (int lane = 0; lane < 4; ++lane) {
    uint32_t low = 0, high = 0;
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) {
      const float value = lane == 0 ? x[row].x : lane == 1 ? x[row].y : lane == 2 ? x[row].z : x[row].w;
      const uint32_t word = noise[4 * (lane / 2) + 2 * (row / 4) + lane % 2];
      const uint32_t code = uniform_code(value, multiplier, B, rotate_left(word, 8 * (row % 4)));
      const int bit = row * B;
      if (bit < 32) low |= code << bit;
      if (bit >= 32) high |= code << (bit - 32);
      if (bit < 32 && bit + B > 32) high |= code >> (32 - bit);
    }
    put_codes<B>(low, high, at, lane, words, start);
  }
}

// A whole block at a bit or more; false if it needs the careful way, and then nothing is written.
COMMPRESS_DEVICE bool uniform_encode_fast(uint32_t* staged, Groups& groups, const Values& x, int32_t rate,
                                          const Key& key, int64_t index, float gain, uint8_t* out) {
  const UniformPlace at = uniform_place();
  const int begin = 512 * at.group + 128 * at.chunk + 4 * at.quad;
  float4 values[8];
  with_input(x, [&](auto from) {
    if (from.aligned()) {
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 8; ++row) values[row] = from.four(begin + 16 * row);
    } else {
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 8; ++row) {
        const int i = begin + 16 * row;
        values[row] = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
      }
    }
  });
  fill_groups(groups, rate, index, 2);
  uint32_t top = 0;
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    top = larger(top, larger(larger(magnitude(values[row].x), magnitude(values[row].y)),
                             larger(magnitude(values[row].z), magnitude(values[row].w))));
  }
  COMMPRESS_UNROLL_ALL
  for (int step = 1; step < 16; step *= 2) top = larger(top, __shfl_xor_sync(ALL_LANES, top, step));
  // Dense: more than four of the coordinates 0, 64, ... 448 are not zero.
  const uint32_t half = 0xFFFFu << (thread() % 32 / 16 * 16);
  const uint32_t some = __ballot_sync(ALL_LANES, at.quad == 0 && bits_of(values[0].x) << 1 != 0) & half,
                 more = __ballot_sync(ALL_LANES, at.quad == 0 && bits_of(values[4].x) << 1 != 0) & half;
  const float largest = float_of(top);
  const bool care = top != 0 && (__popc(some) + __popc(more) <= 4 || !ordinary(largest));
  if (__syncthreads_or(care)) return false;  // and the groups are filled in
  const int bits = groups.bits[at.group], start = groups.byte[at.group];
  const UniformScale scale = top ? uniform_scale(largest, 0, bits, gain) : UniformScale{0, 0.0f};
  if (thread() % 16 == 0) *reinterpret_cast<uint16_t*>(bytes_of(staged) + start) = scale.code;
  const uint32_t counter = static_cast<uint32_t>((index + 512 * at.group) / 16) + 8u * static_cast<uint32_t>(at.chunk) +
                           2u * static_cast<uint32_t>(at.quad);
  const Words4 left = philox(key, ROUND, counter), right = philox(key, ROUND, counter + 1);
  const uint32_t noise[8] = {left.w[0],  left.w[1],  left.w[2],  left.w[3],
                             right.w[0], right.w[1], right.w[2], right.w[3]};
  with_bits(bits, [&](auto b) {
    if (scale.multiplier == 0.0f) {
      COMMPRESS_UNROLL_ALL
      for (int lane = 0; lane < 4; ++lane) put_codes<b.value>(0, 0, at, lane, staged, start + 2);
    } else {
      uniform_put_group<b.value>(values, noise, scale.multiplier, at, staged, start + 2);
    }
  });
  __syncthreads();
  store_bytes(staged, 0, groups.byte[BLOCK / GROUP], out);
  return true;
}

// The 8 B bits of a lane's eight codes.
template <int B>
COMMPRESS_DEVICE void get_codes(const uint32_t* words, int start, const UniformPlace& at, int lane, uint32_t& low,
                                uint32_t& high) {
  const int first = at.chunk * B / 4, shift = 8 * (at.chunk * B % 4), byte = start + 4 * (4 * at.quad + lane);
  const auto word = [&](int k) { return k < B ? word_at(words, byte + 64 * k) : 0u; };
  const uint32_t a = word(first), b = B > 2 ? word(first + 1) : 0u;
  low = window_of(a, b, shift);
  high = B > 4 ? window_of(b, word(first + 2), shift) : 0u;
}

template <int B>
COMMPRESS_DEVICE void uniform_add_group(const uint32_t* words, int start, float step, const UniformPlace& at,
                                        const Sink& sink, float4 (&sum)[8]) {
  COMMPRESS_UNROLL_ALL
  for (int lane = 0; lane < 4; ++lane) {
    uint32_t low, high;
    get_codes<B>(words, start, at, lane, low, high);
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) {
      const int bit = row * B;
      const uint32_t raw = bit >= 32 ? high >> (bit - 32) : bit + B > 32 ? window_of(low, high, bit) : low >> bit;
      const float value = uniform_value(raw & ((1u << B) - 1), B, step);
      float& to = lane == 0 ? sum[row].x : lane == 1 ? sum[row].y : lane == 2 ? sum[row].z : sum[row].w;
      to = delivered(to, value, sink);
    }
  }
}

// Whether the scales of a whole block from every sender are plain: no lists, nothing that is not finite or not valid.
COMMPRESS_DEVICE bool uniform_plain(const Groups& groups, const Sources& sources, int64_t byte) {
  bool plain = true;
  for (int i = thread(); i < 8 * sources.count; i += threads()) {
    const uint8_t* const at = sources.payload[i / 8] + byte + groups.byte[i % 8];
    plain = plain && static_cast<uint16_t>(at[0] | at[1] << 8) <= SCALE16_LARGEST;
  }
  return !__syncthreads_or(!plain);
}

// A whole block at a bit or more whose scales are plain.
COMMPRESS_DEVICE void uniform_decode_fast(uint32_t* staged, const Groups& groups, const Sources& sources, int64_t byte,
                                          float* out, const Delivery& delivery, Report* report) {
  const UniformPlace at = uniform_place();
  const int begin = 512 * at.group + 128 * at.chunk + 4 * at.quad;
  const bool aligned = aligned_for_four(out);
  float4 sum[8];
  if (delivery.accumulate) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) {
      const float* const from = out + begin + 16 * row;
      sum[row] = aligned ? *reinterpret_cast<const float4*>(from) : make_float4(from[0], from[1], from[2], from[3]);
    }
  } else {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) sum[row] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  const int bits = groups.bits[at.group], start = groups.byte[at.group];
  for (int sender = 0; sender < sources.count; ++sender) {
    if (sender) __syncthreads();
    load_bytes(sources.payload[sender] + byte, groups.byte[BLOCK / GROUP], staged);
    __syncthreads();
    const Sink sink = sink_of(delivery, sender);
    const uint16_t code = half_at(staged, start);
    const float step = from_bf16(code) * sink.gain;
    if (code == 0) {  // its codes mean nothing
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 8; ++row) {
        sum[row].x = delivered(sum[row].x, 0.0f, sink);
        sum[row].y = delivered(sum[row].y, 0.0f, sink);
        sum[row].z = delivered(sum[row].z, 0.0f, sink);
        sum[row].w = delivered(sum[row].w, 0.0f, sink);
      }
    } else {
      with_bits(bits, [&](auto b) { uniform_add_group<b.value>(staged, start + 2, step, at, sink, sum); });
    }
  }
  bool finite = true;
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    float* const to = out + begin + 16 * row;
    if (aligned) {
      *reinterpret_cast<float4*>(to) = sum[row];
    } else {
      to[0] = sum[row].x;
      to[1] = sum[row].y;
      to[2] = sum[row].z;
      to[3] = sum[row].w;
    }
    finite = finite && larger(larger(magnitude(sum[row].x), magnitude(sum[row].y)),
                              larger(magnitude(sum[row].z), magnitude(sum[row].w))) < SCALE32_INFINITY;
  }
  report_non_finite(report, !finite);
}

}  // namespace cuda
}  // namespace commpress
