// Trellis-coded quantisation for an entropy coder: the union quantiser, the code, and the choice of indices, in floats.
// tools/make_trellis_tables.py uses it; the encoder of `trellis` has its own search, in whole numbers (ectcq_search.h).
//
// Two scalar quantisers with step 2 (in units of the step) share the line: the even integers, and the odd ones with
// zero. Index k of quantiser q stands for 2|k| - q (0 for k = 0), with k's sign. A state machine picks the quantiser by
// its lowest bit and moves by the parity of k: Ungerboeck's systematic feedback codes ("Channel coding with
// multilevel/phase signals", 1982), as in ECTCQ (Fischer and Wang, 1992) and, with zero in both quantisers, in VVC's
// dependent quantisation.
#pragma once
#include "kernels.h"

namespace commpress {

constexpr int TCQ_STATES = 8;
constexpr int TCQ_PARITY_0 = 013, TCQ_PARITY_1 = 04;  // parity-check polynomials of the code
constexpr int TCQ_INDICES = 64;                       // |k| < TCQ_INDICES

COMMPRESS_HD int tcq_next(int state, int parity) {
  return state >> 1 ^ (state & 1 ? TCQ_PARITY_0 >> 1 : 0) ^ (parity ? TCQ_PARITY_1 >> 1 : 0);
}

// |k| of quantiser q and the given parity that is nearest to the magnitude a.
COMMPRESS_HD int tcq_nearest(float a, int q, int parity) {
  const float top = 2.0f * TCQ_INDICES - 4, clamped = a < top ? a : top;
  return 2 * round_to_int((clamped + static_cast<float>(q - 2 * parity)) * 0.25f) + parity;
}

// The next one towards zero of the same parity, itself if there is none.
COMMPRESS_HD int tcq_smaller(int k) { return k >= 2 ? k - 2 : k; }

// What the search weighs for each quantiser and |k|: the value that the decoder will write, in units of the step, and
// the price of its bits, in units of the squared step.
struct TcqTables {
  const float* levels;  // [2][TCQ_INDICES]
  const float* prices;
};

// Indices that minimise sum (v - level)^2 + price, for each of `blocks` runs of n values (in units of the step) from
// state 0 on.
void tcq_quantise(const float* v, int64_t blocks, int64_t n, const TcqTables& tables, int16_t* indices, Isa isa);

// Levels of any indices; a magnitude beyond the table counts as its last.
void tcq_dequantise(const int16_t* indices, int64_t blocks, int64_t n, const float* levels, float* out);

}  // namespace commpress
