// THE random source: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011),
// and how its counters are laid out. docs/wire-format.md section 1 is the prose form. One 128-bit output serves 16
// coordinates for rounding, 128 for a rotation, 4 for a selection.
#pragma once
#include "hd.h"

namespace commpress {

constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u, PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;

enum Purpose : uint32_t {
  ROTATE_FIRST = 1,
  ROTATE_SECOND = 2,
  ROUND = 3,
  SELECT = 4,
  DITHER = 5,
  TRELLIS_SIGN = 9,
  DITHER_STRIDE = 10
};

// Everything but the purpose and the counter index. sender_phase = sender << 8 | phase << 4.
struct Key {
  uint64_t seed;
  uint32_t step, sender_phase, tensor;
};

struct Words4 {
  uint32_t w[4];
};

// Word i, chosen without memory to look it up in.
COMMPRESS_HD uint32_t pick(const Words4& words, uint32_t i) {
  const uint32_t even = i & 2 ? words.w[2] : words.w[0], odd = i & 2 ? words.w[3] : words.w[1];
  return i & 1 ? odd : even;
}

COMMPRESS_HD Words4 philox(const Key& key, uint32_t purpose, uint32_t index) {
  uint32_t c0 = index, c1 = key.step, c2 = key.sender_phase | purpose, c3 = key.tensor;
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t h0 = multiply_high(PHILOX_M0, c0), l0 = PHILOX_M0 * c0;
    const uint32_t h1 = multiply_high(PHILOX_M1, c2), l1 = PHILOX_M1 * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += PHILOX_W0;
    k1 += PHILOX_W1;
  }
  return {{c0, c1, c2, c3}};
}

// Row r = i / 16 and lane i % 16 of coordinate i; `rows_per_word` rows share a vector of 16 words: 4 for rounding (a
// byte each), 32 for signs (a bit each).
COMMPRESS_HD uint32_t lane_word(const Key& key, uint32_t purpose, uint32_t first, uint32_t vector, uint32_t lane) {
  return pick(philox(key, purpose, first + 8 * (vector / 2) + lane / 2), 2 * (vector % 2) + lane % 2);
}

// The 32 random bits that round coordinate `index` of the tensor.
COMMPRESS_HD uint32_t rounding_word(const Key& key, uint64_t index) {
  const uint32_t i = static_cast<uint32_t>(index % 512), row = i / 16;
  return rotate_left(lane_word(key, ROUND, static_cast<uint32_t>((index - i) / 16), row / 4, i % 16), 8 * (row % 4));
}

// The j-th random word that selects coordinates of the block which begins at `start`.
COMMPRESS_HD uint32_t selection_word(const Key& key, uint64_t start, uint32_t j) {
  return pick(philox(key, SELECT, static_cast<uint32_t>(start / 4) + j / 4), j % 4);
}

}  // namespace commpress
