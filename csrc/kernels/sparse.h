// Sparsifiers: which coordinates of a segment are sent, and how many bytes that takes. docs/wire-format.md 4.6 is the
// prose form. A segment is `block` coordinates that begin at a multiple of `block`; the last of a tensor may be
// shorter.
#pragma once
#include "kernels.h"

namespace commpress {

enum SparseKind : int32_t { TOPK = 1, RANDK = 2 };

constexpr int64_t SPARSE_SMALLEST_BLOCK = BLOCK, SPARSE_LARGEST_BLOCK = int64_t{1} << 18;

struct SparseCodec {
  int32_t kind;
  int32_t fraction;  // of the coordinates that are sent, in millionths, 1 to 10^6
  int32_t bits;      // of a value: 1 to 8 (a quantiser), 16 (bfloat16) or 32 (binary32)
  bool scaled;       // RANDK: whether values are multiplied by the inverse of their chance to be sent
  int64_t block;     // coordinates of a segment, a power of two
};

COMMPRESS_HD bool sparse_quantised(const SparseCodec& codec) { return codec.bits <= 8; }

// ---- what positions cost ----
//
// Gaps between the coordinates that are sent are coded as if every coordinate were sent with chance p: gap g has chance
// p (1-p)^g. The product over a segment is p^m (1-p)^(n-m) whatever the subset is, so all subsets take the same number
// of bits, and a budget for one is a budget for all.

COMMPRESS_HD int64_t gap_fraction(int64_t fraction) { return fraction < RATE_ONE / 2 ? fraction : RATE_ONE / 2; }

// The least integer that is >= 2^16 log2(10^6 / parts), for 1 <= parts <= 10^6: sixteen squarings give sixteen binary
// digits.
COMMPRESS_HD int64_t log2_inverse(int64_t parts) {
  int64_t digits = 0;
  while ((parts << (digits + 1)) <= RATE_ONE) ++digits;
  const uint64_t divisor = static_cast<uint64_t>(parts) << digits;
  // 10^6 2^63 / divisor, in [2^63, 2^64): in two steps, since 128 bits are divided by a long routine, on devices too.
  const uint64_t high = static_cast<uint64_t>(RATE_ONE) << 43;
  uint64_t x = (high / divisor << 20) + (high % divisor << 20) / divisor;
  for (int i = 0; i < 16; ++i) {
    const uint64_t square = static_cast<uint64_t>((static_cast<unsigned __int128>(x) * x) >> 63);
    const bool carry = (static_cast<unsigned __int128>(x) * x) >> 127;
    digits = 2 * digits + carry;
    x = carry ? static_cast<uint64_t>((static_cast<unsigned __int128>(x) * x) >> 64) : square;
  }
  return digits + (x > uint64_t{1} << 63);
}

// Bits of a coordinate that is sent and of one that is not, in units of 2^-16.
struct GapCost {
  int64_t sent, not_sent;
};
COMMPRESS_HD GapCost gap_cost(int64_t fraction) {
  const int64_t p = gap_fraction(fraction);
  return {log2_inverse(p), log2_inverse(RATE_ONE - p)};
}

// From so many positions on they are two streams, which a processor decodes at the same time: the first half from the
// front of their bytes, the second from the back.
constexpr int64_t TWO_STREAMS = 256;

// Bytes that hold the positions of any m of n coordinates. Beyond the entropy: what the 32-bit model and the coder's
// 24-bit multiplications lose (under 2^-13 bits a symbol), and the last byte, or the last two of each of two streams.
COMMPRESS_HD int64_t position_nbytes(const GapCost& cost, int64_t n, int64_t m) {
  if (m == 0) return 0;
  const int64_t bits = ((m * cost.sent + (n - m) * cost.not_sent) >> 16) + (m >> 10) + 2;
  return bits / 8 + (m < TWO_STREAMS ? 1 : 4);
}

// ---- sizes ----

COMMPRESS_HD int64_t sparse_header_nbytes(const SparseCodec& codec) { return sparse_quantised(codec) ? 8 : 4; }

COMMPRESS_HD Codec randk_values(const SparseCodec& codec) {
  return {codec.scaled ? UNIFORM : LLOYD, static_cast<int32_t>(codec.bits * RATE_ONE), !codec.scaled};
}

// A segment of n coordinates of which k are sent.
COMMPRESS_HD int64_t sparse_nbytes(const SparseCodec& codec, const GapCost& cost, int64_t n, int64_t k) {
  if (codec.kind == TOPK)
    return sparse_header_nbytes(codec) + packed_nbytes(k, codec.bits) + position_nbytes(cost, n, k);
  return sparse_quantised(codec) ? payload_nbytes(randk_values(codec), 0, k) : k * codec.bits / 8;
}

COMMPRESS_HD int64_t sparse_kept(const SparseCodec& codec, int64_t start, int64_t n) {
  return selected(codec.fraction, start, n);
}

// A payload of `numel` coordinates that begins at index `offset`, a multiple of the codec's block.
COMMPRESS_HD int64_t sparse_payload_nbytes(const SparseCodec& codec, const GapCost& cost, int64_t offset,
                                           int64_t numel) {
  const int64_t whole = numel / codec.block, rest = numel % codec.block, end = offset + whole * codec.block;
  // A whole segment sends one of two counts (each at least 1).
  const int64_t least = mixed(codec.block, codec.fraction);
  const int64_t more = mixed(end, codec.fraction) - mixed(offset, codec.fraction) - whole * least;
  int64_t total = 0;
  if (whole) total += (whole - more) * sparse_nbytes(codec, cost, codec.block, least < 1 ? 1 : least);
  if (more) total += more * sparse_nbytes(codec, cost, codec.block, least + 1);
  if (rest) total += sparse_nbytes(codec, cost, rest, sparse_kept(codec, end, rest));
  return total;
}

struct SparsePayload {
  SparseCodec codec;
  Key key;
  int64_t offset, numel;
};

// ---- the kernels (sparse.cpp) ----

// Writes sparse_payload_nbytes() bytes for gain * x.
void sparse_encode(const SparsePayload& payload, const float* x, float gain, uint8_t* out, Isa isa);

// The first segment with a header that no encoder writes, or -1. Nothing beyond the payload is read.
int64_t sparse_inspect(const SparsePayload& payload, const uint8_t* in);

// out = gain * value, or beta * out + gain * value. Any bytes are safe to decode.
void sparse_decode(const SparsePayload& payload, const uint8_t* in, float* out, bool accumulate, float gain, float beta,
                   Isa isa);

}  // namespace commpress
