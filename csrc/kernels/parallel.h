// The only threading seam. The kernels themselves are serial; whoever calls them cuts a payload at block boundaries and
// runs the pieces with a ParallelFor.
#pragma once
#include "kernels.h"

namespace commpress {

// Runs body(context, begin, end) over pieces of [0, count) that are at least `grain` long.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context);

constexpr int64_t GRAIN_BLOCKS = 32;  // 128 Ki coordinates: about 50 us of work, well above what waking a thread costs

// Calls piece(sub-payload, first coordinate, first byte) for block-aligned parts of the payload.
template <class F>
void for_pieces(const Payload& payload, ParallelFor parallel_for, const F& piece) {
  struct Context {
    const Payload& payload;
    const F& piece;
  } context{payload, piece};
  parallel_for((payload.numel + BLOCK - 1) / BLOCK, GRAIN_BLOCKS,
               [](void* raw, int64_t begin, int64_t end) {
                 const Context& c = *static_cast<Context*>(raw);
                 const int64_t first = begin * BLOCK,
                               last = end * BLOCK < c.payload.numel ? end * BLOCK : c.payload.numel;
                 Payload part = c.payload;
                 part.offset += first;
                 part.numel = last - first;
                 c.piece(part, first, payload_nbytes(c.payload.codec, c.payload.offset, first));
               },
               &context);
}

}  // namespace commpress
