// Layout of a segment that the encoder and the decoder share.
#pragma once
#include "ecsq.h"
#include "ecsq_kernels.h"
#include "entropy_tables.h"

namespace commpress {

COMMPRESS_HD int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

enum EcsqMode : uint8_t { ECSQ_ZERO = 0, ECSQ_CODED = 1, ECSQ_RAW = 2, ECSQ_TRELLIS = 3, ECSQ_NAN = 255 };

constexpr int64_t ECSQ_CLASS_WIDTH = 6;  // in 1/16 octave
constexpr int64_t ECSQ_MOST_CLASSES = 56;
constexpr float ECSQ_FLT_MAX = 0x1.fffffep127f;
constexpr int64_t ECSQ_SUBSTREAM_BLOCKS = 32;  // a substream's blocks are a multiple: whole rotations, whole spans
constexpr int64_t ECSQ_ENTRY_NBYTES = 14;      // of the header, for each substream but the first

COMMPRESS_HD int ecsq_lanes(int64_t nbytes) { return nbytes >= 1 << 15 ? 32 : nbytes >= 1 << 10 ? 4 : 1; }
COMMPRESS_HD bool ecsq_has_rho(const EcsqCodec& codec) { return !codec.dither && !codec.centroid; }

// Substreams of a segment can be decoded side by side: each has blocks, coders and classes' contexts of its own.
struct EcsqSubstreams {
  int64_t blocks, each, count;
  // Of a segment of n > 0 coordinates.
  COMMPRESS_HD EcsqSubstreams(const EcsqCodec& codec, int64_t n) : blocks((n + ECSQ_BLOCK - 1) / ECSQ_BLOCK) {
    const int64_t nbytes = ecsq_segment_nbytes(codec, n);
    const int64_t wanted = codec.substream && nbytes >= 2 * codec.substream ? nbytes / codec.substream : 1;
    const int64_t unit = wanted * ECSQ_SUBSTREAM_BLOCKS;
    each = wanted == 1 ? blocks : (blocks + unit - 1) / unit * ECSQ_SUBSTREAM_BLOCKS;
    count = (blocks + each - 1) / each;
  }
  COMMPRESS_HD int64_t first(int64_t s) const { return s * each; }
  COMMPRESS_HD int64_t last(int64_t s) const { return s + 1 < count ? (s + 1) * each : blocks; }  // and one more
  COMMPRESS_HD int64_t entries_nbytes() const { return (count - 1) * ECSQ_ENTRY_NBYTES; }
};

// Without the mask of classes.
COMMPRESS_HD int64_t ecsq_header_nbytes(const EcsqCodec& codec) { return ecsq_has_rho(codec) ? 22 : 18; }
COMMPRESS_HD int64_t ecsq_class_nbytes(const EcsqCodec& codec) { return codec.dither ? 2 : 5; }

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

// The same without a branch: an infinity is one more than the largest float.
COMMPRESS_HD float ecsq_finite(double x) {
  const uint32_t bits = bits_of(static_cast<float>(x));
  return float_of(bits - ((bits & 0x7FFFFFFFu) == SCALE32_INFINITY));
}
COMMPRESS_HD float ecsq_scaled(float z, double factor) { return ecsq_finite(static_cast<double>(z) * factor); }

// A magnitude of `ecsq` without raw bits, in 1/4096 step; `place`: one, two and slope of its class.
template <class Places>
COMMPRESS_HD int32_t ecsq_magnitude(const Places& place, int32_t a) {
  return a < 2 ? a * (4096 + 16 * place[0]) : 4096 * a + 16 * place[1] + (a - 2) * place[2];
}

}  // namespace commpress
