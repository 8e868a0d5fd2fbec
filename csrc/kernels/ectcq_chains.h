// What the encoder of `trellis` on a device keeps in scratch memory.
#pragma once
#include "ectcq_turns.h"

namespace commpress {
namespace cuda {

// As EctcqCounts.
struct ChainCounts {
  unsigned long long cells[64], beyond[2], squares;
  unsigned long long aside;  // bytes of raw bits, outside the trellis; then squares of what has an index, but no symbol

  COMMPRESS_HD int64_t number(int q, int k) const { return static_cast<int64_t>(cells[32 * q + k] >> 40); }
  COMMPRESS_HD int64_t magnitude(int q, int k) const {
    return static_cast<int64_t>(cells[32 * q + k] & ((1ull << 40) - 1));
  }
};
using ChainClass = EctcqLearner<ChainCounts>;

// Words for a row of a span: of each chain |k| div 2 for each quantiser and parity, four bits each, and for each state
// whether an odd index led there.
COMMPRESS_HD int chain_row_words(int states) { return 32 * (states == 8 ? 1 : 1 + (states + 31) / 32); }
constexpr int CHAIN_ROWS = static_cast<int>(ECTCQ_SPAN * ECSQ_BLOCK / 32);
// Words for a warp: rows, and costs before and after one of them, two bytes each, where they are not in registers.
COMMPRESS_HD int64_t chain_words(int states) {
  return int64_t{CHAIN_ROWS} * chain_row_words(states) + (states == 8 ? 0 : 32 * states);
}

// Where each array begins, in words, and the end of all.
constexpr int CHAIN_WARPS = 16;  // of a block of threads
struct ChainScratch {
  int64_t classes, blocks, others, spans, cells, chains, end;
  COMMPRESS_HD ChainScratch(const EcsqCodec& codec, int64_t n) {
    const EcsqSubstreams parts(codec, n);
    classes = 0;
    blocks = classes + ECSQ_MOST_CLASSES * static_cast<int64_t>((sizeof(ChainClass) + 7) / 8 * 2);
    others = blocks + parts.blocks;
    spans = others + parts.blocks;
    cells = spans + parts.blocks / ECTCQ_SPAN + parts.count + 2;
    chains = cells + parts.blocks * ECSQ_BLOCK / 4;
    end = chains + CHAIN_WARPS * chain_words(codec.states);
  }
};

}  // namespace cuda
}  // namespace commpress
