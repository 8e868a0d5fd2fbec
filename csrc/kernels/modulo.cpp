// Chooses a code path at run time, and validates payloads.
#include "modulo_kernels.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                                                      \
  namespace path {                                                                                                   \
  void modulo_encode(const Modulo&, const Key&, int64_t, const float*, int64_t, float, uint8_t*);                    \
  void modulo_decode(const Modulo&, const Key&, int64_t, const uint8_t*, const float*, int64_t, float*, bool, float, \
                     float);                                                                                         \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#endif

void modulo_encode(const Modulo& code, const Key& key, int64_t offset, const float* x, int64_t numel, float gain,
                   uint8_t* out, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::modulo_encode(code, key, offset, x, numel, gain, out);
  if (isa == Isa::AVX2) return path_avx2::modulo_encode(code, key, offset, x, numel, gain, out);
#endif
  static_cast<void>(isa);
  path_plain::modulo_encode(code, key, offset, x, numel, gain, out);
}

void modulo_decode(const Modulo& code, const Key& key, int64_t offset, const uint8_t* in, const float* side,
                   int64_t numel, float* out, bool accumulate, float gain, float beta, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512)
    return path_avx512::modulo_decode(code, key, offset, in, side, numel, out, accumulate, gain, beta);
  if (isa == Isa::AVX2)
    return path_avx2::modulo_decode(code, key, offset, in, side, numel, out, accumulate, gain, beta);
#endif
  static_cast<void>(isa);
  path_plain::modulo_decode(code, key, offset, in, side, numel, out, accumulate, gain, beta);
}

int64_t invalid_block(const Modulo& code, const uint8_t* in, int64_t numel) {
  for (int64_t i = 0; i < numel; i += BLOCK) {
    uint32_t scale;
    memcpy(&scale, in, 4);
    if (!modulo_scale_valid(scale)) return i / BLOCK;
    in += payload_nbytes(code, numel - i < BLOCK ? numel - i : BLOCK);
  }
  return -1;
}

}  // namespace commpress
