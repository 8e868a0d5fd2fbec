// Chooses a code path at run time.
#include <algorithm>
#include <limits>

#include "kernels.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                            \
  namespace path {                                                         \
  void encode(const Payload&, const float*, float, uint8_t*);              \
  void decode(const Payload&, const uint8_t*, float*, bool, float, float); \
  bool move_block(const float*, int64_t, float*, bool);                    \
  void add_products(const float*, const float*, int64_t, double*);         \
  void add_products(const double*, const double*, int64_t, double*);       \
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
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
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

bool move_block(const float* x, int64_t n, float* out, bool past_caches, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX2) return path_avx2::move_block(x, n, out, past_caches);
  if (isa == Isa::AVX512) return path_avx512::move_block(x, n, out, past_caches);
#endif
  return path_plain::move_block(x, n, out, past_caches);
}

template <class Real>
static void choose_products(const Real* x, const Real* y, int64_t n, double* to, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX2) return path_avx2::add_products(x, y, n, to);
  if (isa == Isa::AVX512) return path_avx512::add_products(x, y, n, to);
#endif
  path_plain::add_products(x, y, n, to);
}

void add_products(const float* x, const float* y, int64_t n, double* to, Isa isa) { choose_products(x, y, n, to, isa); }

void add_products(const double* x, const double* y, int64_t n, double* to, Isa isa) {
  choose_products(x, y, n, to, isa);
}

namespace {

// Walks over the scales of one block.
struct Inspector {
  const Codec& codec;
  const uint8_t* in;
  bool valid = true, non_finite = false;

  int64_t sent(int64_t index, int64_t n) const {
    return below_one_bit(codec.rate) ? selected(codec.rate, index, n) : n;
  }

  // Positions ascend and lie in the group, values are finite and not zero.
  bool list_valid(int64_t count, int64_t n, int64_t nbytes) const {
    if (count < 1 || count * LIST_ENTRY_NBYTES > nbytes) return false;
    int64_t last = -1;
    for (int64_t e = 0; e < count; ++e) {
      uint16_t position;
      uint32_t value;
      memcpy(&position, in + 2 + LIST_ENTRY_NBYTES * e, 2);
      memcpy(&value, in + 4 + LIST_ENTRY_NBYTES * e, 4);
      if (position <= last || position >= n || (value & 0x7FFFFFFFu) - 1 >= SCALE32_INFINITY - 1) return false;
      last = position;
    }
    return true;
  }

  void uniform(int64_t index, int64_t n) {
    for (int64_t i = 0; i < n; i += GROUP) {
      uint16_t scale;
      memcpy(&scale, in, 2);
      const int64_t n_here = n - i < GROUP ? n - i : GROUP;
      valid = valid && (scale16_valid(scale) || list_valid(scale - SCALE16_LIST, n_here,
                                                           packed_nbytes(n_here, group_bits(codec.rate, index + i))));
      non_finite = non_finite || scale == SCALE16_NON_FINITE;
      in += run_nbytes(codec.rate, index + i, n - i < GROUP ? n - i : GROUP, 2);
    }
  }

  void lloyd(int64_t index, int64_t n, bool rotated) {
    uint32_t scale;
    memcpy(&scale, in, 4);
    valid =
        valid && scale32_valid(scale) && (rotated || scale == SCALE32_NON_FINITE || !(scale & SCALE32_TWO_ROTATIONS));
    non_finite = non_finite || scale == SCALE32_NON_FINITE;
    in += 4 + run_nbytes(codec.rate, index, n, 0);
  }

  void cast(int64_t n) { non_finite |= largest_magnitude<int16_t>(n) >= (codec.family == CAST_FP16 ? 0x7C00 : 0x7F80); }

  void raw(int64_t n) { non_finite |= largest_magnitude<int32_t>(n) >= static_cast<int32_t>(SCALE32_INFINITY); }

  // The largest of n floats of any width without their signs, as integers. Runs of a fixed length become vector code.
  template <class T>
  T largest_magnitude(int64_t n) {
    constexpr int64_t RUN = 128;
    constexpr T MASK = std::numeric_limits<T>::max();
    T values[RUN], most = 0;
    for (int64_t i = 0; i < n; i += RUN) {
      const int64_t here = std::min(RUN, n - i);
      if (here < RUN) memset(values, 0, sizeof values);
      memcpy(values, in, sizeof(T) * here);
      in += sizeof(T) * here;
      for (int64_t k = 0; k < RUN; ++k) most = std::max(most, static_cast<T>(values[k] & MASK));
    }
    return most;
  }

  void block(int64_t index, int64_t n) {
    if (codec.family == RAW) return raw(n);
    if (codec.family <= CAST_BF16) return cast(n);
    if (codec.family == UNIFORM) return uniform(index, sent(index, n));
    if (codec.family == LLOYD) return lloyd(index, sent(index, n), false);
    if (n == BLOCK) return lloyd(index, sent(index, n), true);
    for (int64_t size = BLOCK / 2; size >= SMALLEST_ROTATION; size /= 2) {
      if (!(n & size)) continue;
      lloyd(index, sent(index, size), true);
      index += size;
    }
    const int64_t rest = n % SMALLEST_ROTATION;
    if (rest == 0) return;
    if (codec.centroid)
      lloyd(index, sent(index, rest), false);
    else
      uniform(index, sent(index, rest));
  }
};

}  // namespace

Findings inspect(const Payload& p, const uint8_t* in) {
  Inspector inspector{p.codec, in};
  for (int64_t i = 0; i < p.numel; i += BLOCK) {
    inspector.block(p.offset + i, p.numel - i < BLOCK ? p.numel - i : BLOCK);
    if (!inspector.valid) return {i / BLOCK, inspector.non_finite};
  }
  return {-1, inspector.non_finite};
}

}  // namespace commpress
