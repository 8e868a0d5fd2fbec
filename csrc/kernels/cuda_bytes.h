// Payload bytes between global memory, where they may begin anywhere, and shared memory, where they are words; and
// codes packed in them (docs/wire-format.md section 3). All threads of a block call these; a barrier must come between.
#pragma once
#include "cuda_device.h"
#include "wire.h"

namespace commpress {
namespace cuda {

constexpr int STAGED_GROUP = 132;               // words that hold a group with its scale
constexpr int STAGED_WORDS = 8 * STAGED_GROUP;  // and a block of them

COMMPRESS_DEVICE uint8_t* bytes_of(uint32_t* words) { return reinterpret_cast<uint8_t*>(words); }
COMMPRESS_DEVICE const uint8_t* bytes_of(const uint32_t* words) { return reinterpret_cast<const uint8_t*>(words); }
COMMPRESS_DEVICE int alignment(const void* p) { return static_cast<int>(reinterpret_cast<uintptr_t>(p) & 15); }

// ---- four words of global memory at any byte: the accesses are as wide as the address allows ----

COMMPRESS_DEVICE uint4 load_four(const uint8_t* p) {
  const int at = alignment(p);
  if (at == 0) return __ldg(reinterpret_cast<const uint4*>(p));
  if (at % 4 == 0) {
    const uint32_t* const w = reinterpret_cast<const uint32_t*>(p);
    return make_uint4(__ldg(w), __ldg(w + 1), __ldg(w + 2), __ldg(w + 3));
  }
  if (at % 2 == 0) {
    const uint32_t* const w = reinterpret_cast<const uint32_t*>(p + 2);
    const uint32_t a = static_cast<uint32_t>(__ldg(reinterpret_cast<const uint16_t*>(p))) << 16, b = __ldg(w),
                   c = __ldg(w + 1), d = __ldg(w + 2), e = __ldg(reinterpret_cast<const uint16_t*>(w + 3));
    return make_uint4(window_of(a, b, 16), window_of(b, c, 16), window_of(c, d, 16), window_of(d, e, 16));
  }
  uint32_t words[4] = {0, 0, 0, 0};
  for (int i = 0; i < 16; ++i) words[i / 4] |= static_cast<uint32_t>(__ldg(p + i)) << (8 * (i % 4));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

COMMPRESS_DEVICE void store_four(uint4 words, uint8_t* p) {
  const int at = alignment(p);
  if (at == 0) {
    *reinterpret_cast<uint4*>(p) = words;
  } else if (at % 4 == 0) {
    uint32_t* const w = reinterpret_cast<uint32_t*>(p);
    w[0] = words.x;
    w[1] = words.y;
    w[2] = words.z;
    w[3] = words.w;
  } else if (at % 2 == 0) {
    uint32_t* const w = reinterpret_cast<uint32_t*>(p + 2);
    *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(words.x);
    w[0] = window_of(words.x, words.y, 16);
    w[1] = window_of(words.y, words.z, 16);
    w[2] = window_of(words.z, words.w, 16);
    *reinterpret_cast<uint16_t*>(w + 3) = static_cast<uint16_t>(words.w >> 16);
  } else {
    for (int i = 0; i < 4; ++i) {
      p[i] = static_cast<uint8_t>(words.x >> (8 * i));
      p[4 + i] = static_cast<uint8_t>(words.y >> (8 * i));
      p[8 + i] = static_cast<uint8_t>(words.z >> (8 * i));
      p[12 + i] = static_cast<uint8_t>(words.w >> (8 * i));
    }
  }
}

COMMPRESS_DEVICE uint16_t half_from(const uint8_t* p) { return static_cast<uint16_t>(__ldg(p) | __ldg(p + 1) << 8); }
COMMPRESS_DEVICE void store_half(uint32_t value, uint8_t* p) {
  p[0] = static_cast<uint8_t>(value);
  p[1] = static_cast<uint8_t>(value >> 8);
}
COMMPRESS_DEVICE uint32_t word_from(const uint8_t* p) {
  return half_from(p) | static_cast<uint32_t>(half_from(p + 2)) << 16;
}
COMMPRESS_DEVICE void store_word(uint32_t value, uint8_t* p) {
  store_half(value, p);
  store_half(value >> 16, p + 2);
}

// ---- any number of bytes between shared and global memory; the workers t of `count` share them ----

// Writes n bytes that begin at byte 0 of `words`, which is aligned to 16.
COMMPRESS_DEVICE void store_bytes(const uint32_t* words, int n, uint8_t* to, int t, int count) {
  for (int c = t; c < n / 16; c += count) store_four(reinterpret_cast<const uint4*>(words)[c], to + 16 * c);
  for (int i = n / 16 * 16 + t; i < n; i += count) to[i] = bytes_of(words)[i];
}

// Reads n bytes to byte 0 of `words` on, which is aligned to 16.
COMMPRESS_DEVICE void load_bytes(const uint8_t* from, int n, uint32_t* words, int t, int count) {
  for (int c = t; c < n / 16; c += count) reinterpret_cast<uint4*>(words)[c] = load_four(from + 16 * c);
  for (int i = n / 16 * 16 + t; i < n; i += count) bytes_of(words)[i] = __ldg(from + i);
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
