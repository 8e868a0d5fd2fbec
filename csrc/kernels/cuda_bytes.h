// Payload bytes between global memory, where they may begin anywhere, and shared memory, where they are words; and
// codes packed in them (docs/wire-format.md section 3). All threads of a block call these; a barrier must come between.
#pragma once
#include "cuda_device.h"
#include "wire.h"

namespace commpress {
namespace cuda {

constexpr int STAGED_WORDS = static_cast<int>(BLOCK / GROUP) * (64 * 8 + 2) / 4 + 4;  // the longest block of codes

COMMPRESS_DEVICE uint8_t* bytes_of(uint32_t* words) { return reinterpret_cast<uint8_t*>(words); }
COMMPRESS_DEVICE const uint8_t* bytes_of(const uint32_t* words) { return reinterpret_cast<const uint8_t*>(words); }

// Writes n bytes that begin at byte `start` of `words`: sixteen at a time where `to` is aligned for that.
COMMPRESS_DEVICE void store_bytes(const uint32_t* words, int start, int n, uint8_t* to) {
  const uint8_t* const from = bytes_of(words) + start;
  const int head = smaller(n, static_cast<int>(-reinterpret_cast<uintptr_t>(to) & 15));
  const int chunks = n - head < 3 ? 0 : (n - head - 3) / 16;  // a chunk may look at three bytes beyond its own
  const int word = (start + head) / 4, shift = 8 * ((start + head) % 4);
  for (int i = thread(); i < head; i += threads()) to[i] = from[i];
  for (int c = thread(); c < chunks; c += threads()) {
    const uint32_t* const w = words + word + 4 * c;
    uint4 chunk = make_uint4(w[0], w[1], w[2], w[3]);
    if (shift) {
      chunk.x = window_of(chunk.x, chunk.y, shift);
      chunk.y = window_of(chunk.y, chunk.z, shift);
      chunk.z = window_of(chunk.z, chunk.w, shift);
      chunk.w = window_of(chunk.w, w[4], shift);
    }
    reinterpret_cast<uint4*>(to + head)[c] = chunk;
  }
  for (int i = head + 16 * chunks + thread(); i < n; i += threads()) to[i] = from[i];
}

// Reads n bytes to byte 0 of `words` on; the last word is filled up with zeros.
COMMPRESS_DEVICE void load_bytes(const uint8_t* from, int n, uint32_t* words) {
  const int shift = 8 * static_cast<int>(reinterpret_cast<uintptr_t>(from) & 3);
  const uint32_t* const aligned = reinterpret_cast<const uint32_t*>(from - shift / 8);
  for (int w = thread(); w < (n + 3) / 4; w += threads()) {
    uint32_t word = 0;
    if (shift == 0 && 4 * w + 4 <= n) {
      word = __ldg(aligned + w);
    } else if (w > 0 && 4 * w + 8 <= n) {
      word = window_of(__ldg(aligned + w), __ldg(aligned + w + 1), shift);
    } else {
      for (int i = 0; i < 4 && 4 * w + i < n; ++i) word |= static_cast<uint32_t>(from[4 * w + i]) << (8 * i);
    }
    words[w] = word;
  }
}

// The word that begins at a byte of `words`. It looks at the word after, if it isn't aligned.
COMMPRESS_DEVICE uint32_t word_at(const uint32_t* words, int byte) {
  const uint32_t low = words[byte / 4];
  return byte % 4 ? window_of(low, words[byte / 4 + 1], 8 * (byte % 4)) : low;
}

COMMPRESS_DEVICE uint16_t half_at(const uint32_t* words, int byte) {
  return static_cast<uint16_t>(bytes_of(words)[byte] | bytes_of(words)[byte + 1] << 8);
}

COMMPRESS_DEVICE void put_half(uint32_t* words, int byte, uint32_t value) {
  bytes_of(words)[byte] = static_cast<uint8_t>(value);
  bytes_of(words)[byte + 1] = static_cast<uint8_t>(value >> 8);
}

// ---- one code or one byte at a time, for runs of any length ----

// Byte number `byte` of a run of n packed codes; `codes` has a byte for each.
COMMPRESS_DEVICE uint32_t packed_byte(const uint8_t* codes, int n, int bits, int byte) {
  const bool full = n == GROUP;
  const int lane = byte / 4 % 16, bit = full ? 32 * (byte / 64) + 8 * (byte % 4) : 8 * byte;
  const int count = full ? 32 : n, stride = full ? 16 : 1;
  uint32_t value = 0;
  for (int i = bit / bits; i < count && i * bits < bit + 8; ++i) {
    const uint32_t code = codes[full ? stride * i + lane : i];
    value |= i * bits >= bit ? code << (i * bits - bit) : code >> (bit - i * bits);
  }
  return value & 0xFF;
}

// Code number i of a run of n that is packed from byte `start` of `words` on.
COMMPRESS_DEVICE uint32_t packed_code(const uint32_t* words, int start, int n, int bits, int i) {
  const bool full = n == GROUP;
  const int lane = i % 16, bit = (full ? i / 16 : i) * bits, last = (bit + bits - 1) / 8, first = bit / 8;
  const uint8_t* const from = bytes_of(words) + start;
  const auto at = [&](int byte) {
    return static_cast<uint32_t>(from[full ? 4 * (16 * (byte / 4) + lane) + byte % 4 : byte]);
  };
  const uint32_t both = last == first ? at(first) : at(first) | at(last) << 8;
  return both >> (bit % 8) & ((1u << bits) - 1);
}

// Packs a run; the threads first, first + step, ... take its bytes.
COMMPRESS_DEVICE void pack_run(const uint8_t* codes, int n, int bits, uint32_t* words, int start, int first, int step) {
  const int nbytes = static_cast<int>(packed_nbytes(n, bits));
  for (int byte = first; byte < nbytes; byte += step)
    bytes_of(words)[start + byte] = static_cast<uint8_t>(packed_byte(codes, n, bits, byte));
}

// Calls f(integral_constant<int, bits>).
template <int BITS>
struct Bits {
  static constexpr int value = BITS;
};
template <class F>
COMMPRESS_DEVICE void with_bits(int bits, F&& f) {
  switch (bits) {
    case 1:
      return f(Bits<1>());
    case 2:
      return f(Bits<2>());
    case 3:
      return f(Bits<3>());
    case 4:
      return f(Bits<4>());
    case 5:
      return f(Bits<5>());
    case 6:
      return f(Bits<6>());
    case 7:
      return f(Bits<7>());
    default:
      return f(Bits<8>());
  }
}

}  // namespace cuda
}  // namespace commpress
