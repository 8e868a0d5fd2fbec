// Layout of a segment that the encoder and the decoder share.
#pragma once
#include "ecsq.h"
#include "entropy_tables.h"

namespace commpress {

enum EcsqMode : uint8_t { ECSQ_ZERO = 0, ECSQ_CODED = 1, ECSQ_RAW = 2, ECSQ_TRELLIS = 3, ECSQ_NAN = 255 };

constexpr int64_t ECSQ_CLASS_WIDTH = 6;  // in 1/16 octave
constexpr int64_t ECSQ_MOST_CLASSES = 56;
constexpr float ECSQ_FLT_MAX = 0x1.fffffep127f;

inline int ecsq_lanes(int64_t nbytes) { return nbytes >= 1 << 15 ? 32 : nbytes >= 1 << 10 ? 4 : 1; }
inline bool ecsq_has_rho(const EcsqCodec& codec) { return !codec.dither && !codec.centroid; }
// Without the mask of classes.
inline int64_t ecsq_header_nbytes(const EcsqCodec& codec) { return ecsq_has_rho(codec) ? 22 : 18; }
inline int64_t ecsq_class_nbytes(const EcsqCodec& codec) { return codec.dither ? 2 : 5; }

// floor(16 log2(mean)).
inline int64_t ecsq_level(float mean) {
  const uint32_t bits = bits_of(mean);
  int64_t place = -1;
  for (const uint32_t edge : entropy::LEVEL) place += edge <= (bits & 0x7FFFFFu);
  return 16 * (static_cast<int64_t>(bits >> 23) - 127) + place;
}

// Calls f(start, size) for what is rotated: blocks of 4096, then powers of two down to 128.
template <class F>
void ecsq_rotations(int64_t n, F&& f) {
  int64_t at = 0;
  for (; n - at >= BLOCK; at += BLOCK) f(at, BLOCK);
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2)
    if (n - at >= size) {
      f(at, size);
      at += size;
    }
}

// To nearest, within a signed byte.
inline int64_t ecsq_mean(int64_t total, int64_t count) {
  if (count == 0) return 0;
  const int64_t a = 2 * total + count, b = 2 * count, mean = a >= 0 ? a / b : -((b - 1 - a) / b);
  return mean < -127 ? -127 : mean > 127 ? 127 : mean;
}

inline float ecsq_bounded(double x) {
  const double most = ECSQ_FLT_MAX;
  return static_cast<float>(x < -most ? -most : x > most ? most : x);  // a NaN stays one
}

}  // namespace commpress
