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
  store_bytes(w.staged, nbytes, out, thread(), threads());
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
  load_bytes(in, nbytes, w.staged, thread(), threads());
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

// ---- the fast way: a whole block at a bit or more. Sixteen threads have a group, and no warp waits for another ----

template <int B>
COMMPRESS_DEVICE void round_lane(const float (&x)[8], uint32_t first, uint32_t second, float multiplier, uint32_t& low,
                                 uint32_t& high) {
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row)
    add_code<B>(uniform_code(x[row], multiplier, B, rotate_left(row < 4 ? first : second, 8 * (row % 4))), row, low,
                high);
}

// The thread's values by lane. Returns the largest magnitude.
COMMPRESS_DEVICE uint32_t load_lanes(const Values& x, int begin, float (&values)[4][8]) {
  with_input(x.from(begin), [&](auto from) {
    if (from.aligned()) {
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 8; ++row) {
        const float4 four = from.four(16 * row);
        values[0][row] = four.x;
        values[1][row] = four.y;
        values[2][row] = four.z;
        values[3][row] = four.w;
      }
    } else {
      COMMPRESS_UNROLL_ALL
      for (int row = 0; row < 8; ++row) {
        COMMPRESS_UNROLL_ALL
        for (int lane = 0; lane < 4; ++lane) values[lane][row] = from[16 * row + lane];
      }
    }
  });
  uint32_t top = 0;
  COMMPRESS_UNROLL_ALL
  for (int row = 0; row < 8; ++row) {
    COMMPRESS_UNROLL_ALL
    for (int lane = 0; lane < 4; ++lane) top = larger(top, magnitude(values[lane][row]));
  }
  return top;
}

// Both groups of a warp, the careful way.
COMMPRESS_SELDOM void encode_groups(Workspace w, Values x, Place at, float gain, uint8_t* out) {
  const int lane = thread() % 32;
  for (int group = 2 * (thread() / 32); group < 2 * (thread() / 32) + 2; ++group) {
    const GroupPlace place = group_place(at, group, 2);
    float* const y = w.y + 512 * group;
    uint32_t* const staged = w.staged + STAGED_GROUP * group;
    __syncwarp();
    for (int i = lane; i < 512; i += 32) y[i] = x[512 * group + i];
    __syncwarp();
    encode_run(y, w.codes + 512 * group, 512, place.bits, at.key, at.index + 512 * group, gain, staged, 0);
    __syncwarp();
    store_bytes(staged, 2 + 64 * place.bits, out + place.byte, lane, 32);
  }
  __syncwarp();
}

COMMPRESS_DEVICE void uniform_encode_fast(const Workspace& w, const Values& x, const Place& at, float gain,
                                          uint8_t* out) {
  const Spot spot = spot_of_thread();
  float values[4][8];
  uint32_t top = load_lanes(x, 512 * spot.group + 128 * spot.chunk + 4 * spot.quad, values);
  COMMPRESS_UNROLL_ALL
  for (int step = 1; step < 16; step *= 2) top = larger(top, __shfl_xor_sync(ALL_LANES, top, step));
  // Dense: more than four of the coordinates 0, 64, ... 448 are not zero.
  const uint32_t some = __ballot_sync(ALL_LANES, spot.quad == 0 && bits_of(values[0][0]) << 1 != 0) & lanes_of_group(),
                 more = __ballot_sync(ALL_LANES, spot.quad == 0 && bits_of(values[0][4]) << 1 != 0) & lanes_of_group();
  const float largest = float_of(top);
  if (__any_sync(ALL_LANES, top != 0 && (__popc(some) + __popc(more) <= 4 || !ordinary(largest)))) {
    encode_groups(w, x, at, gain, out);
    return;
  }
  const GroupPlace place = group_place(at, spot.group, 2);
  const UniformScale scale = top ? uniform_scale(largest, 0, place.bits, gain) : UniformScale{0, 0.0f};
  uint8_t* const to = out + place.byte;
  if (thread() % 16 == 0) store_half(scale.code, to);
  const uint32_t counter =
      static_cast<uint32_t>(at.index / 16) + static_cast<uint32_t>(32 * spot.group + 8 * spot.chunk + 2 * spot.quad);
  with_bits(place.bits, [&](auto b) {
    constexpr int B = decltype(b)::value;
    uint32_t low[4] = {0, 0, 0, 0}, high[4] = {0, 0, 0, 0};
    if (scale.multiplier != 0.0f) {
      COMMPRESS_UNROLL_ALL
      for (int pair = 0; pair < 2; ++pair) {
        const Words4 noise = philox(at.key, ROUND, counter + static_cast<uint32_t>(pair));
        round_lane<B>(values[2 * pair], noise.w[0], noise.w[2], scale.multiplier, low[2 * pair], high[2 * pair]);
        round_lane<B>(values[2 * pair + 1], noise.w[1], noise.w[3], scale.multiplier, low[2 * pair + 1],
                      high[2 * pair + 1]);
      }
    }
    store_codes<B>(low, high, spot, w.staged + STAGED_GROUP * spot.group, to + 2);
  });
}

template <int B>
COMMPRESS_DEVICE void add_lanes(const uint32_t (&low)[4], const uint32_t (&high)[4], float step, float (&sum)[8][4]) {
  COMMPRESS_UNROLL_ALL
  for (int lane = 0; lane < 4; ++lane) {
    COMMPRESS_UNROLL_ALL
    for (int row = 0; row < 8; ++row) sum[row][lane] += uniform_value(code_of<B>(low[lane], high[lane], row), B, step);
  }
}

// Both groups of a warp, the careful way, from every sender.
COMMPRESS_SELDOM void decode_groups(Workspace w, const Sources& sources, Place at, float* out, Delivery delivery,
                                    Report* report) {
  const int lane = thread() % 32;
  bool finite = true;
  for (int group = 2 * (thread() / 32); group < 2 * (thread() / 32) + 2; ++group) {
    const GroupPlace place = group_place(at, group, 2);
    float* const y = w.y + 512 * group;
    uint32_t* const staged = w.staged + STAGED_GROUP * group;
    for (int sender = 0; sender < sources.count; ++sender) {
      const Sink sink = sink_of(delivery, sender);
      __syncwarp();
      load_bytes(sources.payload[sender] + at.byte + place.byte, 2 + 64 * place.bits, staged, lane, 32);
      __syncwarp();
      if (!decode_run(staged, 0, 512, place.bits, sink.gain, y) && lane == 0) report_invalid(report, sources, sender);
      __syncwarp();
      for (int i = lane; i < 512; i += 32) deliver(out + 512 * group + i, y[i], sink);
    }
    for (int i = lane; i < 512; i += 32) finite = finite && magnitude(out[512 * group + i]) < SCALE32_INFINITY;
  }
  report_non_finite(report, !finite);
  __syncwarp();
}

COMMPRESS_DEVICE void uniform_decode_fast(const Workspace& w, const Sources& sources, const Place& at, float* out,
                                          const Delivery& delivery, Report* report) {
  const Spot spot = spot_of_thread();
  const GroupPlace place = group_place(at, spot.group, 2);
  // Plain scales: no lists, nothing that is not finite or not valid.
  bool plain = true;
  for (int sender = 0; sender < sources.count; ++sender)
    plain = plain && half_from(sources.payload[sender] + at.byte + place.byte) <= SCALE16_LARGEST;
  float* const to = out + 512 * spot.group + 128 * spot.chunk + 4 * spot.quad;
  float sum[8][4];
  load_sums<8, 16>(to, delivery, sum);
  if (!__all_sync(ALL_LANES, plain)) {
    decode_groups(w, sources, at, out, delivery, report);
    return;
  }
  with_bits(place.bits, [&](auto b) {
    constexpr int B = decltype(b)::value;
    for (int sender = 0; sender < sources.count; ++sender) {
      const uint8_t* const from = sources.payload[sender] + at.byte + place.byte;
      const uint16_t code = half_from(from);
      uint32_t low[4], high[4];
      load_codes<B>(from + 2, spot, low, high);
      if (code == 0) {  // then the codes mean nothing, and say zero: what adds +0 whatever the gain
        COMMPRESS_UNROLL_ALL
        for (int lane = 0; lane < 4; ++lane) {
          COMMPRESS_UNROLL_ALL
          for (int row = 0; row < 8; ++row) sum[row][lane] += 0.0f;
        }
      } else {
        add_lanes<B>(low, high, from_bf16(code) * delivery.gain, sum);
      }
    }
  });
  store_sums<8, 16>(to, sum, report);
}

}  // namespace cuda
}  // namespace commpress
