// Chooses a code path at run time.
#include "kernels.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                           \
  namespace path {                                                                        \
  void encode(const Payload&, const float*, float, uint8_t*);                             \
  void decode(const Payload&, const uint8_t*, float*, bool, float, float);                \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#endif

bool isa_available(Isa isa) {
#if defined(COMMPRESS_X86)
  __builtin_cpu_init();
  if (isa == Isa::AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == Isa::PLAIN;
}

Isa best_isa() {
  static const Isa best = isa_available(Isa::AVX512) ? Isa::AVX512 : isa_available(Isa::AVX2) ? Isa::AVX2 : Isa::PLAIN;
  return best;
}

void encode(const Payload& payload, const float* x, float gain, uint8_t* out, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::encode(payload, x, gain, out);
  if (isa == Isa::AVX2) return path_avx2::encode(payload, x, gain, out);
#endif
  path_plain::encode(payload, x, gain, out);
}

void decode(const Payload& payload, const uint8_t* in, float* out, bool accumulate, float gain, float beta, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::decode(payload, in, out, accumulate, gain, beta);
  if (isa == Isa::AVX2) return path_avx2::decode(payload, in, out, accumulate, gain, beta);
#endif
  path_plain::decode(payload, in, out, accumulate, gain, beta);
}

namespace {

// A run of `uniform` groups; true if every scale is one that an encoder writes. Advances `in`.
bool uniform_scales_valid(const Codec& codec, int64_t index, int64_t n, const uint8_t*& in) {
  for (int64_t i = 0; i < n; i += GROUP) {
    uint16_t scale;
    memcpy(&scale, in, 2);
    if (!scale16_valid(scale)) return false;
    in += run_nbytes(codec.rate, index + i, n - i < GROUP ? n - i : GROUP, 2);
  }
  return true;
}

bool lloyd_scale_valid(const Codec& codec, bool rotated, int64_t index, int64_t n, const uint8_t*& in) {
  uint32_t scale;
  memcpy(&scale, in, 4);
  if (!scale32_valid(scale) || (!rotated && scale != SCALE32_NON_FINITE && (scale & SCALE32_TWO_ROTATIONS))) return false;
  in += 4 + run_nbytes(codec.rate, index, n, 0);
  return true;
}

bool block_valid(const Codec& codec, int64_t index, int64_t n, const uint8_t*& in) {
  const auto sent = [&](int64_t at, int64_t size) { return below_one_bit(codec.rate) ? selected(codec.rate, at, size) : size; };
  if (codec.family == UNIFORM) return uniform_scales_valid(codec, index, sent(index, n), in);
  if (codec.family == LLOYD || n == BLOCK) return lloyd_scale_valid(codec, codec.family != LLOYD, index, sent(index, n), in);
  for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
    if (!(n & size)) continue;
    if (!lloyd_scale_valid(codec, true, index, sent(index, size), in)) return false;
    index += size;
  }
  const int64_t rest = n % SMALLEST_ROTATION;
  if (rest == 0) return true;
  return codec.centroid ? lloyd_scale_valid(codec, false, index, sent(index, rest), in) : uniform_scales_valid(codec, index, sent(index, rest), in);
}

}  // namespace

int64_t first_invalid_block(const Payload& p, const uint8_t* in) {
  if (p.codec.family == CAST_FP16 || p.codec.family == CAST_BF16) return -1;
  for (int64_t i = 0; i < p.numel; i += BLOCK)
    if (!block_valid(p.codec, p.offset + i, p.numel - i < BLOCK ? p.numel - i : BLOCK, in)) return i / BLOCK;
  return -1;
}

}  // namespace commpress
