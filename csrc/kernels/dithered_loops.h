// Codes of up to 16 bits, group by group, and the noise that rounds them. Include after a lanes_*.h.
#pragma once
#include "dithered.h"
#include "pack.h"

namespace commpress {
namespace COMMPRESS_ISA {

template <int W>
static void pack_group(const uint32_t* codes, uint8_t* out) {
  Ints words[W];
  each<32>([&](auto row) __attribute__((always_inline)) { put<W>(words, row, load(codes + 16 * row)); });
  for (int k = 0; k < W; ++k) store(out + 64 * k, words[k]);
}

template <int W>
static void unpack_group(const uint8_t* in, uint32_t* codes) {
  Ints words[W];
  for (int k = 0; k < W; ++k) words[k] = load_bytes(in + 64 * k);
  const Ints mask = all((1u << W) - 1);
  each<32>([&](auto row) __attribute__((always_inline)) { store(codes + 16 * row, get<W>(words, row) & mask); });
}

using PackGroup = void (*)(const uint32_t*, uint8_t*);
using UnpackGroup = void (*)(const uint8_t*, uint32_t*);

template <int... W>
static PackGroup packer_of(int width, std::integer_sequence<int, W...>) {
  static constexpr PackGroup table[] = {pack_group<W + 1>...};
  return table[width - 1];
}
template <int... W>
static UnpackGroup unpacker_of(int width, std::integer_sequence<int, W...>) {
  static constexpr UnpackGroup table[] = {unpack_group<W + 1>...};
  return table[width - 1];
}

// n <= 512 codes of `width` bits (nothing above them).
[[maybe_unused]] static void pack_codes(const uint32_t* codes, int64_t n, int width, uint8_t* out) {
  if (n == GROUP)
    packer_of(width, std::make_integer_sequence<int, MOST_WIDTH>{})(codes, out);
  else
    pack_string(codes, n, width, out);
}

[[maybe_unused]] static void unpack_codes(const uint8_t* in, int64_t n, int width, uint32_t* codes) {
  if (n == GROUP)
    unpacker_of(width, std::make_integer_sequence<int, MOST_WIDTH>{})(in, codes);
  else
    unpack_string(in, n, width, codes);
}

// The 512 random words of the group that begins at index `index`.
[[maybe_unused]] static void group_words(const Philox& random, uint64_t index, uint32_t* words) {
  Ints noise[8];
  random.fill<4>(static_cast<uint32_t>(index / 16), noise);
  each<32>([&](auto row)
               __attribute__((always_inline)) { store(words + 16 * row, rotate_bytes(noise[row / 4], row)); });
}

// Largest |x| as the bits of a float.
[[maybe_unused]] static uint32_t largest_magnitude(const float* x, int64_t n) {
  Ints m = all(0u);
  const Ints mask = all(0x7FFFFFFFu);
  const int64_t rows = n / 16;
  for (int64_t row = 0; row < rows; ++row) m = larger(m, bits(load(x + 16 * row)) & mask);
  uint32_t best = largest_lane(m);
  for (int64_t i = 16 * rows; i < n; ++i) {
    const uint32_t a = bits_of(x[i]) & 0x7FFFFFFFu;
    best = a > best ? a : best;
  }
  return best;
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
