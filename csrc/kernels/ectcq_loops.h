// The coders of EctcqKernels in plain C++. Include after a trellis_words_*.h.
#pragma once
#include "ectcq.h"
#include "ectcq_search.h"
#include "entropy_coders.h"

namespace commpress {
namespace COMMPRESS_ISA {

static COMMPRESS_INLINE EcsqEscape ectcq_escape(int64_t index, float v, uint32_t parity) {
  return {index, ectcq_kept(v, parity)};
}

[[maybe_unused]] static uint8_t* ectcq_encode_block(EctcqClassCoder& c, const EctcqBlock& block, float gain,
                                                    float inverse, int64_t index, uint32_t* states, uint8_t* out,
                                                    std::vector<EcsqEscape>& escapes) {
  if (c.empty) return out;
  alignas(64) uint16_t w[ECSQ_BLOCK];
  ectcq_magnitudes(block, gain, inverse, w);
  for (int64_t i = ECSQ_BLOCK; i-- > 0;) {
    const float v = block.x[i] * gain * inverse;
    const int k = block.cells[i] & 31, q = block.cells[i] >> 5;
    int symbol = v < 0 ? 32 - k : 32 + k;
    if (k > c.largest || w[i] > ECTCQ_FARTHEST) {
      symbol = 0;
      escapes.push_back(ectcq_escape(index + i, v, k & 1));
      if (w[i] <= ECTCQ_FARTHEST) c.escaped += static_cast<int64_t>(w[i]) * w[i];
    }
    uint32_t& state = states[i % ECTCQ_LANES];
    state = entropy::rans_put(state, c.entry[q][symbol] & 0xFFFF, c.entry[q][symbol] >> 16, out);
  }
  return out;
}

[[maybe_unused]] static void ectcq_decode_block(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream,
                                                uint32_t* at, const uint8_t* parity, int64_t left, float* z,
                                                std::vector<int32_t>& escapes) {
  for (int64_t i = 0; i < ECSQ_BLOCK; ++i) {
    uint32_t &chain = at[i % ECTCQ_LANES], &state = stream.states[i % ECTCQ_LANES];
    const uint32_t q = chain & 1;
    uint32_t symbol = 32;
    if (!c.empty) {
      const uint32_t slot = c.slots[q << entropy::PRECISION | (state & (entropy::TOTAL - 1))];
      state = entropy::rans_advance(state, slot & 0xFFF, slot >> 12 & 0xFFF, stream.in, stream.end);
      symbol = slot >> 24;
    }
    uint32_t odd = symbol & 1;
    if (symbol == 0) {
      escapes.push_back(static_cast<int32_t>(i));
      if (left > 0) odd = *parity & 1;
      parity += 4;
      --left;
    }
    z[i] = c.values[q][symbol];
    chain = code.next(chain, odd);
  }
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
