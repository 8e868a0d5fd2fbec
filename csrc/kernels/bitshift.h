// The bitshift trellis: rates, byte layout, codebook and the value of a codeword. docs/wire-format.md section 4.9 is
// the prose form. Host and device; the vector loops (bitshift_loops.h) compute the same.
//
// A chain of codewords is a circle of bits, k new ones for each codeword of V coordinates; the codeword's state is the
// last L of them, and its values follow from the state, so any codeword can be decoded alone (Tseng, Sun, Hou, De Sa:
// "QTIP: quantization with trellises and incoherence processing", 2024).
#pragma once
#include "philox.h"
#include "wire.h"

namespace commpress {

struct Trellis {
  int32_t bits;    // k: new bits of a codeword, 1..4
  int32_t values;  // V: coordinates of a codeword
  int32_t length;  // L: bits of a state
  bool rotated;    // randomised Hadamard transform first
  bool centroid;   // least-squares instead of unbiased scale (rotated)
  float spread;    // 1 / sqrt(1 - 2^(-2 k / V)): the deviation of a source of which the codebook is the estimate
};

constexpr int TRELLIS_SHORTEST = 8, TRELLIS_LONGEST = 16;
constexpr int64_t TRELLIS_WIDEST = 20;        // most coordinates of a codeword
constexpr int64_t SMALLEST_PIECE = 1024;      // shorter ones are left to the scalar codecs
constexpr int64_t WIDEST_PIECE = 16 * BLOCK;  // most coordinates that share a scale
constexpr int64_t TRELLIS_WARM_UP = 64;       // codewords on either side of a chain's seam that settle its state
// Above this scale a value could pass the largest float; a finite piece decodes to finite values.
constexpr float LARGE_SCALE = 0x1p80f;
constexpr float CODEBOOK_UNIT = 1.0f / 512;
constexpr uint64_t CODEBOOK_SEED = 0x7466696873746962u;  // "bitshift"

// The rates there are.
struct TrellisRate {
  int32_t bits, values;
  float spread;
};
constexpr TrellisRate TRELLIS_RATES[] = {{1, 20, 3.8642886f}, {1, 10, 2.7793927f}, {1, 8, 2.5070329f},
                                         {1, 5, 2.0321941f},  {1, 4, 1.847759f},   {1, 2, 1.4142135f},
                                         {1, 1, 1.1547005f},  {3, 2, 1.069045f},   {2, 1, 1.0327955f},
                                         {3, 1, 1.0079052f},  {4, 1, 1.0019588f}};

// The spread of the rate, without a table that device code would want a copy of.
template <int I = 0>
COMMPRESS_HD float trellis_spread(int bits, int values) {
  constexpr TrellisRate rate = TRELLIS_RATES[I];
  if constexpr (I + 1 < static_cast<int>(sizeof(TRELLIS_RATES) / sizeof(TRELLIS_RATES[0]))) {
    if (rate.bits != bits || rate.values != values) return trellis_spread<I + 1>(bits, values);
  }
  return rate.spread;
}

// Coordinates that share a scale and, where it is rotated, a rotation. Wide below one bit, where a scale counts.
COMMPRESS_HD int64_t trellis_span(const Trellis& t) { return t.bits < t.values ? WIDEST_PIECE : 4 * BLOCK; }

// Coordinates of a chain in a piece of n (a power of two): enough for about a thousand codewords.
COMMPRESS_HD int64_t trellis_chain(const Trellis& t, int64_t n) {
  int64_t chain = BLOCK;
  while (chain < n && chain < BLOCK / 4 * t.values) chain *= 2;
  return chain < n ? chain : n;
}

COMMPRESS_HD int64_t trellis_codewords(const Trellis& t, int64_t chain) { return (chain + t.values - 1) / t.values; }

COMMPRESS_HD int64_t trellis_piece_nbytes(const Trellis& t, int64_t n) {
  const int64_t chain = trellis_chain(t, n);
  return 4 + (n / chain * trellis_codewords(t, chain) * t.bits + 7) / 8;
}

// What takes the coordinates that do not fill a piece.
COMMPRESS_HD Codec trellis_rest(const Trellis& t) {
  return {t.rotated ? HADAMARD_LLOYD : LLOYD, static_cast<int32_t>(RATE_ONE * t.bits / t.values), t.centroid};
}

// Calls f(first, n) for the pieces of `numel` coordinates in order: whole spans, then halves, quarters, ... down to
// SMALLEST_PIECE, then what is left (n < SMALLEST_PIECE).
template <class F>
void trellis_pieces(const Trellis& t, int64_t numel, F&& f) {
  const int64_t span = trellis_span(t);
  int64_t first = 0;
  for (int64_t n = span; n >= SMALLEST_PIECE; n /= 2)
    for (; numel - first >= n; first += n) f(first, n);
  if (first < numel) f(first, numel - first);
}

// A payload of `numel` coordinates that begins at index `offset`.
inline int64_t trellis_nbytes(const Trellis& t, int64_t offset, int64_t numel) {
  const int64_t span = trellis_span(t), whole = numel / span;
  int64_t total = whole * trellis_piece_nbytes(t, span);
  trellis_pieces(t, numel % span, [&](int64_t first, int64_t n) {
    total += n >= SMALLEST_PIECE ? trellis_piece_nbytes(t, n)
                                 : block_nbytes(trellis_rest(t), offset + whole * span + first, n);
  });
  return total;
}

// The piece that holds coordinate `at` of a payload; the rest if n < SMALLEST_PIECE. `byte`: where it begins.
struct TrellisPiece {
  int64_t first, n, byte;
};
COMMPRESS_HD TrellisPiece trellis_piece_at(const Trellis& t, int64_t numel, int64_t at) {
  const int64_t span = trellis_span(t), whole = numel / span, nbytes = trellis_piece_nbytes(t, span);
  if (at < whole * span) return {at / span * span, span, at / span * nbytes};
  TrellisPiece piece{whole * span, span / 2, whole * nbytes};
  for (; piece.n >= SMALLEST_PIECE; piece.n /= 2) {
    if (numel - piece.first < piece.n) continue;
    if (at < piece.first + piece.n) return piece;
    piece.first += piece.n;
    piece.byte += trellis_piece_nbytes(t, piece.n);
  }
  return {piece.first, numel - piece.first, piece.byte};
}

// The state whose newest bit is the last before bit `end` of a chain's circle of `count` bits. window(i): at least
// TRELLIS_LONGEST bits from bit i of the chain on, of which those beyond the circle may be anything.
template <class F>
COMMPRESS_HD uint32_t trellis_state(int length, int count, int end, F&& window) {
  const int before = length - end;  // bits of the circle's end that still count
  const uint32_t state =
      before <= 0 ? window(-before) : (window(count - before) & ((1u << before) - 1)) | window(0) << before;
  return state & ((1u << length) - 1);
}

// Codebook row and sign of a state: the outermost bits, the newest and the oldest, decide the sign alone. So the two
// codewords that leave a state with the others equal are each other's negatives, and so are the two that merge.
COMMPRESS_HD uint32_t trellis_row(uint32_t state, int length) { return state >> 1 & ((1u << (length - 2)) - 1); }
COMMPRESS_HD uint32_t trellis_sign(uint32_t state, int length) { return (state ^ state >> (length - 1)) & 1; }

// Levels of a codebook: [row][value].
COMMPRESS_HD int64_t codebook_size(const Trellis& t) { return (int64_t{1} << (t.length - 2)) * t.values; }

// The 16-bit word of value v of a row; bit 15 is the sign, the others the magnitude (gauss_table.h).
COMMPRESS_HD uint32_t codebook_word(int values, uint32_t row, int v) {
  const uint32_t i = row * static_cast<uint32_t>(values) + static_cast<uint32_t>(v);
  const Words4 words = philox(Key{CODEBOOK_SEED, 0, 0, static_cast<uint32_t>(values)}, 0, i / 8);
  return words.w[i % 8 / 2] >> (16 * (i % 2)) & 0xFFFFu;
}

// To 13 significant bits, halves away from zero, so that a product with a codebook value (11 bits) is exact and it does
// not matter whether a machine fuses it with the sum.
COMMPRESS_HD float trellis_target(float v) { return float_of((bits_of(v) + 0x400u) & ~0x7FFu); }

// The bits of a scale, from E, P, Q of docs/wire-format.md 4.9. factor: v = y * factor; gram: c.
COMMPRESS_HD uint32_t trellis_scale(float energy, float factor, float product, float square, float gram, bool centroid,
                                    int exponent, float gain) {
  if (!(product > 0.0f)) return 0;
  const float correlation = divide(product, factor);
  const float ratio = centroid ? divide(correlation, gram * square) : divide(energy, correlation);
  const uint32_t bits = bits_of(scale_by_power(ratio, exponent) * gain);
  return bits < SCALE32_INFINITY ? bits : SCALE32_INFINITY - 1;
}

}  // namespace commpress
