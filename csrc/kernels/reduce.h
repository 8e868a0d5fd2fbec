// The owner's part of an all-reduce.
#pragma once
#include <vector>

#include "parallel.h"

namespace commpress {

// values = beta * values + the decoded payloads `from` of the senders, in their order; encoded to `to` under the key of
// `result`, and decoded again in place. Block by block: what one pass writes the next finds in the first-level cache.
// The payloads must be valid.
inline void reduce_payloads(const Payload& result, const std::vector<Key>& senders,
                            const std::vector<const uint8_t*>& from, float* values, float beta, uint8_t* to, Isa isa,
                            ParallelFor parallel_for) {
  for_pieces(result, parallel_for, [&](const Payload& piece, int64_t first, int64_t) {
    for (int64_t begin = 0; begin < piece.numel; begin += BLOCK) {
      Payload some = piece;
      some.offset += begin;
      some.numel = piece.numel - begin < BLOCK ? piece.numel - begin : BLOCK;
      const int64_t byte = payload_nbytes(result.codec, result.offset, first + begin);
      float* const here = values + first + begin;
      for (size_t i = 0; i < senders.size(); ++i) {
        some.key = senders[i];
        decode(some, from[i] + byte, here, true, 1.0f, i == 0 ? beta : 1.0f, isa);
      }
      some.key = result.key;
      encode(some, here, 1.0f, to + byte, isa);
      decode(some, to + byte, here, false, 1.0f, 1.0f, isa);
    }
  });
}

}  // namespace commpress
