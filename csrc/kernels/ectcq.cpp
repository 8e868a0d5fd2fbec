// What all code paths of `trellis` share: the tables of a class, and the choice of a path.
#include "ectcq.h"

#include <algorithm>

#include "ecsq_format.h"

namespace commpress {

namespace path_plain {
extern const EctcqKernels ECTCQ_KERNELS;
}
#if defined(COMMPRESS_X86)
namespace path_avx2 {
extern const EctcqKernels ECTCQ_KERNELS;
}
namespace path_avx512 {
extern const EctcqKernels ECTCQ_KERNELS;
}
#endif

const EctcqKernels& ectcq_kernels(Isa isa) {
#if defined(COMMPRESS_X86)
  if (isa == Isa::AVX512) return path_avx512::ECTCQ_KERNELS;
  if (isa == Isa::AVX2) return path_avx2::ECTCQ_KERNELS;
#endif
  (void)isa;
  return path_plain::ECTCQ_KERNELS;
}

bool ectcq_frequencies(const EctcqModel& m, int32_t (&out)[2][entropy::SYMBOLS]) {
  for (int q = 0; q < 2; ++q) {
    std::fill(out[q], out[q] + entropy::SYMBOLS, 0);
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

namespace {

// The code nearest to a frequency below 4096.
uint8_t code_of(int64_t f) {
  if (f < 32) return static_cast<uint8_t>(f);
  int e = 58 - __builtin_clzll(static_cast<uint64_t>(f));
  int64_t m = (f + (int64_t{1} << e >> 1)) >> e;
  if (m == 64) {
    m = 32;
    ++e;
  }
  return static_cast<uint8_t>((e + 1) << 5 | (m & 31));
}

}  // namespace

EctcqModel ectcq_fit(const EctcqCounts& counts, int64_t& cost) {
  EctcqModel m;
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
  if (m.empty()) return m;
  for (int q = 0; q < 2; ++q) {
    int64_t total = escaped[q], left = entropy::TOTAL - m.escape;
    for (int k = 0; k <= m.largest; ++k) total += n[q][k];
    m.ample[q] = m.largest > 0 && n[q][0] < n[q][1];
    for (int k = 1; k <= m.largest; ++k) {
      const int64_t shares = k == 1 && m.ample[q] ? 1 : 2, met = k == 1 && m.ample[q] ? n[q][0] : n[q][k];
      const int64_t share = total ? (2 * met * entropy::TOTAL + shares * total) / (2 * shares * total) : 0;
      m.codes[q][k] = code_of(std::max<int64_t>(share, 1));
      left -= shares * ectcq_frequency(m.codes[q][k]);
    }
    while (left < 2) {  // rounded up too often
      uint8_t* const most = std::max_element(m.codes[q] + 1, m.codes[q] + m.largest + 1);
      const int64_t shares = most == m.codes[q] + 1 && m.ample[q] ? 1 : 2;
      left += shares * (ectcq_frequency(*most) - ectcq_frequency(*most - 1));
      --*most;
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
  const int64_t* const length = entropy::lengths();
  for (int q = 0; q < 2; ++q) {
    cost += escaped[q] * (length[f[q][0]] + 32 * 65536);
    for (int k = 0; k <= m.largest; ++k) cost += n[q][k] * length[f[q][32 + k]];
  }
  return m;
}

}  // namespace commpress
