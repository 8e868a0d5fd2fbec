// Chooses a code path at run time, and validates scales.
#include "homomorphic_kernels.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                                                  \
  namespace path {                                                                                               \
  void grid_scales(const Grid&, const float*, int64_t, uint8_t*);                                                \
  void grid_encode(const Grid&, const Key&, uint32_t, int64_t, const float*, int64_t, const uint8_t*, uint8_t*); \
  void grid_add(int, const uint8_t* const*, int64_t, int64_t, uint8_t*);                                         \
  void grid_decode(const Grid&, const Key&, uint32_t, int64_t, int64_t, const uint8_t*, const uint8_t*, int64_t, \
                   float*, bool, float, float);                                                                  \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#define COMMPRESS_CHOOSE(call)                      \
  if (isa == Isa::AVX512) return path_avx512::call; \
  if (isa == Isa::AVX2) return path_avx2::call;     \
  path_plain::call
#else
#define COMMPRESS_CHOOSE(call) \
  static_cast<void>(isa);      \
  path_plain::call
#endif

void grid_scales(const Grid& grid, const float* x, int64_t numel, uint8_t* out, Isa isa) {
  COMMPRESS_CHOOSE(grid_scales(grid, x, numel, out));
}

void grid_encode(const Grid& grid, const Key& key, uint32_t worker, int64_t offset, const float* x, int64_t numel,
                 const uint8_t* scales, uint8_t* out, Isa isa) {
  COMMPRESS_CHOOSE(grid_encode(grid, key, worker, offset, x, numel, scales, out));
}

void grid_add(int bits, const uint8_t* const* in, int64_t workers, int64_t numel, uint8_t* out, Isa isa) {
  COMMPRESS_CHOOSE(grid_add(bits, in, workers, numel, out));
}

void grid_decode(const Grid& grid, const Key& key, uint32_t worker, int64_t workers, int64_t offset, const uint8_t* in,
                 const uint8_t* scales, int64_t numel, float* out, bool accumulate, float gain, float beta, Isa isa) {
  COMMPRESS_CHOOSE(grid_decode(grid, key, worker, workers, offset, in, scales, numel, out, accumulate, gain, beta));
}

int64_t invalid_scale(const uint8_t* scales, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    uint16_t scale;
    memcpy(&scale, scales + 2 * i, 2);
    if (!grid_scale_valid(scale)) return i;
  }
  return -1;
}

}  // namespace commpress
