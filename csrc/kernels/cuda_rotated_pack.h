// Codes of whole groups between a byte each, in rows, and packed words (docs/wire-format.md section 3), eight rows of
// four lanes at a time.
#pragma once
#include "cuda_bytes.h"

namespace commpress {
namespace cuda {

// Four words of four bytes each, transposed.
COMMPRESS_DEVICE void transpose(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t (&out)[4]) {
  const uint32_t ab01 = __byte_perm(a, b, 0x5140), ab23 = __byte_perm(a, b, 0x7362);
  const uint32_t cd01 = __byte_perm(c, d, 0x5140), cd23 = __byte_perm(c, d, 0x7362);
  out[0] = __byte_perm(ab01, cd01, 0x5410);
  out[1] = __byte_perm(ab01, cd01, 0x7632);
  out[2] = __byte_perm(ab23, cd23, 0x5410);
  out[3] = __byte_perm(ab23, cd23, 0x7632);
}

// Four codes, a byte each, side by side.
template <int B>
COMMPRESS_DEVICE uint32_t squeezed(uint32_t word) {
  constexpr uint32_t mask = (1u << B) - 1;
  return (word & mask) | (word >> 8 & mask) << B | (word >> 16 & mask) << (2 * B) | word >> 24 << (3 * B);
}

// rows[r]: the codes of row r in four lanes, a byte each. The 8 B bits of lane l are low[l] and, beyond 32, high[l].
template <int B>
COMMPRESS_DEVICE void pack_rows(const uint32_t (&rows)[8], uint32_t (&low)[4], uint32_t (&high)[4]) {
  if constexpr (B == 1 || B == 2) {
    constexpr int rows_per_byte = 8 / B;
    uint32_t bytes[B] = {};
    COMMPRESS_UNROLL_ALL
    for (int r = 0; r < 8; ++r) bytes[r / rows_per_byte] |= rows[r] << (B * (r % rows_per_byte));
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) {
      low[l] = bytes[0] >> (8 * l) & 0xFF;
      if (B == 2) low[l] |= (bytes[B - 1] >> (8 * l) & 0xFF) << 8;
      high[l] = 0;
    }
  } else if constexpr (B == 4) {
    transpose(rows[0] | rows[1] << 4, rows[2] | rows[3] << 4, rows[4] | rows[5] << 4, rows[6] | rows[7] << 4, low);
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) high[l] = 0;
  } else {
    uint32_t first[4], second[4];
    transpose(rows[0], rows[1], rows[2], rows[3], first);
    transpose(rows[4], rows[5], rows[6], rows[7], second);
    COMMPRESS_UNROLL_ALL
    for (int l = 0; l < 4; ++l) {
      if constexpr (B == 8) {
        low[l] = first[l];
        high[l] = second[l];
      } else {
        const uint32_t a = squeezed<B>(first[l]), b = squeezed<B>(second[l]);
        low[l] = a | b << (4 * B);
        high[l] = B > 4 ? b >> (B > 4 ? 32 - 4 * B : 0) : 0;
      }
    }
  }
}

// Puts them into the words of a group that begin at `words`: eight rows number `chunk` of the lanes from `lane` on.
template <int B>
COMMPRESS_DEVICE void put_rows(const uint32_t (&low)[4], const uint32_t (&high)[4], int chunk, int lane,
                               uint32_t* words) {
  constexpr int unit = B % 4 == 0 ? 4 : B % 2 == 0 ? 2 : 1;
  COMMPRESS_UNROLL_ALL
  for (int l = 0; l < 4; ++l) {
    uint8_t* const to = bytes_of(words + lane + l);
    COMMPRESS_UNROLL_ALL
    for (int i = 0; i < B; i += unit) {
      const uint32_t part = (i < 4 ? low[l] : high[l]) >> (8 * (i % 4));
      const int byte = chunk * B + i, address = 64 * (byte / 4) + byte % 4;
      if (unit == 4)
        *reinterpret_cast<uint32_t*>(to + address) = part;
      else if (unit == 2)
        *reinterpret_cast<uint16_t*>(to + address) = static_cast<uint16_t>(part);
      else
        to[address] = static_cast<uint8_t>(part);
    }
  }
}

// Half a group, sixteen rows, of four lanes: codes[4 r + l] from the words that begin at `words`, a multiple of 16
// bytes.
template <int B, class F>
COMMPRESS_DEVICE void get_rows(const uint32_t* words, int half, int quad, F&& take) {
  constexpr int count = (B + 1) / 2;  // words of sixteen codes
  const int first = half * B / 2, shift = B % 2 && half ? 16 : 0;
  uint4 group[count + 1];
  COMMPRESS_UNROLL_ALL
  for (int k = 0; k <= count; ++k) {
    // An odd number of bits: the second half begins in the middle of a word, and has one more to look at.
    const bool there = k < count || (B % 2 && first + k < B);
    group[k] = there ? *reinterpret_cast<const uint4*>(words + 16 * (first + k) + 4 * quad) : make_uint4(0, 0, 0, 0);
  }
  COMMPRESS_UNROLL_ALL
  for (int l = 0; l < 4; ++l) {
    uint32_t bits[count + 1];
    COMMPRESS_UNROLL_ALL
    for (int k = 0; k <= count; ++k)
      bits[k] = l == 0 ? group[k].x : l == 1 ? group[k].y : l == 2 ? group[k].z : group[k].w;
    if (B % 2) {
      COMMPRESS_UNROLL_ALL
      for (int k = 0; k < count; ++k) bits[k] = window_of(bits[k], bits[k + 1], shift);
    }
    COMMPRESS_UNROLL_ALL
    for (int r = 0; r < 16; ++r) {
      const int bit = r * B, k = bit / 32, at = bit % 32;
      const uint32_t raw = at + B > 32 ? window_of(bits[k], bits[k + 1], at) : bits[k] >> at;
      take(4 * r + l, raw & ((1u << B) - 1));
    }
  }
}

}  // namespace cuda
}  // namespace commpress
