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

// The model that fits, and its cost in 2^-16 bit, its own bytes and escaped values included. `counts` as EctcqCounts,
// `length` as entropy::lengths().
template <class Counts, class Lengths>
COMMPRESS_HD void ectcq_fit_model(const Counts& counts, const Lengths& length, EctcqModel& m, int64_t& cost) {
  m = {};
  int64_t magnitudes[entropy::LARGEST + 1], n[2][ECTCQ_INDICES], escaped[2];
  for (int q = 0; q < 2; ++q) {
    for (int k = 0; k < ECTCQ_INDICES; ++k) n[q][k] = counts.number(q, k);
    escaped[q] = counts.beyond[q];
  }
  for (int k = 0; k < ECTCQ_INDICES; ++k) magnitudes[k] = n[0][k] + n[1][k];
  m.largest = entropy::largest_symbol(magnitudes, escaped[0] + escaped[1]);
  for (int q = 0; q < 2; ++q)
    for (int k = m.largest + 1; k < ECTCQ_INDICES; ++k) escaped[q] += n[q][k];
  m.escape = escaped[0] + escaped[1] > 0;
  cost = 8 * 65536 * m.nbytes();
  if (m.empty()) return;
  for (int q = 0; q < 2; ++q) {
    int64_t total = escaped[q], left = entropy::TOTAL - m.escape;
    for (int k = 0; k <= m.largest; ++k) total += n[q][k];
    m.ample[q] = m.largest > 0 && n[q][0] < n[q][1];
    for (int k = 1; k <= m.largest; ++k) {
      const int64_t shares = k == 1 && m.ample[q] ? 1 : 2, met = k == 1 && m.ample[q] ? n[q][0] : n[q][k];
      const int64_t share = total ? (2 * met * entropy::TOTAL + shares * total) / (2 * shares * total) : 0;
      m.codes[q][k] = ectcq_code_of(at_least(share, 1));
      left -= shares * ectcq_frequency(m.codes[q][k]);
    }
    while (left < 2) {  // rounded up too often
      int most = 1;
      for (int k = 2; k <= m.largest; ++k)
        if (m.codes[q][k] > m.codes[q][most]) most = k;
      uint8_t& code = m.codes[q][most];
      const int64_t shares = most == 1 && m.ample[q] ? 1 : 2;
      left += shares * (ectcq_frequency(code) - ectcq_frequency(code - 1));
      --code;
    }
    int64_t wide[3] = {0, 0, 0}, met[3] = {0, 0, 0};
    for (int k = 1; k <= m.largest; ++k) {
      const int place = (k < 3 ? k : 3) - 1;
      wide[place] += counts.magnitude(q, k) - 256 * (2 * k - q) * n[q][k];
      met[place] += n[q][k];
    }
    for (int place = 0; place < 3; ++place)
      m.places[q][place] = static_cast<int8_t>(ecsq_mean(wide[place], 2 * met[place]));
  }
  int32_t f[2][entropy::SYMBOLS];
  ectcq_frequencies(m, f);
  for (int q = 0; q < 2; ++q) {
    cost += escaped[q] * (length[f[q][0]] + 32 * 65536);
    for (int k = 0; k <= m.largest; ++k) cost += n[q][k] * length[f[q][32 + k]];
  }
}

}  // namespace commpress
