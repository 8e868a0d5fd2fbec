// The owner's part of an all-reduce.
#pragma once
#include <atomic>
#include <vector>

#include "parallel.h"

namespace commpress {

// What became of several payloads: the position of an invalid one, or -1; and whether the result is finite.
struct Outcome {
  int64_t invalid;
  bool finite;
};

// Calls visit(block's payload, its first coordinate, its first byte, add) for every block whose payloads are valid;
// add(values, onto, beta) decodes them all, in the senders' order, onto values times beta or over them. `visit` says
// whether its result is finite.
template <class Visit>
Outcome for_blocks(const Payload& payload, const std::vector<Key>& senders, const std::vector<const uint8_t*>& from,
                   Isa isa, ParallelFor parallel_for, const Visit& visit) {
  std::atomic<bool> finite{true};
  std::atomic<int64_t> invalid{-1};
  for_pieces(payload, parallel_for, [&](const Payload& piece, int64_t first, int64_t) {
    for (int64_t begin = 0; begin < piece.numel; begin += BLOCK) {
      Payload some = piece;
      some.offset += begin;
      some.numel = piece.numel - begin < BLOCK ? piece.numel - begin : BLOCK;
      const int64_t byte = payload_nbytes(payload.codec, payload.offset, first + begin);
      for (size_t i = 0; i < senders.size(); ++i)
        if (inspect(some, from[i] + byte).invalid_block >= 0) {
          invalid = static_cast<int64_t>(i);
          return;
        }
      const auto add = [&](float* values, bool onto, float beta) {
        Payload sent = some;
        for (size_t i = 0; i < senders.size(); ++i) {
          sent.key = senders[i];
          decode(sent, from[i] + byte, values, onto || i > 0, 1.0f, i == 0 ? beta : 1.0f, isa);
        }
      };
      if (!visit(some, first + begin, byte, add)) finite = false;
    }
  });
  return {invalid, finite};
}

// values = beta * values + the decoded payloads `from` of the senders, in their order; encoded to `to` under the key of
// `result`, and decoded again in place. Block by block: what one pass writes the next finds in the first-level cache.
// After an invalid payload values and `to` are unfinished.
inline Outcome reduce_payloads(const Payload& result, const std::vector<Key>& senders,
                               const std::vector<const uint8_t*>& from, float* values, float beta, uint8_t* to, Isa isa,
                               ParallelFor parallel_for) {
  return for_blocks(result, senders, from, isa, parallel_for,
                    [&](const Payload& some, int64_t first, int64_t byte, const auto& add) {
                      add(values + first, true, beta);
                      encode(some, values + first, 1.0f, to + byte, isa);
                      decode(some, to + byte, values + first, false, 1.0f, 1.0f, isa);
                      return !inspect(some, to + byte).non_finite;
                    });
}

// values = the decoded payloads `from` of the senders, added in their order; unfinished after an invalid one.
inline Outcome sum_payloads(const Payload& payload, const std::vector<Key>& senders,
                            const std::vector<const uint8_t*>& from, float* values, Isa isa, ParallelFor parallel_for) {
  const bool past_caches = streams(payload.numel, values);
  return for_blocks(payload, senders, from, isa, parallel_for,
                    [&](const Payload& some, int64_t first, int64_t, const auto& add) {
                      alignas(64) float block[BLOCK];
                      add(block, false, 1.0f);
                      return move_block(block, some.numel, values + first, past_caches, isa);
                    });
}

}  // namespace commpress
