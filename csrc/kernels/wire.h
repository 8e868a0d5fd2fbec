// THE byte layout: block and group sizes, rates, exact payload sizes, scale codes. docs/wire-format.md is the prose
// form.
#pragma once
#include "hd.h"

namespace commpress {

constexpr int64_t BLOCK = 4096;  // coordinates that share a rotation
constexpr int64_t GROUP = 512;   // coordinates that share a rate, a packing and, for `uniform`, a scale
constexpr int64_t LANES = 16;    // coordinates of a row
constexpr int64_t SMALLEST_ROTATION = 128;
constexpr int64_t RATE_ONE = 1000000;  // rates are integers in millionths of a bit

// RAW is binary32 as it is.
enum Family : int32_t { RAW = 0, CAST_FP16 = 1, CAST_BF16 = 2, UNIFORM = 3, LLOYD = 4, HADAMARD_LLOYD = 5 };

struct Codec {
  int32_t family;
  int32_t rate;   // millionths of a bit per coordinate; unused by casts
  bool centroid;  // least-squares instead of unbiased scale (HADAMARD_LLOYD)
};

// Scales. bfloat16 for `uniform`, binary32 for the others.
// A `uniform` group with few values that are not zero lists them instead: the scale is SCALE16_LIST plus their number,
// followed by entries of a 16-bit position and a binary32 value, in the bytes that the codes would have had.
constexpr uint16_t SCALE16_LIST = 0x8000;
constexpr int64_t LIST_ENTRY_NBYTES = 6;
constexpr uint16_t SCALE16_NON_FINITE = 0xFFFF, SCALE16_LARGEST = 0x7F7F;
constexpr uint32_t SCALE32_NON_FINITE = 0xFFFFFFFFu, SCALE32_TWO_ROTATIONS = 0x80000000u,
                   SCALE32_INFINITY = 0x7F800000u;

COMMPRESS_HD bool scale16_valid(uint16_t s) { return s == SCALE16_NON_FINITE || s <= SCALE16_LARGEST; }
COMMPRESS_HD bool scale32_valid(uint32_t s) {
  return s == SCALE32_NON_FINITE || s == 0 ||
         ((s & ~SCALE32_TWO_ROTATIONS) != 0 && (s & ~SCALE32_TWO_ROTATIONS) < SCALE32_INFINITY);
}

// Sum of the rates' fraction over the first `count` things, rounded down: the exact and even mix of two integers
// (Bresenham).
COMMPRESS_HD int64_t mixed(int64_t count, int64_t fraction) {
  return count / RATE_ONE * fraction + count % RATE_ONE * fraction / RATE_ONE;
}

COMMPRESS_HD bool below_one_bit(int32_t rate) { return rate < RATE_ONE; }

// Bits of each code in the group that holds coordinate `index`; 1 below one bit.
COMMPRESS_HD int group_bits(int32_t rate, int64_t index) {
  if (below_one_bit(rate)) return 1;
  const int64_t j = index / GROUP, fraction = rate % RATE_ONE;
  return static_cast<int>(rate / RATE_ONE + mixed(j + 1, fraction) - mixed(j, fraction));
}

// Coordinates that a block of n at index `start` sends, below one bit.
COMMPRESS_HD int64_t selected(int32_t rate, int64_t start, int64_t n) {
  const int64_t k = mixed(start + n, rate) - mixed(start, rate);
  return k < 1 ? 1 : k > n ? n : k;
}

COMMPRESS_HD int64_t packed_nbytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

// A run of at most BLOCK codes that begins at index `start`, a multiple of GROUP unless the run lies within one group.
// `scale_nbytes` is paid per group.
COMMPRESS_HD int64_t run_nbytes(int32_t rate, int64_t start, int64_t n, int64_t scale_nbytes) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; i += GROUP)
    total += scale_nbytes + packed_nbytes(n - i < GROUP ? n - i : GROUP, group_bits(rate, start + i));
  return total;
}

// One block (n <= BLOCK coordinates from index `start`).
COMMPRESS_HD int64_t block_nbytes(const Codec& codec, int64_t start, int64_t n) {
  if (n == 0) return 0;
  const bool part = below_one_bit(codec.rate);
  if (codec.family == UNIFORM) return run_nbytes(codec.rate, start, part ? selected(codec.rate, start, n) : n, 2);
  if (codec.family == LLOYD || n == BLOCK)
    return 4 + run_nbytes(codec.rate, start, part ? selected(codec.rate, start, n) : n, 0);
  int64_t total = 0;
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    total += 4 + run_nbytes(codec.rate, start, part ? selected(codec.rate, start, size) : size, 0);
    start += size;
  }
  const int64_t rest = n % SMALLEST_ROTATION;
  if (rest == 0) return total;
  const int64_t sent = part ? selected(codec.rate, start, rest) : rest;
  return total + (codec.centroid ? 4 + run_nbytes(codec.rate, start, sent, 0) : run_nbytes(codec.rate, start, sent, 2));
}

// Bytes of `blocks` whole blocks from block number `first` on.
COMMPRESS_HD int64_t blocks_nbytes(const Codec& codec, int64_t first, int64_t blocks) {
  const int64_t groups = BLOCK / GROUP, scales = codec.family == UNIFORM ? 2 * groups : 4;
  if (!below_one_bit(codec.rate)) {
    const int64_t fraction = codec.rate % RATE_ONE;
    const int64_t richer = mixed((first + blocks) * groups, fraction) - mixed(first * groups, fraction);
    return blocks * (scales + codec.rate / RATE_ONE * BLOCK / 8) + richer * (GROUP / 8);
  }
  // Below one bit a block sends one of two counts (each at least 1).
  const int64_t least = mixed(BLOCK, codec.rate),
                sum = mixed((first + blocks) * BLOCK, codec.rate) - mixed(first * BLOCK, codec.rate);
  const int64_t more = sum - blocks * least;
  const int64_t scale_nbytes = codec.family == UNIFORM ? 2 : 0, once = codec.family == UNIFORM ? 0 : 4;
  const int64_t few = once + run_nbytes(codec.rate, 0, least < 1 ? 1 : least, scale_nbytes),
                many = once + run_nbytes(codec.rate, 0, least + 1, scale_nbytes);
  return (blocks - more) * few + more * many;
}

// A payload of `numel` coordinates that begins at index `offset`, a multiple of BLOCK.
COMMPRESS_HD int64_t payload_nbytes(const Codec& codec, int64_t offset, int64_t numel) {
  if (codec.family == RAW) return 4 * numel;
  if (codec.family == CAST_FP16 || codec.family == CAST_BF16) return 2 * numel;
  const int64_t whole = numel / BLOCK;
  return blocks_nbytes(codec, offset / BLOCK, whole) + block_nbytes(codec, offset + whole * BLOCK, numel % BLOCK);
}

}  // namespace commpress
