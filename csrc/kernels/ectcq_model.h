// The model of a class of the trellis' blocks: its frequencies, and which fits. On the host and on a device.
#pragma once
#include "ecsq_format.h"
#include "ectcq.h"
#include "entropy_model.h"

namespace commpress {

COMMPRESS_HD int64_t at_least(int64_t x, int64_t limit) { return x < limit ? limit : x; }
COMMPRESS_HD int64_t at_most(int64_t x, int64_t limit) { return x > limit ? limit : x; }

// False where nothing is left or a code is no frequency.
COMMPRESS_HD bool ectcq_frequencies(const EctcqModel& m, int32_t (&out)[2][entropy::SYMBOLS]) {
  for (int q = 0; q < 2; ++q) {
    for (int32_t& f : out[q]) f = 0;
    int32_t left = entropy::TOTAL - m.escape, zero = 0;
    for (int k = 1; k <= m.largest; ++k) {
      const int32_t f = ectcq_frequency(m.codes[q][k]);
      if (f == 0) return false;
      if (k == 1 && m.ample[q]) {
        zero = f;
        left -= f;
      } else {
        out[q][32 + k] = out[q][32 - k] = f;
        left -= 2 * f;
      }
    }
    if (m.ample[q]) {
      if (m.largest == 0 || left < 2) return false;
      out[q][31] = out[q][33] = left / 2;
      zero += left % 2;
    } else {
      zero = left;
    }
    out[q][0] = m.escape;
    out[q][32] = zero;
    if (zero < 1) return false;
  }
  return true;
}

// The code nearest to a frequency below 4096.
COMMPRESS_HD uint8_t ectcq_code_of(int64_t f) {
  if (f < 32) return static_cast<uint8_t>(f);
  int e = 58 - leading_zeros(static_cast<uint64_t>(f));
  int64_t m = (f + (int64_t{1} << e >> 1)) >> e;
  if (m == 64) {
    m = 32;
    ++e;
  }
  return static_cast<uint8_t>((e + 1) << 5 | (m & 31));
}

// What the codes leave of the total, and the frequency of |k| <= largest in a model that fits.
COMMPRESS_HD int32_t ectcq_left(const EctcqModel& m, int q) {
  int32_t left = entropy::TOTAL - m.escape;
  for (int k = 1; k <= m.largest; ++k) left -= (k == 1 && m.ample[q] ? 1 : 2) * ectcq_frequency(m.codes[q][k]);
  return left;
}
COMMPRESS_HD int32_t ectcq_fitted(const EctcqModel& m, int q, int k, int32_t left) {
  if (k > 1) return ectcq_frequency(m.codes[q][k]);
  if (!m.ample[q]) return k ? ectcq_frequency(m.codes[q][1]) : left;
  return k ? left / 2 : ectcq_frequency(m.codes[q][1]) + left % 2;
}

// The codes of quantiser q, of whose coordinates `escaped` have no symbol.
template <class Counts>
COMMPRESS_HD void ectcq_fit_codes(const Counts& counts, int q, int64_t escaped, EctcqModel& m) {
  int64_t total = escaped, left = entropy::TOTAL - m.escape;
  for (int k = 0; k <= m.largest; ++k) total += counts.number(q, k);
  const bool ample = m.largest > 0 && counts.number(q, 0) < counts.number(q, 1);
  m.ample[q] = ample;
  for (int k = 1; k <= m.largest; ++k) {
    const int64_t shares = k == 1 && ample ? 1 : 2, met = counts.number(q, k == 1 && ample ? 0 : k);
    const int64_t share = total ? (2 * met * entropy::TOTAL + shares * total) / (2 * shares * total) : 0;
    m.codes[q][k] = ectcq_code_of(at_least(share, 1));
    left -= shares * ectcq_frequency(m.codes[q][k]);
  }
  while (left < 2) {  // rounded up too often
    int most = 1;
    for (int k = 2; k <= m.largest; ++k)
      if (m.codes[q][k] > m.codes[q][most]) most = k;
    const int code = m.codes[q][most];
    left += (most == 1 && ample ? 1 : 2) * (ectcq_frequency(code) - ectcq_frequency(code - 1));
    m.codes[q][most] = static_cast<uint8_t>(code - 1);
  }
}

// Where levels lie: of indices first .. last together.
template <class Counts>
COMMPRESS_HD int8_t ectcq_fit_place(const Counts& counts, int q, int first, int last) {
  int64_t wide = 0, met = 0;
  for (int k = first; k <= last; ++k) {
    wide += counts.magnitude(q, k) - 256 * (2 * k - q) * counts.number(q, k);
    met += counts.number(q, k);
  }
  return static_cast<int8_t>(ecsq_mean(wide, 2 * met));
}

template <class Counts>
struct EctcqMagnitudes {
  const Counts& counts;
  COMMPRESS_HD int64_t operator[](int k) const { return counts.number(0, k) + counts.number(1, k); }
};

// The model that fits, and its cost in 2^-16 bit, its own bytes and escaped values included. `counts` as EctcqCounts,
// `length` as entropy::lengths(). Without arrays of its own, which a device would have in memory.
template <class Counts, class Lengths>
COMMPRESS_HD void ectcq_fit_model(const Counts& counts, const Lengths& length, EctcqModel& m, int64_t& cost) {
  m = {};
  const int largest = entropy::largest_symbol(EctcqMagnitudes<Counts>{counts},
                                              static_cast<int64_t>(counts.beyond[0] + counts.beyond[1]));
  int64_t escaped_even = counts.beyond[0], escaped_odd = counts.beyond[1];
  for (int k = largest + 1; k < ECTCQ_INDICES; ++k) {
    escaped_even += counts.number(0, k);
    escaped_odd += counts.number(1, k);
  }
  m.largest = largest;
  m.escape = escaped_even + escaped_odd > 0;
  cost = 8 * 65536 * m.nbytes();
  if (m.empty()) return;
  for (int q = 0; q < 2; ++q) {
    const int64_t escaped = q ? escaped_odd : escaped_even;
    ectcq_fit_codes(counts, q, escaped, m);
    for (int place = 0; place < 3; ++place)
      m.places[q][place] =
          ectcq_fit_place(counts, q, place + 1, static_cast<int>(at_most(place < 2 ? place + 1 : largest, largest)));
    const int32_t left = ectcq_left(m, q);
    cost += escaped * (length[m.escape] + 32 * 65536);
    for (int k = 0; k <= largest; ++k) cost += counts.number(q, k) * length[ectcq_fitted(m, q, k, left)];
  }
}

}  // namespace commpress
