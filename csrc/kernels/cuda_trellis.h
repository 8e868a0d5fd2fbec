// The bitshift trellis on the device: what encoder and decoder share.
#pragma once
#include "bitshift.h"
#include "cuda_launch.h"

namespace commpress {
namespace cuda {

constexpr int TRELLIS_THREADS = 256;
constexpr int BLOCK_DIGITS = 4, MOST_BLOCKS = 1 << BLOCK_DIGITS;  // of a piece
static_assert(MOST_BLOCKS * BLOCK == WIDEST_PIECE, "blocks of a piece");
constexpr int SIGN_WORDS = 128;  // of a block
// Bits of a piece: 16384 coordinates of four bits, or 65536 of at most a half; and what a window reaches beyond.
constexpr int PIECE_WORDS = static_cast<int>(4 * 4 * BLOCK / 32);
static_assert(WIDEST_PIECE / 2 <= 32 * PIECE_WORDS, "the wide pieces have no more bits than the others");
static_assert(PIECE_WORDS >= STAGED_WORDS, "the rest of a payload is staged in the same place");

// A piece's share of a block of coordinates.
struct Part {
  int64_t index, first, byte;  // index: of the piece's first coordinate; first: of the part, in the values
  int n, block, size;          // the part is block number `block`, of `size` coordinates, of n
  int count, nbytes;           // bits of a chain; bytes of the piece
  int chain_digits;            // log2 of the coordinates of a chain
  uint32_t reciprocal;         // of the values of a codeword, see codeword_of()
};

// Shared memory of a block of threads, but for its values.
struct TrellisSpace {
  alignas(16) uint32_t bits[PIECE_WORDS + 2];
  alignas(16) uint8_t codes[BLOCK];  // of the rest
  alignas(16) uint32_t signs[SIGN_WORDS];
  float sums[64];
  uint32_t scratch[32];
  int32_t rate, centroid;
  Part part;              // the one at work; of size 0 if there is none
  Key key;                // of its layer
  const float* codebook;  // of its layer

  // Not kept as it is: it has padding, which nobody writes and wide loads read.
  COMMPRESS_DEVICE Trellis trellis() const { return unpacked_trellis(rate, centroid != 0); }
  COMMPRESS_DEVICE Workspace workspace(float* y) { return {y, codes, signs, sums, scratch, bits}; }
};

// i / values for coordinate i of a chain, which has at most 2^15 of them and at most 1639 codewords unless a codeword
// has one or two values, and then 4096: so neither is the product beyond 32 bits nor its error a codeword.
constexpr int RECIPROCAL_DIGITS = 20;
COMMPRESS_HD uint32_t reciprocal_of(int values) {
  return ((1u << RECIPROCAL_DIGITS) + static_cast<uint32_t>(values) - 1) / static_cast<uint32_t>(values);
}
COMMPRESS_HD uint32_t codeword_of(uint32_t i, uint32_t reciprocal) { return i * reciprocal >> RECIPROCAL_DIGITS; }

// What one thread finds out for all.
COMMPRESS_DEVICE Part part_of(const Trellis& t, const Layer& layer, int64_t at) {
  const TrellisPiece piece = trellis_piece_at(t, layer.numel, at);
  const int64_t chain = trellis_chain(t, piece.n), size = piece.n < BLOCK ? piece.n : BLOCK;
  Part part;
  part.index = layer.offset + piece.first;
  part.first = layer.first + at;
  part.byte = layer.byte + piece.byte;
  part.n = static_cast<int>(piece.n);
  part.block = static_cast<int>((at - piece.first) / BLOCK);
  part.size = static_cast<int>(size);
  part.count = static_cast<int>(trellis_codewords(t, chain)) * t.bits;
  part.nbytes = static_cast<int>(trellis_piece_nbytes(t, piece.n));
  part.chain_digits = 0;
  while (int64_t{2} << part.chain_digits <= chain) ++part.chain_digits;
  part.reciprocal = reciprocal_of(t.values);
  return part;
}

// Coordinate i of the piece, before any scale and rotation.
COMMPRESS_DEVICE float level_at(const TrellisSpace& s, int i) {
  const Trellis t = s.trellis();
  const Part& part = s.part;
  const int chain = i >> part.chain_digits, start = chain * part.count;
  const uint32_t inside = static_cast<uint32_t>(i - (chain << part.chain_digits)),
                 codeword = codeword_of(inside, part.reciprocal);
  const uint32_t state = trellis_state(t.length, part.count, (static_cast<int>(codeword) + 1) * t.bits, [&](int bit) {
    const int from = start + bit;
    return window_of(s.bits[from / 32], s.bits[from / 32 + 1], from % 32);
  });
  const uint32_t values = static_cast<uint32_t>(t.values),
                 place = trellis_row(state, t.length) * values + (inside - codeword * values);
  return float_of(bits_of(__ldg(s.codebook + place)) ^ trellis_sign(state, t.length) << 31);
}

// Fills in the part of `unit` that begins with its coordinate `done`, and what goes with it; false if there is none.
// Begins and ends in step. One thread finds it out for all, as it would cost every thread registers.
COMMPRESS_DEVICE bool next_part(TrellisSpace& s, const Job& job, int64_t unit, int done) {
  __syncthreads();  // warps may still be at parts before
  if (thread() == 0) {
    const Layer layer = layer_of(job, unit);
    const int64_t at = (unit - layer.unit) * BLOCK + done;
    if (layer.family == BITSHIFT && done < BLOCK && at < layer.numel) {
      s.rate = static_cast<int32_t>(layer.rate);
      s.centroid = layer.centroid != 0;
      s.part = part_of(s.trellis(), layer, at);
      s.key = job.key;
      s.key.tensor += static_cast<uint32_t>(layer.tensor);
      if (job.step) s.key.step += static_cast<uint32_t>(*job.step);
      s.codebook = job.codebooks + layer.bits;
    } else {
      s.part.size = 0;
    }
  }
  __syncthreads();
  return s.part.size != 0;
}

COMMPRESS_DEVICE Key key_of(const TrellisSpace& s, uint32_t sender_phase) {
  Key key = s.key;
  key.sender_phase = sender_phase;
  return key;
}

}  // namespace cuda
}  // namespace commpress
