// Trellis and entropy coder in AVX2.
#define COMMPRESS_ISA path_avx2
#include "trellis_words_avx2.h"

// The lanes come first.
#include "ectcq_loops.h"
#include "entropy_avx2.h"

namespace commpress {
namespace COMMPRESS_ISA {

static uint8_t* encode_vector(EctcqClassCoder& c, const EctcqBlock& block, float gain, float inverse, int64_t index,
                              uint32_t* states, uint8_t* out, std::vector<EcsqEscape>& escapes) {
  if (c.empty) return out;
  const __m256i largest = _mm256_set1_epi32(c.largest), farthest = _mm256_set1_epi32(ECTCQ_FARTHEST),
                centre = _mm256_set1_epi32(32), low = _mm256_set1_epi32(0xFFFF);
  const __m256 by = _mm256_set1_ps(gain), over = _mm256_set1_ps(inverse), most = _mm256_set1_ps(64.0f),
               unit = _mm256_set1_ps(256.0f), sign = _mm256_set1_ps(-0.0f);
  __m256i state[4];
  for (int g = 0; g < 4; ++g) state[g] = load_eight(states + 8 * g);
  for (int64_t row = ECSQ_BLOCK - 32; row >= 0; row -= 32)
    each<4>([&](auto turn) __attribute__((always_inline)) {
      constexpr int g = 3 - decltype(turn)::value;
      const int64_t i = row + 8 * g;
      const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(block.x + i), by), over);
      const __m256i w = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_min_ps(_mm256_andnot_ps(sign, v), most), unit));
      const __m256i cell = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.cells + i)));
      const __m256i k = _mm256_and_si256(cell, _mm256_set1_epi32(31));
      const __m256i negative = _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
      const __m256i escaped = _mm256_or_si256(_mm256_cmpgt_epi32(k, largest), _mm256_cmpgt_epi32(w, farthest));
      __m256i symbol = _mm256_add_epi32(centre, _mm256_sub_epi32(_mm256_xor_si256(k, negative), negative));
      const unsigned set = lanes_of(escaped);
      if (__builtin_expect(set, 0)) {
        symbol = _mm256_andnot_si256(escaped, symbol);
        alignas(32) float values[8];
        alignas(32) uint32_t sizes[8];
        _mm256_store_ps(values, v);
        store_eight(sizes, w);
        for (int lane = 8; lane-- > 0;)
          if (set >> lane & 1) {
            escapes.push_back(ectcq_escape(index + i + lane, values[lane], block.cells[i + lane] & 1));
            if (sizes[lane] <= ECTCQ_FARTHEST) c.escaped += static_cast<int64_t>(sizes[lane]) * sizes[lane];
          }
      }
      const __m256i q = _mm256_slli_epi32(_mm256_srli_epi32(cell, 5), 6);
      const __m256i entry = look_up(c.entry, _mm256_or_si256(q, symbol));
      state[g] = put_symbols(state[g], _mm256_and_si256(entry, low), _mm256_srli_epi32(entry, 16), out);
    });
  for (int g = 0; g < 4; ++g) store_eight(states + 8 * g, state[g]);
  return out;
}

template <bool SHORT>
static void decode_whole(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at,
                         const uint8_t* parity, int64_t left, float* z, std::vector<int32_t>& escapes) {
  const __m256i slot_mask = _mm256_set1_epi32(entropy::TOTAL - 1), one = _mm256_set1_epi32(1),
                zero = _mm256_setzero_si256(), feedback = _mm256_set1_epi32(static_cast<int>(code.feedback)),
                odd_moves = _mm256_set1_epi32(static_cast<int>(code.parity));
  const ShortTable even_values(c.values[0]), odd_values(c.values[1]);
  __m256i state[4], chain[4];
  for (int g = 0; g < 4; ++g) {
    state[g] = load_eight(stream.states + 8 * g);
    chain[g] = load_eight(at + 8 * g);
  }
  const uint8_t* in = stream.in;
  for (int row = 0; row < ECSQ_BLOCK; row += 32)
    each<4>([&](auto g) __attribute__((always_inline)) {
      const int i = row + 8 * g;
      const __m256i s = state[g], t = chain[g];
      const __m256i q = _mm256_sub_epi32(zero, _mm256_and_si256(t, one));
      const __m256i place =
          _mm256_or_si256(_mm256_and_si256(s, slot_mask), _mm256_and_si256(q, _mm256_set1_epi32(entropy::TOTAL)));
      const __m256i slot = look_up(c.slots.data(), place);
      const __m256i symbol = _mm256_srli_epi32(slot, 24);
      state[g] = advance_states(s, slot, in);
      if constexpr (SHORT)
        _mm256_storeu_ps(z + i, _mm256_blendv_ps(_mm256_castsi256_ps(even_values[symbol]),
                                                 _mm256_castsi256_ps(odd_values[symbol]), _mm256_castsi256_ps(q)));
      else
        store_eight(z + i, look_up(c.values[0],
                                   _mm256_or_si256(symbol, _mm256_and_si256(q, _mm256_set1_epi32(entropy::SYMBOLS)))));
      __m256i p = _mm256_and_si256(symbol, one);
      const unsigned escaped = lanes_of(_mm256_cmpeq_epi32(symbol, zero));
      if (__builtin_expect(escaped, 0)) {
        alignas(32) uint32_t odd[8];
        store_eight(odd, p);
        for (int lane = 0; lane < 8; ++lane)
          if (escaped >> lane & 1) {
            escapes.push_back(i + lane);
            if (left > 0) odd[lane] = *parity & 1;
            parity += 4;
            --left;
          }
        p = load_eight(odd);
      }
      const __m256i moved = _mm256_xor_si256(_mm256_srli_epi32(t, 1), _mm256_and_si256(q, feedback));
      chain[g] = _mm256_xor_si256(moved, _mm256_and_si256(_mm256_sub_epi32(zero, p), odd_moves));
    });
  for (int g = 0; g < 4; ++g) {
    store_eight(stream.states + 8 * g, state[g]);
    store_eight(at + 8 * g, chain[g]);
  }
  stream.in = in;
}

static void decode_vector(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at,
                          const uint8_t* parity, int64_t left, float* z, std::vector<int32_t>& escapes) {
  // A block takes at most 1024 bytes; words past the end of the stream are for the other loop.
  if (c.empty || stream.end - stream.in < 1024 + 32)
    return ectcq_decode_block(code, c, stream, at, parity, left, z, escapes);
  if (c.largest < 8)
    decode_whole<true>(code, c, stream, at, parity, left, z, escapes);
  else
    decode_whole<false>(code, c, stream, at, parity, left, z, escapes);
}

extern const EctcqKernels ECTCQ_KERNELS;
const EctcqKernels ECTCQ_KERNELS = {ectcq_search, ectcq_count, encode_vector, decode_vector};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
