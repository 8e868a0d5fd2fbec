// Packed codes of whole groups (docs/wire-format.md section 3): a thread has eight rows of four lanes. Their codes are
// 8 B bits of each lane's string: low[l] and, beyond 32 bits, high[l].
#pragma once
#include "cuda_bytes.h"
#include "cuda_layers.h"

namespace commpress {
namespace cuda {

COMMPRESS_DEVICE void spread(uint4 four, uint32_t (&words)[4]) {
  words[0] = four.x;
  words[1] = four.y;
  words[2] = four.z;
  words[3] = four.w;
}
COMMPRESS_DEVICE uint4 gathered(const uint32_t (&words)[4]) {
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// Adds code number `row` of eight to a lane's bits.
template <int B>
COMMPRESS_DEVICE void add_code(uint32_t code, int row, uint32_t& low, uint32_t& high) {
  const int bit = row * B;
  if (bit < 32) low |= code << bit;
  if (bit >= 32) high |= code << (bit - 32);
  if (bit < 32 && bit + B > 32) high |= code >> (32 - bit);
}

// The same for four times the code.
template <int B>
COMMPRESS_DEVICE void add_code4(uint32_t code4, int row, uint32_t& low, uint32_t& high) {
  const int bit = row * B - 2;
  if (bit < 0) {
    low |= code4 >> -bit;
    return;
  }
  if (bit < 32) low |= code4 << bit;
  if (bit >= 32) high |= code4 << (bit - 32);
  if (bit < 32 && bit + B + 2 > 32) high |= code4 >> (32 - bit);
}

// Code number `row` of eight.
template <int B>
COMMPRESS_DEVICE uint32_t code_of(uint32_t low, uint32_t high, int row) {
  const int bit = row * B;
  const uint32_t raw = bit >= 32 ? high >> (bit - 32) : bit + B > 32 ? window_of(low, high, bit) : low >> bit;
  return bit + B == 32 || bit + B == 64 ? raw : raw & ((1u << B) - 1);
}

// Writes them to the group's bytes. Where a word holds codes of one chunk alone each thread does so; else the group's
// words are put together in `staged`, which no other group uses. All sixteen threads of a group call this.
template <int B>
COMMPRESS_DEVICE void store_codes(const uint32_t (&low)[4], const uint32_t (&high)[4], const Spot& at, uint32_t* staged,
                                  uint8_t* to) {
  if constexpr (B % 4 == 0) {
    store_four(gathered(low), to + 64 * (B / 4 * at.chunk) + 16 * at.quad);
    if (B == 8) store_four(gathered(high), to + 64 * (2 * at.chunk + 1) + 16 * at.quad);
  } else {
    constexpr int unit = B % 2 == 0 ? 2 : 1;
    __syncwarp(lanes_of_group());  // nobody reads what was staged before
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) {
      uint8_t* const word = bytes_of(staged + 4 * at.quad + l);
      COMMPRESS_UNROLL_ALL
      for (int i = 0; i < B; i += unit) {
        const uint32_t part = (i < 4 ? low[l] : high[l]) >> (8 * (i % 4));
        const int byte = at.chunk * B + i, address = 64 * (byte / 4) + byte % 4;
        if (unit == 2)
          *reinterpret_cast<uint16_t*>(word + address) = static_cast<uint16_t>(part);
        else
          word[address] = static_cast<uint8_t>(part);
      }
    }
    __syncwarp(lanes_of_group());
    store_bytes(staged, 64 * B, to, thread() % 16, 16);
  }
}

// Reads them from the group's bytes; above a lane's bits lies what follows.
template <int B>
COMMPRESS_DEVICE void load_codes(const uint8_t* from, const Spot& at, uint32_t (&low)[4], uint32_t (&high)[4]) {
  const int byte = at.chunk * B, first = byte / 4, shift = 8 * (byte % 4);
  const uint8_t* const words = from + 64 * first + 16 * at.quad;
  uint32_t a[4], b[4] = {0, 0, 0, 0}, c[4] = {0, 0, 0, 0};
  spread(load_four(words), a);
  if (B == 8 || (B > 2 && B != 4 && shift + 8 * B > 32)) spread(load_four(words + 64), b);
  if (B == 7 && shift + 8 * B > 64) spread(load_four(words + 128), c);
  COMMPRESS_UNROLL_ALL
  for (int l = 0; l < 4; ++l) {
    low[l] = B % 4 == 0 ? a[l] : window_of(a[l], b[l], shift);
    high[l] = B == 8 ? b[l] : B > 4 ? window_of(b[l], c[l], shift) : 0;
  }
}

}  // namespace cuda
}  // namespace commpress
