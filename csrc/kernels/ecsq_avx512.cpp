// The loops over whole blocks in AVX-512, for classes without dither and raw bits; all others are those of AVX2.
#define COMMPRESS_ISA path_avx512
#include "lanes_avx512.h"
// The lanes come first.
#include "ecsq_loops.h"
#include "entropy_avx512.h"

namespace commpress {

namespace path_avx2 {
extern const EcsqKernels ECSQ_KERNELS;
}

namespace COMMPRESS_ISA {

// The loops for everything else.
static const EcsqKernels& others() { return path_avx2::ECSQ_KERNELS; }

// Magnitudes in steps, plus the dead zone's offset.
static COMMPRESS_INLINE __m512 offset_magnitude(__m512 v, __m512 offset) {
  return _mm512_add_ps(_mm512_abs_ps(v), offset);
}

static void count_vector(const EcsqQuantiser& c, const float* x, const int32_t* w, int64_t n, entropy::Counts& counts) {
  if (c.dither || c.raw || n != ECSQ_BLOCK) return others().count(c, x, w, n, counts);
  constexpr int KNOWN = 8;  // counted by comparison: how many reach 1, 2, ... 8
  const __m512 gain = _mm512_set1_ps(c.gain), inverse = _mm512_set1_ps(c.inverse), offset = _mm512_set1_ps(c.offset);
  __m512 largest = _mm512_setzero_ps();
  __m512i reached[KNOWN];
  for (__m512i& r : reached) r = _mm512_setzero_si512();
  const __m512i one = _mm512_set1_epi32(1);
  alignas(64) float m[ECSQ_BLOCK];
  for (int64_t i = 0; i < ECSQ_BLOCK; i += 16) {
    const __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), gain), inverse);
    const __m512 a = offset_magnitude(v, offset);
    _mm512_store_ps(m + i, a);
    largest = _mm512_max_ps(largest, a);
  }
  const float top = _mm512_reduce_max_ps(largest);
  const auto reach = [&](auto most) {
    constexpr int MOST = decltype(most)::value;
    for (int64_t i = 0; i < ECSQ_BLOCK; i += 16) {
      const __m512 a = _mm512_load_ps(m + i);
#pragma GCC unroll 8
      for (int k = 0; k < MOST; ++k) {
        const __mmask16 there = _mm512_cmp_ps_mask(a, _mm512_set1_ps(static_cast<float>(k + 1)), _CMP_GE_OQ);
        reached[k] = _mm512_mask_add_epi32(reached[k], there, reached[k], one);
      }
    }
  };
  if (top >= 2.0f * KNOWN) {  // many different ones
    int32_t met[4][64] = {{0}};
    for (int64_t i = 0; i < ECSQ_BLOCK; ++i) {
      const int32_t q = static_cast<int32_t>(m[i] < 63.0f ? m[i] : 63.0f);
      ++met[i % 4][q];
    }
    for (int k = 0; k < 64; ++k)
      counts.of[0][k <= entropy::LARGEST ? 32 + k : 0] += met[0][k] + met[1][k] + met[2][k] + met[3][k];
    return;
  }
  if (top < 2.0f)
    reach(std::integral_constant<int, 1>{});
  else if (top < 5.0f)
    reach(std::integral_constant<int, 4>{});
  else
    reach(std::integral_constant<int, KNOWN>{});
  int64_t before = ECSQ_BLOCK;
  for (int k = 0; k < KNOWN; ++k) {
    const int64_t here = _mm512_reduce_add_epi32(reached[k]);
    counts.of[0][32 + k] += before - here;
    before = here;
  }
  if (before == 0) return;
  for (int64_t i = 0; i < ECSQ_BLOCK; ++i)
    if (m[i] >= KNOWN) ++counts.of[0][32 + static_cast<int32_t>(m[i])];
}

static int64_t settle_vector(const EcsqQuantiser& least, const EcsqQuantiser& most, const float* x, const int32_t* w,
                             int64_t n, entropy::Counts& counts, float* open, int32_t* open_w) {
  return others().settle(least, most, x, w, n, counts, open, open_w);  // memory is what it waits for
}

template <class Table>
static uint8_t* encode_whole(EcsqClassCoder& c, const float* x, int64_t index, uint32_t* states, uint8_t* out,
                             std::vector<EcsqEscape>& escapes) {
  const EcsqQuantiser& quantiser = c.quantiser;
  const __m512 gain = _mm512_set1_ps(quantiser.gain), inverse = _mm512_set1_ps(quantiser.inverse),
               offset = _mm512_set1_ps(quantiser.offset), most = _mm512_set1_ps(ECSQ_MOST);
  const __m512i one = _mm512_set1_epi32(1), two = _mm512_set1_epi32(2), largest = _mm512_set1_epi32(c.largest),
                low = _mm512_set1_epi32(0xFFFF);
  const Table table(c.entry[0]);
  __m512i state[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  __m512i w1 = _mm512_setzero_si512(), w2 = w1, w3 = w1, q3 = w1, x3 = w1, squares = w1;
  int64_t n1 = 0, n2 = 0, n3 = 0;
  for (int64_t i = ECSQ_BLOCK - 16; i >= 0; i -= 16) {
    const __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), gain), inverse);
    const __m512i q = _mm512_cvttps_epi32(_mm512_min_ps(offset_magnitude(v, offset), most));
    const __mmask16 escaped = _mm512_cmpgt_epi32_mask(q, largest);
    const __mmask16 negative = _mm512_movepi32_mask(_mm512_castps_si512(v));
    const __m512i centre = _mm512_set1_epi32(32);
    __m512i symbol = _mm512_mask_sub_epi32(_mm512_add_epi32(centre, q), negative, centre, q);
    if (__builtin_expect(escaped, 0)) {
      // The table's place of the escape: 0, or 16 in a narrow one.
      symbol = _mm512_mask_set1_epi32(symbol, escaped, std::is_same<Table, NarrowTable>::value ? 16 : 0);
      alignas(64) float values[16];
      _mm512_store_ps(values, v);
      for (int lane = 0; lane < 16; ++lane)
        if (escaped >> lane & 1) {
          const float value = values[lane];
          escapes.push_back({index + i + lane, value < -ECSQ_FARTHEST  ? -ECSQ_FARTHEST
                                               : value > ECSQ_FARTHEST ? ECSQ_FARTHEST
                                                                       : value});
        }
    }
    // Sums for the decoder's placements.
    const __mmask16 is1 = _mm512_cmpeq_epi32_mask(q, one);
    const __mmask16 is2 = _mm512_mask_cmpeq_epi32_mask(static_cast<__mmask16>(~escaped), q, two);
    const __mmask16 is3 = _mm512_mask_cmpgt_epi32_mask(static_cast<__mmask16>(~escaped), q, two);
    const __mmask16 first = is1 & static_cast<__mmask16>(~escaped);
    const __m512i fine = _mm512_maskz_cvtps_epi32(static_cast<__mmask16>(~escaped),
                                                  _mm512_mul_ps(_mm512_abs_ps(v), _mm512_set1_ps(256.0f)));
    squares = _mm512_add_epi32(squares, _mm512_mullo_epi32(fine, fine));
    w1 = _mm512_mask_add_epi32(w1, first, w1, fine);
    w2 = _mm512_mask_add_epi32(w2, is2, w2, fine);
    n1 += __builtin_popcount(first);
    n2 += __builtin_popcount(is2);
    if (is3) {
      n3 += __builtin_popcount(is3);
      w3 = _mm512_mask_add_epi32(w3, is3, w3, fine);
      q3 = _mm512_mask_add_epi32(q3, is3, q3, q);
      x3 = _mm512_mask_add_epi32(x3, is3, x3, _mm512_mullo_epi32(fine, q));
    }
    // Coding.
    const __m512i entry = table[symbol];
    const __m512i frequency = _mm512_and_si512(entry, low), start = _mm512_srli_epi32(entry, 16);
    __m512i& s = state[i / 16 % 2];
    s = put_symbols(s, frequency, start, out);
  }
  _mm512_storeu_si512(states, state[0]);
  _mm512_storeu_si512(states + 16, state[1]);
  c.n1 += n1;
  c.n2 += n2;
  c.n3 += n3;
  c.w1 += _mm512_reduce_add_epi32(w1);
  c.w2 += _mm512_reduce_add_epi32(w2);
  c.w3 += _mm512_reduce_add_epi32(w3);
  c.q3 += _mm512_reduce_add_epi32(q3);
  c.x3 += _mm512_reduce_add_epi32(x3);
  const __m512i wide =
      _mm512_add_epi64(_mm512_and_si512(squares, _mm512_set1_epi64(0xFFFFFFFF)), _mm512_srli_epi64(squares, 32));
  c.squares += _mm512_reduce_add_epi64(wide);
  return out;
}

static uint8_t* encode_vector(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t n, int64_t index,
                              uint32_t* states, int lanes, uint8_t* out, uint8_t* low,
                              std::vector<EcsqEscape>& escapes) {
  if (c.empty || c.quantiser.dither || c.quantiser.raw || n != ECSQ_BLOCK || lanes != 32)
    return others().encode(c, x, w, n, index, states, lanes, out, low, escapes);
  return c.largest < 16 ? encode_whole<NarrowTable>(c, x, index, states, out, escapes)
                        : encode_whole<WideTable>(c, x, index, states, out, escapes);
}

template <class Table>
static void decode_whole(const EcsqClassDecoder& c, EcsqStream& stream, float* z, std::vector<int32_t>& escapes) {
  const Table values(c.values);
  const __m512i slot_mask = _mm512_set1_epi32(entropy::TOTAL - 1);
  const uint32_t* const slots = c.slots.data();
  __m512i state[2] = {_mm512_loadu_si512(stream.states), _mm512_loadu_si512(stream.states + 16)};
  const uint8_t* in = stream.in;
#pragma GCC unroll 2
  for (int i = 0; i < ECSQ_BLOCK; i += 16) {
    const __m512i s = state[i / 16 % 2];
    const __m512i slot = _mm512_i32gather_epi32(_mm512_and_si512(s, slot_mask), slots, 4);
    const __m512i symbol = _mm512_srli_epi32(slot, 24);
    const __mmask16 escaped = _mm512_testn_epi32_mask(symbol, symbol);
    state[i / 16 % 2] = advance_states(s, slot, in);
    _mm512_storeu_ps(z + i, _mm512_castsi512_ps(values[symbol]));
    if (__builtin_expect(escaped, 0))
      for (int lane = 0; lane < 16; ++lane)
        if (escaped >> lane & 1) escapes.push_back(i + lane);
  }
  _mm512_storeu_si512(stream.states, state[0]);
  _mm512_storeu_si512(stream.states + 16, state[1]);
  stream.in = in;
}

static void decode_vector(const EcsqClassDecoder& c, EcsqStream& stream, const int32_t* w, const uint8_t* low,
                          int64_t n, float* z, std::vector<int32_t>& escapes) {
  // A block takes at most 1024 bytes; words past the end of the stream are for the other loop.
  if (c.empty || c.dither || c.raw || n != ECSQ_BLOCK || stream.lanes != 32 || stream.end - stream.in < 1024 + 32)
    return others().decode(c, stream, w, low, n, z, escapes);
  if (c.largest < 16)
    decode_whole<NarrowTable>(c, stream, z, escapes);
  else
    decode_whole<WideTable>(c, stream, z, escapes);
}

extern const EcsqKernels ECSQ_KERNELS;
const EcsqKernels ECSQ_KERNELS = {ecsq_statistics, count_vector,    settle_vector,      encode_vector,
                                  decode_vector,   ecsq_dither,     ecsq_rotate,        ecsq_scale,
                                  ecsq_stream,     ecsq_accumulate, ecsq_finish_stream, ecsq_unrotate};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
