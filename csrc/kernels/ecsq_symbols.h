// The symbol of one coordinate of an entropy-coded quantiser, on the host and on a device.
#pragma once
#include "ecsq_format.h"
#include "ecsq_kernels.h"

namespace commpress {

// Of a class that is `relative` above the step 2^(j / 2048), in 1/2048 octave.
COMMPRESS_HD EcsqQuantiser ecsq_quantiser(float gain, int64_t relative, int64_t j, bool dither) {
  return {gain, static_cast<float>(1.0 / entropy::step_of(j)),
          static_cast<float>(static_cast<double>(entropy::dead_zone(relative)) / 65536), entropy::raw_bits(relative),
          dither};
}

// The value of a coordinate in steps, with all its bits.
COMMPRESS_HD int32_t ecsq_value(const EcsqQuantiser& c, float v, int32_t w) {
  if (c.dither) {
    float m = v + static_cast<float>(w) * 0x1p-24f;
    m = m < -ECSQ_MOST ? -ECSQ_MOST : m > ECSQ_MOST ? ECSQ_MOST : m;
    return round_to_int(m);
  }
  const float a = float_of(bits_of(v) & 0x7FFFFFFFu) + c.offset;
  const int32_t q = static_cast<int32_t>(a < ECSQ_MOST ? a : ECSQ_MOST);
  return v < 0 ? -q : q;
}

COMMPRESS_HD int ecsq_cell(int32_t w) {
  const int cell = (w < 0 ? -w : w) >> 20;
  return cell < entropy::CELLS ? cell : entropy::CELLS - 1;
}

COMMPRESS_HD int32_t ecsq_high(int32_t q, int raw) { return (q + (1 << raw >> 1)) >> raw; }

// The low bits, as they are sent.
COMMPRESS_HD uint32_t ecsq_low(int32_t q, int raw) {
  return static_cast<uint32_t>(q + (1 << raw >> 1)) & ((1u << raw) - 1);
}

// What is sent of a value without a symbol.
COMMPRESS_HD float ecsq_kept(float v) {
  return v < -ECSQ_FARTHEST ? -ECSQ_FARTHEST : v > ECSQ_FARTHEST ? ECSQ_FARTHEST : v;
}
COMMPRESS_HD EcsqEscape ecsq_escape(int64_t index, float v) { return {index, ecsq_kept(v)}; }

}  // namespace commpress
