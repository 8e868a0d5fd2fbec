// The codebooks of the bitshift trellis, its choice of a code path, and a look at a payload's scales.
#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "bitshift_codec.h"
#include "gauss_table.h"

namespace commpress {

#define COMMPRESS_DECLARE(path)                                                   \
  namespace path {                                                                \
  void encode(const TrellisPayload&, const float*, float, uint8_t*);              \
  void decode(const TrellisPayload&, const uint8_t*, float*, bool, float, float); \
  }
COMMPRESS_DECLARE(path_plain)
#if defined(COMMPRESS_X86)
COMMPRESS_DECLARE(path_avx2)
COMMPRESS_DECLARE(path_avx512)
#endif

void encode(const TrellisPayload& payload, const float* x, float gain, uint8_t* out, Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::encode(payload, x, gain, out);
  if (isa == Isa::AVX2) return path_avx2::encode(payload, x, gain, out);
#endif
  path_plain::encode(payload, x, gain, out);
}

void decode(const TrellisPayload& payload, const uint8_t* in, float* out, bool accumulate, float gain, float beta,
            Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::decode(payload, in, out, accumulate, gain, beta);
  if (isa == Isa::AVX2) return path_avx2::decode(payload, in, out, accumulate, gain, beta);
#endif
  path_plain::decode(payload, in, out, accumulate, gain, beta);
}

Findings inspect(const TrellisPayload& p, const uint8_t* in) {
  const Trellis& t = p.trellis;
  Findings found{-1, false};
  trellis_pieces(t, p.numel, [&](int64_t first, int64_t n) {
    bool valid;
    if (n < SMALLEST_PIECE) {
      const Findings rest = inspect(Payload{trellis_rest(t), p.key, p.offset + first, n}, in);
      valid = rest.invalid_block < 0;
      found.non_finite = found.non_finite || rest.non_finite;
    } else {
      uint32_t scale;
      memcpy(&scale, in, 4);
      in += trellis_piece_nbytes(t, n);
      valid = scale32_valid(scale) && (t.rotated || scale == SCALE32_NON_FINITE || !(scale & SCALE32_TWO_ROTATIONS));
      found.non_finite = found.non_finite || scale == SCALE32_NON_FINITE;
    }
    if (!valid && found.invalid_block < 0) found.invalid_block = first / BLOCK;
  });
  return found;
}

Aligned aligned_floats(int64_t count) {
  void* p = std::aligned_alloc(64, (static_cast<size_t>(count) * 4 + 63) / 64 * 64);
  if (p == nullptr) throw std::bad_alloc();
  return Aligned(static_cast<float*>(p));
}

namespace {

Codebook make_codebook(const Trellis& t) {
  const int64_t rows = int64_t{1} << (t.length - 2), values = t.values;
  std::vector<int32_t> integers(rows * values);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t v = 0; v < values; ++v) {
      const uint32_t word = codebook_word(t.values, static_cast<uint32_t>(row), static_cast<int>(v));
      const auto magnitude = std::upper_bound(std::begin(GAUSS_COUNT), std::end(GAUSS_COUNT), word & 0x7FFFu);
      const int32_t m = static_cast<int32_t>(magnitude - std::begin(GAUSS_COUNT));
      integers[row * values + v] = word & 0x8000u ? -m : m;
    }
  Codebook book{aligned_floats(rows * values), aligned_floats(rows * (values + 1))};
  for (int64_t i = 0; i < rows * values; ++i) book.levels.get()[i] = static_cast<float>(integers[i]) * CODEBOOK_UNIT;
  const int half = t.bits - 1, middle = t.length - 2 * t.bits;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t oldest = row & ((1 << half) - 1), a = row >> half & ((1 << middle) - 1),
                  newest = row >> (half + middle);
    const int64_t place = (((a / 16) << half | newest) << half | oldest) * (values + 1);
    int64_t square = 0;
    for (int64_t v = 0; v < values; ++v) {
      const int64_t g = integers[row * values + v];
      square += g * g;
      book.search.get()[(place + v) * 16 + a % 16] = book.levels.get()[row * values + v];
    }
    book.search.get()[(place + values) * 16 + a % 16] =
        static_cast<float>(square) * (CODEBOOK_UNIT * CODEBOOK_UNIT / 2);
  }
  return book;
}

}  // namespace

const Codebook& codebook_of(const Trellis& t) {
  constexpr size_t RATES = sizeof(TRELLIS_RATES) / sizeof(TRELLIS_RATES[0]),
                   LENGTHS = TRELLIS_LONGEST - TRELLIS_SHORTEST + 1;
  static std::once_flag made[RATES][LENGTHS];
  static Codebook books[RATES][LENGTHS];
  size_t rate = 0;
  while (TRELLIS_RATES[rate].bits != t.bits || TRELLIS_RATES[rate].values != t.values) ++rate;
  const size_t length = static_cast<size_t>(t.length - TRELLIS_SHORTEST);
  std::call_once(made[rate][length], [&] { books[rate][length] = make_codebook(t); });
  return books[rate][length];
}

}  // namespace commpress
