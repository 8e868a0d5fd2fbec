// The loops over blocks in AVX2; the ends of odd blocks and the coders of short segments are the shared ones.
#define COMMPRESS_ISA path_avx2
#include "lanes_avx2.h"
// The lanes come first.
#include "ecsq_count_avx2.h"
#include "ecsq_loops.h"
#include "entropy_avx2.h"

namespace commpress {
namespace COMMPRESS_ISA {

// ecsq_choose() of the first n, a multiple of 16.
template <class Table, bool DITHER, bool RAW>
static void choose(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t n, int64_t index, uint32_t* entries,
                   uint32_t* lows, std::vector<EcsqEscape>& escapes) {
  constexpr bool SUMS = !DITHER && !RAW;
  const Rounding r(c.quantiser);
  const Table table(c.entry[0]);
  const __m256i largest = _mm256_set1_epi32(c.largest), centre = _mm256_set1_epi32(32),
                low_mask = _mm256_set1_epi32((1 << c.quantiser.raw) - 1);
  const __m256 unit = _mm256_set1_ps(256.0f);
  // Sums of products of 16 bits: a block's fit in 32, and its numbers in 16.
  const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi16(1), two = _mm256_set1_epi16(2);
  __m256i squares = zero, w1 = zero, w2 = zero, w3 = zero, x3 = zero, n1 = zero, n2 = zero, n3 = zero, q3 = zero;
  for (int64_t i = 0; i < n; i += 16) {
    prefetch_line(x + i - 2 * ECSQ_BLOCK);  // blocks come backwards
    __m256i sizes[2], fine[2];
    each<2>([&](auto half) __attribute__((always_inline)) {
      const int64_t at = i + 8 * half;
      const __m256 v = r.steps(x + at);
      const __m256i wi = DITHER ? load_eight(w + at) : zero;
      __m256i q = r.value<DITHER>(v, wi);
      const __m256i high = RAW ? r.high(q) : q, size = _mm256_abs_epi32(high);
      const __m256i escaped = _mm256_cmpgt_epi32(size, largest);
      __m256i symbol = _mm256_add_epi32(centre, DITHER && !RAW ? folded(high, wi) : high);
      sizes[half] = size;
      if constexpr (SUMS) fine[half] = _mm256_cvtps_epi32(_mm256_mul_ps(magnitude(v), unit));
      const unsigned set = lanes_of(escaped);
      if (__builtin_expect(set, 0)) {
        symbol = _mm256_blendv_epi8(symbol, _mm256_set1_epi32(Table::ESCAPE), escaped);
        q = _mm256_andnot_si256(escaped, q);
        sizes[half] = _mm256_andnot_si256(escaped, size);
        if constexpr (SUMS) fine[half] = _mm256_andnot_si256(escaped, fine[half]);
        alignas(32) float values[8];
        _mm256_store_ps(values, v);
        for (int lane = 0; lane < 8; ++lane)
          if (set >> lane & 1) escapes.push_back(ecsq_escape(index + at + lane, values[lane]));
      }
      if constexpr (DITHER && !RAW) symbol = _mm256_or_si256(symbol, _mm256_slli_epi32(cell_of(wi), 6));
      store_eight(entries + at, table[symbol]);
      if constexpr (RAW) store_eight(lows + at, _mm256_and_si256(_mm256_add_epi32(q, r.half), low_mask));
    });
    if constexpr (SUMS) {
      const __m256i a = _mm256_packs_epi32(sizes[0], sizes[1]), f = _mm256_packs_epi32(fine[0], fine[1]);
      const __m256i is1 = _mm256_cmpeq_epi16(a, one), is2 = _mm256_cmpeq_epi16(a, two),
                    is3 = _mm256_cmpgt_epi16(a, two);
      const __m256i further = _mm256_and_si256(a, is3);
      squares = _mm256_add_epi32(squares, _mm256_madd_epi16(f, f));
      w1 = _mm256_sub_epi32(w1, _mm256_madd_epi16(f, is1));
      w2 = _mm256_sub_epi32(w2, _mm256_madd_epi16(f, is2));
      w3 = _mm256_sub_epi32(w3, _mm256_madd_epi16(f, is3));
      x3 = _mm256_add_epi32(x3, _mm256_madd_epi16(f, further));
      n1 = _mm256_sub_epi16(n1, is1);
      n2 = _mm256_sub_epi16(n2, is2);
      n3 = _mm256_sub_epi16(n3, is3);
      q3 = _mm256_add_epi16(q3, further);
    }
  }
  if constexpr (SUMS) {
    c.squares += sum_words(squares);
    c.w1 += sum_words(w1);
    c.w2 += sum_words(w2);
    c.w3 += sum_words(w3);
    c.x3 += sum_words(x3);
    c.n1 += sum_words(_mm256_madd_epi16(n1, one));
    c.n2 += sum_words(_mm256_madd_epi16(n2, one));
    c.n3 += sum_words(_mm256_madd_epi16(n3, one));
    c.q3 += sum_words(_mm256_madd_epi16(q3, one));
  }
}

// pack_string() of a multiple of 16 codes with up to 16 bits. Eight codes are `bits` bytes.
static void pack_low(const uint32_t* codes, int64_t n, int bits, uint8_t* out) {
  const __m128i twice = _mm_cvtsi32_si128(2 * bits), down = _mm_cvtsi32_si128(32 - bits);
  const __m256i pair_mask = _mm256_set1_epi64x((int64_t{1} << 2 * bits) - 1);
  uint8_t bytes[2 * ECSQ_BLOCK + 16];
  uint8_t* to = bytes;
  for (int64_t i = 0; i < n; i += 8, to += bits) {
    const __m256i x = load_eight(codes + i);
    const __m256i pairs = _mm256_and_si256(_mm256_or_si256(x, _mm256_srl_epi64(x, down)), pair_mask);
    const __m256i fours = _mm256_or_si256(pairs, _mm256_sll_epi64(_mm256_unpackhi_epi64(pairs, pairs), twice));
    const uint64_t first = static_cast<uint64_t>(_mm256_extract_epi64(fours, 0)),
                   second = static_cast<uint64_t>(_mm256_extract_epi64(fours, 2));
    memcpy(to, &first, 8);
    const uint64_t rest = bits % 2 ? first >> (4 * bits - 4) | second << 4 : second;
    memcpy(to + bits / 2, &rest, 8);
  }
  memcpy(out, bytes, n * bits / 8);
}

// ecsq_put() of a whole block to 32 coders.
static uint8_t* put_whole(const uint32_t* entries, uint32_t* states, uint8_t* out) {
  __m256i state[4];
  for (int g = 0; g < 4; ++g) state[g] = load_eight(states + 8 * g);
  for (int64_t row = ECSQ_BLOCK - 32; row >= 0; row -= 32)
    each<4>([&](auto turn) __attribute__((always_inline)) {
      constexpr int g = 3 - decltype(turn)::value;
      const __m256i entry = load_eight(entries + row + 8 * g);
      state[g] =
          put_symbols(state[g], _mm256_and_si256(entry, _mm256_set1_epi32(0xFFFF)), _mm256_srli_epi32(entry, 16), out);
    });
  for (int g = 0; g < 4; ++g) store_eight(states + 8 * g, state[g]);
  return out;
}

static uint8_t* encode_vector(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t n, int64_t index,
                              uint32_t* states, int lanes, uint8_t* out, uint8_t* low,
                              std::vector<EcsqEscape>& escapes) {
  alignas(32) uint32_t entries[ECSQ_BLOCK], lows[ECSQ_BLOCK];
  const int64_t whole = n & ~int64_t{15};
  const auto chosen = c.quantiser.dither
                          ? c.quantiser.raw ? choose<WideTable, true, true> : choose<WideTable, true, false>
                      : c.quantiser.raw ? choose<WideTable, false, true>
                      : c.largest < 8   ? choose<ShortTable, false, false>
                                        : choose<WideTable, false, false>;
  chosen(c, x, w, whole, index, entries, lows, escapes);
  ecsq_choose(c, x, w, whole, n, index, entries, lows, escapes);
  const int raw = c.quantiser.raw;
  if (raw && raw <= 16 && n % 16 == 0)
    pack_low(lows, n, raw, low);
  else if (raw)
    pack_string(lows, n, raw, low);
  if (c.empty) return out;
  return lanes == 32 && n == ECSQ_BLOCK ? put_whole(entries, states, out) : ecsq_put(entries, n, states, lanes, out);
}

// Calls f(first coordinate, states, in) for the groups of eight coordinates of a block, four of them side by side.
template <class F>
static COMMPRESS_INLINE void over_groups(EcsqStream& stream, F&& f) {
  __m256i state[4];
  for (int g = 0; g < 4; ++g) state[g] = load_eight(stream.states + 8 * g);
  const uint8_t* in = stream.in;
  for (int row = 0; row < ECSQ_BLOCK; row += 32)
    each<4>([&](auto g) __attribute__((always_inline)) { f(row + 8 * g, state[g], in); });
  for (int g = 0; g < 4; ++g) store_eight(stream.states + 8 * g, state[g]);
  stream.in = in;
}

static COMMPRESS_INLINE void note_escapes(__m256i symbol, int i, std::vector<int32_t>& escapes) {
  const unsigned escaped = lanes_of(_mm256_cmpeq_epi32(symbol, _mm256_setzero_si256()));
  if (__builtin_expect(escaped, 0))
    for (int lane = 0; lane < 8; ++lane)
      if (escaped >> lane & 1) escapes.push_back(i + lane);
}

// A block whose symbols have values.
template <class Table>
static void decode_whole(const EcsqClassDecoder& c, EcsqStream& stream, float* z, std::vector<int32_t>& escapes) {
  const Table values(c.values);
  const __m256i slot_mask = _mm256_set1_epi32(entropy::TOTAL - 1);
  over_groups(stream, [&](int i, __m256i& s, const uint8_t*& in) __attribute__((always_inline)) {
    const __m256i slot = look_up(c.slots.data(), _mm256_and_si256(s, slot_mask)), symbol = _mm256_srli_epi32(slot, 24);
    s = advance_states(s, slot, in);
    store_eight(z + i, values[symbol]);
    note_escapes(symbol, i, escapes);
  });
}

// The symbols of a block; `symbols` is 32 everywhere where none are sent.
template <bool DITHER>
static void read_symbols(const EcsqClassDecoder& c, EcsqStream& stream, const int32_t* w, uint32_t* symbols,
                         std::vector<int32_t>& escapes) {
  const __m256i slot_mask = _mm256_set1_epi32(entropy::TOTAL - 1);
  over_groups(stream, [&](int i, __m256i& s, const uint8_t*& in) __attribute__((always_inline)) {
    __m256i place = _mm256_and_si256(s, slot_mask);
    if constexpr (DITHER)
      place = _mm256_or_si256(place, _mm256_slli_epi32(cell_of(load_eight(w + i)), entropy::PRECISION));
    const __m256i slot = look_up(c.slots.data(), place), symbol = _mm256_srli_epi32(slot, 24);
    s = advance_states(s, slot, in);
    store_eight(symbols + i, symbol);
    note_escapes(symbol, i, escapes);
  });
}

// Eight codes of `bits` <= 17 bits at a time, which are `bits` bytes. Up to sixteen bytes behind the last are read.
struct LowBits {
  __m256i order, shift, mask;
  int second;  // where the fifth begins
  explicit LowBits(int bits) : mask(_mm256_set1_epi32((1 << bits) - 1)), second(4 * bits >> 3) {
    alignas(32) uint8_t bytes[32];
    alignas(32) int32_t shifts[8];
    for (int k = 0; k < 8; ++k) {
      const int at = k < 4 ? k * bits : (4 * bits & 7) + (k - 4) * bits;
      for (int i = 0; i < 4; ++i) bytes[4 * k + i] = static_cast<uint8_t>((at >> 3) + i);
      shifts[k] = at & 7;
    }
    order = load_eight(bytes);
    shift = load_eight(shifts);
  }
  __m256i operator()(const uint8_t* in) const {
    const __m256i bytes =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in))),
                                _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + second)), 1);
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, order), shift), mask);
  }
};

// Of symbols: values in steps.
template <bool DITHER, bool RAW>
static void values_of(const EcsqClassDecoder& c, const uint32_t* symbols, const int32_t* w, const uint8_t* low,
                      float* z) {
  const LowBits lows(c.raw);
  const __m256i half = _mm256_set1_epi32(1 << c.raw >> 1);
  const __m128i raw = _mm_cvtsi32_si128(c.raw);
  for (int i = 0; i < ECSQ_BLOCK; i += 8) {
    const __m256i wi = DITHER ? load_eight(w + i) : _mm256_setzero_si256();
    __m256i q = _mm256_sub_epi32(load_eight(symbols + i), _mm256_set1_epi32(32));
    if constexpr (DITHER && !RAW) q = folded(q, wi);
    if constexpr (RAW)
      q = _mm256_sub_epi32(_mm256_add_epi32(_mm256_sll_epi32(q, raw), lows(low + c.raw * (i / 8))), half);
    __m256 v = _mm256_cvtepi32_ps(q);
    if constexpr (DITHER) v = _mm256_sub_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(wi), _mm256_set1_ps(0x1p-24f)));
    _mm256_storeu_ps(z + i, v);
  }
}

static void decode_vector(const EcsqClassDecoder& c, EcsqStream& stream, const int32_t* w, const uint8_t* low,
                          int64_t n, float* z, std::vector<int32_t>& escapes) {
  // A block takes at most 1024 bytes; words past the end of the stream are for the other loop. Behind packed low bits
  // are the states of 32 coders.
  if (n != ECSQ_BLOCK || stream.lanes != 32 || stream.end - stream.in < 1024 + 32 || (c.empty && !c.dither && !c.raw))
    return ecsq_decode_block(c, stream, w, low, n, z, escapes);
  if (!c.dither && !c.raw)
    return c.largest < 8 ? decode_whole<ShortTable>(c, stream, z, escapes)
                         : decode_whole<WideTable>(c, stream, z, escapes);
  alignas(32) uint32_t symbols[ECSQ_BLOCK];
  if (c.empty)
    std::fill(symbols, symbols + ECSQ_BLOCK, 32u);
  else if (c.folded)
    read_symbols<true>(c, stream, w, symbols, escapes);
  else
    read_symbols<false>(c, stream, w, symbols, escapes);
  with_kind(c, [&](auto dither, auto raw) { values_of<dither, raw>(c, symbols, w, low, z); });
}

extern const EcsqKernels ECSQ_KERNELS;
const EcsqKernels ECSQ_KERNELS = {ecsq_statistics, count_vector,    settle_vector,      encode_vector,
                                  decode_vector,   ecsq_dither,     ecsq_rotate,        ecsq_scale,
                                  ecsq_stream,     ecsq_accumulate, ecsq_finish_stream, ecsq_unrotate};

}  // namespace COMMPRESS_ISA
}  // namespace commpress
