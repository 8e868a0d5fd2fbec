// Chooses a code path at run time, and validates payloads.
#include "formats_kernels.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                            \
  namespace path {                                                                         \
  void encode(const Format&, const Key&, int64_t, const float*, int64_t, float, uint8_t*); \
  void decode(const Format&, const uint8_t*, float*, int64_t, bool, float, float);         \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#endif

void encode(const Format& format, const Key& key, int64_t offset, const float* x, int64_t numel, float gain,
            uint8_t* out, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::encode(format, key, offset, x, numel, gain, out);
  if (isa == Isa::AVX2) return path_avx2::encode(format, key, offset, x, numel, gain, out);
#endif
  path_plain::encode(format, key, offset, x, numel, gain, out);
}

void decode(const Format& format, const uint8_t* in, float* out, int64_t numel, bool accumulate, float gain, float beta,
            Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::decode(format, in, out, numel, accumulate, gain, beta);
  if (isa == Isa::AVX2) return path_avx2::decode(format, in, out, numel, accumulate, gain, beta);
#endif
  path_plain::decode(format, in, out, numel, accumulate, gain, beta);
}

namespace {

uint32_t word_at(const uint8_t* in) {
  uint32_t u;
  memcpy(&u, in, 4);
  return u;
}

bool scales_valid(const Format& f, const uint8_t* in, int64_t n) {
  const int64_t scales = f.block ? (n + f.block - 1) / f.block : 1;
  bool valid = true;
  switch (f.scheme) {
    case FLOAT: {
      const FloatForm form = float_form(f);
      for (int64_t b = 0; f.block && b < scales; ++b) valid = valid && float_scale_valid(in[b], form);
      return valid;
    }
    case NVFP4:
      for (int64_t b = 0; b < scales; ++b) valid = valid && in[4 + b] <= E4M3_NAN;
      return valid && nvfp4_outer_valid(word_at(in));
    case LEVELS:
      for (int64_t b = 0; b < scales; ++b) valid = valid && step_valid(word_at(in + 4 * b), largest_step(f.levels));
      return valid;
    case SIGN:
      if (f.block == 0) return *in == SCALE8_ZERO || *in == SCALE8_ONE || *in == SCALE8_NON_FINITE;
      for (int64_t b = 0; b < scales; ++b) valid = valid && step_valid(word_at(in + 4 * b), float_of(FLOAT_LARGEST));
      return valid;
    default:
      for (int64_t b = 0; b < 2 * scales; ++b)
        valid = valid && step_valid(word_at(in + 4 * b), float_of(FLOAT_LARGEST));
      for (int64_t b = 0; b < scales; ++b)
        valid = valid && (word_at(in + 8 * b) == SCALE32_NON_FINITE) == (word_at(in + 8 * b + 4) == SCALE32_NON_FINITE);
      return valid;
  }
}

}  // namespace

int64_t invalid_block(const Format& f, const uint8_t* in, int64_t numel) {
  for (int64_t i = 0; i < numel; i += BLOCK) {
    const int64_t n = numel - i < BLOCK ? numel - i : BLOCK, count = codes_nbytes(f, n);
    if (!scales_valid(f, in, n)) return i / BLOCK;
    in += scales_nbytes(f, n);
    if (f.trits) {
      uint8_t largest = 0;
      for (int64_t k = 0; k < count; ++k) largest = in[k] > largest ? in[k] : largest;
      if (largest > TRITS_LARGEST) return i / BLOCK;
    }
    in += count;
  }
  return -1;
}

}  // namespace commpress
