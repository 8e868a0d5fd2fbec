// What encoders and decoders of `topk` have in common, on every processor: a segment's header, and single values.
#pragma once
#include "levels.h"
#include "sparse.h"

namespace commpress {

constexpr uint32_t EXACT = 0x80000000u;  // in a header: the values are binary32 although the codec's are not

struct Header {
  uint32_t sent;  // coordinates
  bool exact;
  Levels levels;
};

COMMPRESS_HD bool fits_exactly(const SparseCodec& codec, const GapCost& cost, int64_t n, int64_t k, int64_t m) {
  return codec.bits < 32 && m > 0 &&
         sparse_header_nbytes(codec) + 4 * m + position_nbytes(cost, n, m) <= sparse_nbytes(codec, cost, n, k);
}

COMMPRESS_HD bool header_valid(const SparseCodec& codec, const GapCost& cost, const Header& header, int64_t n,
                               int64_t k) {
  if (header.sent > k || !levels_valid(header.levels)) return false;
  return header.exact == fits_exactly(codec, cost, n, k, header.sent);
}

COMMPRESS_HD float clamped(float value) {
  const float limit = float_of(SCALE32_INFINITY - 1);
  return value > limit ? limit : value < -limit ? -limit : value;
}

// What is sent for a value; one that is not finite is left alone.
COMMPRESS_HD float sent_value(float value, float gain) {
  return (bits_of(value) & 0x7FFFFFFFu) < SCALE32_INFINITY ? clamped(value * gain) : value;
}

// To nearest even; finite values stay finite.
COMMPRESS_HD uint16_t finite_bf16(float value) {
  const uint16_t code = to_bf16(value);
  const bool rounded_up = (code & 0x7FFF) == 0x7F80 && (bits_of(value) & 0x7FFFFFFFu) < SCALE32_INFINITY;
  return static_cast<uint16_t>(code - rounded_up);
}

}  // namespace commpress
