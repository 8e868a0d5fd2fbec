// Layout of a segment that the encoder and the decoder share.
#pragma once
#include "ecsq.h"
#include "ecsq_kernels.h"
#include "entropy_frequencies.h"

namespace commpress {

enum EcsqMode : uint8_t { ECSQ_ZERO = 0, ECSQ_CODED = 1, ECSQ_RAW = 2, ECSQ_TRELLIS = 3, ECSQ_NAN = 255 };

constexpr int64_t ECSQ_CLASS_WIDTH = 6;  // in 1/16 octave
constexpr int64_t ECSQ_MOST_CLASSES = 56;
constexpr int64_t ECSQ_FLOOR_LEVEL = -48;  // of the lowest class above the first step, in 1/16 octave
constexpr int64_t ECSQ_FINEST = 36800;  // a class is at most so many 1/2048 octaves above the step: at most 16 raw bits
// Segments of so many blocks are searched on every eighth first.
constexpr int64_t ECSQ_SAMPLED_BLOCKS = 256, ECSQ_STRIDE = 8;
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

COMMPRESS_HD int64_t floor_divide(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// floor(16 log2(mean)).
COMMPRESS_HD int64_t ecsq_level(float mean) {
  const uint32_t bits = bits_of(mean);
  int64_t place = -1;
  for (int i = 0; i < 16; ++i) place += entropy::tables().level[i] <= (bits & 0x7FFFFFu);
  return 16 * (static_cast<int64_t>(bits >> 23) - 127) + place;
}

// The coarsest of the steps 2^(t / 16) at which normal sources of these levels would have enough bits, in 1/2048
// octave. total(t): their bits in 1/4096.
template <class Total>
COMMPRESS_HD int64_t ecsq_first_step(int64_t nbytes, int64_t least, int64_t greatest, const Total& total) {
  int64_t low = least - 256, high = greatest + 64;
  while (high - low > 1) {
    const int64_t t = (low + high) >> 1;
    (total(t) <= nbytes * 8 * 4096 ? high : low) = t;
  }
  return high * 128;
}

// Of the places where classes may begin: what it gathers of the blocks, of which met(level) have that level.
template <class Met>
COMMPRESS_HD int64_t ecsq_gathered(int64_t phase, int64_t least, int64_t greatest, const Met& met) {
  int64_t sum = 0, here = 0;
  for (int64_t level = least; level <= greatest; ++level) {
    here += met(level);
    if (level == greatest ||
        floor_divide(level + phase, ECSQ_CLASS_WIDTH) != floor_divide(level + 1 + phase, ECSQ_CLASS_WIDTH)) {
      sum += here * here;
      here = 0;
    }
  }
  return sum;
}
// The place that gathers most.
template <class Met>
int64_t ecsq_phase(int64_t least, int64_t greatest, const Met& met) {
  int64_t phase = 0, most = -1;
  for (int64_t p = 0; p < ECSQ_CLASS_WIDTH; ++p) {
    const int64_t sum = ecsq_gathered(p, least, greatest, met);
    if (sum > most) {
      most = sum;
      phase = p;
    }
  }
  return phase;
}

// The classes of a segment whose blocks have levels from `least` to `greatest`.
struct EcsqClassRange {
  int64_t phase, floor_class, lowest, highest;

  COMMPRESS_HD EcsqClassRange(int64_t place, int64_t first_step, int64_t least, int64_t greatest)
      : phase(place), floor_class(floor_divide((first_step >> 7) + ECSQ_FLOOR_LEVEL + place, ECSQ_CLASS_WIDTH)) {
    lowest = unbounded(least);
    const int64_t top = unbounded(greatest), most = lowest + ECSQ_MOST_CLASSES - 1;
    highest = top < most ? top : most;
  }
  COMMPRESS_HD void flatten() { lowest = highest; }  // to one class
  COMMPRESS_HD int64_t count() const { return highest - lowest + 1; }
  COMMPRESS_HD int64_t class_of(int64_t level) const {
    const int64_t c = unbounded(level) < highest ? unbounded(level) : highest;
    return c < lowest ? 0 : c - lowest;
  }
  // In 1/2048 octave.
  COMMPRESS_HD int64_t centre() const { return (ECSQ_CLASS_WIDTH * lowest - phase + ECSQ_CLASS_WIDTH / 2) * 128; }
  COMMPRESS_HD int64_t finest_step() const { return centre() + (count() - 1) * ECSQ_CLASS_WIDTH * 128 - ECSQ_FINEST; }

 private:
  COMMPRESS_HD int64_t unbounded(int64_t level) const {
    const int64_t c = floor_divide(level + phase, ECSQ_CLASS_WIDTH);
    return c > floor_class ? c : floor_class;
  }
};

// Calls f(start, size) for what is rotated: blocks of 4096, then powers of two down to 128.
template <class F>
COMMPRESS_HD void ecsq_rotations(int64_t n, F&& f) {
  int64_t at = 0;
  for (; n - at >= BLOCK; at += BLOCK) f(at, BLOCK);
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2)
    if (n - at >= size) {
      f(at, size);
      at += size;
    }
}

// To nearest, within a signed byte.
COMMPRESS_HD int64_t ecsq_mean(int64_t total, int64_t count) {
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
