// Trellis and entropy coder in AVX-512.
#define COMMPRESS_ISA path_avx512
#include "trellis_words_avx512.h"

// The lanes come first.
#include "ectcq_loops.h"
#include "entropy_avx512.h"

namespace commpress {
namespace COMMPRESS_ISA {

static uint8_t* encode_vector(EctcqClassCoder& c, const EctcqBlock& block, float gain, float inverse, int64_t index,
                              uint32_t* states, uint8_t* out, std::vector<EcsqEscape>& escapes) {
  if (c.empty) return out;
  const __m512i largest = _mm512_set1_epi32(c.largest), farthest = _mm512_set1_epi32(ECTCQ_FARTHEST),
                centre = _mm512_set1_epi32(32), low = _mm512_set1_epi32(0xFFFF);
  __m512i state[2] = {_mm512_loadu_si512(states), _mm512_loadu_si512(states + 16)};
  for (int64_t i = ECSQ_BLOCK - 16; i >= 0; i -= 16) {
    const Floats v = load(block.x + i) * all(gain) * all(inverse);
    const __m512i w = rounded(floats(smaller(bits(absolute(v)), bits(all(64.0f)))) * all(256.0f)).v;
    const __m512i cell = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.cells + i)));
    const __m512i k = _mm512_and_si512(cell, _mm512_set1_epi32(31));
    const __mmask16 negative = _mm512_cmp_ps_mask(v.v, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __mmask16 escaped = _mm512_cmpgt_epi32_mask(k, largest) | _mm512_cmpgt_epi32_mask(w, farthest);
    __m512i symbol = _mm512_mask_sub_epi32(_mm512_add_epi32(centre, k), negative, centre, k);
    if (__builtin_expect(escaped, 0)) {
      symbol = _mm512_maskz_mov_epi32(static_cast<__mmask16>(~escaped), symbol);
      for (int lane = 16; lane-- > 0;)
        if (escaped >> lane & 1) {
          alignas(64) float values[16];
          alignas(64) uint32_t sizes[16];
          store(values, v);
          _mm512_store_si512(sizes, w);
          escapes.push_back(ectcq_escape(index + i + lane, values[lane], block.cells[i + lane] & 1));
          if (sizes[lane] <= ECTCQ_FARTHEST) c.escaped += static_cast<int64_t>(sizes[lane]) * sizes[lane];
        }
    }
    const __m512i q = _mm512_slli_epi32(_mm512_srli_epi32(cell, 5), 6);
    const __m512i entry = _mm512_i32gather_epi32(_mm512_or_si512(q, symbol), c.entry, 4);
    __m512i& s = state[i / 16 % 2];
    s = put_symbols(s, _mm512_and_si512(entry, low), _mm512_srli_epi32(entry, 16), out);
  }
  _mm512_storeu_si512(states, state[0]);
  _mm512_storeu_si512(states + 16, state[1]);
  return out;
}

template <class Table>
static void decode_whole(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at,
                         const uint8_t* parity, int64_t left, float* z, std::vector<int32_t>& escapes) {
  const Table even(c.values[0]), odd(c.values[1]);
  const __m512i slot_mask = _mm512_set1_epi32(entropy::TOTAL - 1), one = _mm512_set1_epi32(1);
  const __m512i feedback = _mm512_set1_epi32(static_cast<int>(code.feedback)),
                odd_moves = _mm512_set1_epi32(static_cast<int>(code.parity));
  const uint32_t* const slots = c.slots.data();
  __m512i state[2] = {_mm512_loadu_si512(stream.states), _mm512_loadu_si512(stream.states + 16)};
  __m512i chain[2] = {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 16)};
  const uint8_t* in = stream.in;
#pragma GCC unroll 2
  for (int i = 0; i < ECSQ_BLOCK; i += 16) {
    const __m512i s = state[i / 16 % 2], t = chain[i / 16 % 2];
    const __mmask16 q = _mm512_test_epi32_mask(t, one);
    const __m512i place = _mm512_and_si512(s, slot_mask);
    const __m512i slot =
        _mm512_i32gather_epi32(_mm512_mask_or_epi32(place, q, place, _mm512_set1_epi32(entropy::TOTAL)), slots, 4);
    const __m512i symbol = _mm512_srli_epi32(slot, 24);
    const __mmask16 escaped = _mm512_testn_epi32_mask(symbol, symbol);
    state[i / 16 % 2] = advance_states(s, slot, in);
    _mm512_storeu_ps(z + i, _mm512_castsi512_ps(_mm512_mask_mov_epi32(even[symbol], q, odd[symbol])));
    __mmask16 odd = _mm512_test_epi32_mask(symbol, one);
    if (__builtin_expect(escaped, 0))
      for (int lane = 0; lane < 16; ++lane)
        if (escaped >> lane & 1) {
          escapes.push_back(i + lane);
          if (left > 0) odd = static_cast<__mmask16>(odd | (*parity & 1u) << lane);  // an escape's symbol is even
          parity += 4;
          --left;
        }
    __m512i moved = _mm512_srli_epi32(t, 1);
    moved = _mm512_mask_xor_epi32(moved, odd, moved, odd_moves);
    chain[i / 16 % 2] = _mm512_mask_xor_epi32(moved, q, moved, feedback);
  }
  _mm512_storeu_si512(stream.states, state[0]);
  _mm512_storeu_si512(stream.states + 16, state[1]);
  _mm512_storeu_si512(at, chain[0]);
  _mm512_storeu_si512(at + 16, chain[1]);
  stream.in = in;
}

static void decode_vector(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at,
                          const uint8_t* parity, int64_t left, float* z, std::vector<int32_t>& escapes) {
  // A block takes at most 1024 bytes; words past the end of the stream are for the other loop.
  if (c.empty || stream.end - stream.in < 1024 + 32)
    return ectcq_decode_block(code, c, stream, at, parity, left, z, escapes);
  if (c.largest < 16)
    decode_whole<NarrowTable>(code, c, stream, at, parity, left, z, escapes);
  else
    decode_whole<WideTable>(code, c, stream, at, parity, left, z, escapes);
}

extern const EctcqKernels ECTCQ_KERNELS;
const EctcqKernels ECTCQ_KERNELS = {ectcq_search, ectcq_count, encode_vector, decode_vector};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
