// encode() and decode() of the bitshift codecs for one code path. A bitshift_*.cpp names the path with COMMPRESS_ISA
// and includes the lanes, then this.
#pragma once
#include "bitshift_search.h"
#include "quantise.h"

namespace commpress {
namespace COMMPRESS_ISA {

// Scratch memory of one call, for pieces of up to `n` coordinates.
struct Workspace {
  Aligned values, levels, scaled, targets, costs, decisions;
  std::unique_ptr<uint8_t[]> codes;
};

// f(i, rows of sixteen) for the blocks of a piece of n coordinates.
template <class F>
static COMMPRESS_INLINE void over_blocks(int64_t n, F&& f) {
  const int64_t size = n < BLOCK ? n : BLOCK;
  for (int64_t i = 0; i < n; i += size) f(i, static_cast<int>(size / 16));
}

// The butterflies of coordinates a block and more apart.
static void rotate_blocks(float* y, int64_t n) {
  for (int64_t stride = BLOCK; stride < n; stride *= 2)
    for (int64_t i = 0; i < n; i += 2 * stride)
      for (int64_t k = i; k < i + stride; k += 16) {
        const Floats a = load(y + k), b = load(y + k + stride);
        store(y + k, a + b);
        store(y + k + stride, a - b);
      }
}

static void flip_signs(float* y, int64_t n, const Key& key, uint64_t index) {
  over_blocks(n, [&](int64_t i, int rows) {
    const Signs signs(key, TRELLIS_SIGN, index + i, 16 * rows);
    for (int row = 0; row < rows; ++row) {
      float* const p = y + i + 16 * row;
      store(p, flip(load(p), signs.words[row / 32], count_of(31 - row % 32)));
    }
  });
}

struct Measured {
  float energy, most;
};

// y = H D x; returns energy and largest square of x.
template <Measure MEASURE>
static Measured rotate_piece(const float* x, int64_t n, const Key& key, uint32_t purpose, uint64_t index, float* y) {
  Measured measured{0.0f, 0.0f};
  over_blocks(n, [&](int64_t i, int rows) {
    Squares squares;
    rotate_far<MEASURE>(x + i, rows, Signs(key, purpose, index + i, 16 * rows), y + i, squares);
    rotate_near(y + i, rows);
    if (MEASURE == Measure::NO) return;
    const float most = largest_lane(squares.most);
    measured = {measured.energy + fold(squares.sum), most > measured.most ? most : measured.most};
  });
  rotate_blocks(y, n);
  return measured;
}

static float energy_of_piece(const float* x, int64_t n) {
  float energy = 0.0f;
  over_blocks(n, [&](int64_t i, int rows) {
    Squares squares;
    for (int j = 0; j < 16; ++j)
      for (int k = 0; 16 * k + j < rows; ++k) {
        const Floats v = load(x + i + 16 * (16 * k + j));
        squares.sum[k % 4] = squares.sum[k % 4] + v * v;
      }
    energy += fold(squares.sum);
  });
  return energy;
}

static uint32_t largest_bits_of(const float* x, int64_t n) {
  Ints m = all(0u);
  for (int64_t i = 0; i < n; i += 16) m = larger(m, bits(load(x + i)) & all(0x7FFFFFFFu));
  return largest_lane(m);
}

static int64_t encode_scale(uint32_t scale, int64_t nbytes, uint8_t* out) {
  memcpy(out, &scale, 4);
  if (scale == 0 || scale == SCALE32_NON_FINITE) memset(out + 4, 0, nbytes - 4);
  return nbytes;
}

// Codes of all chains, one bit string.
static void pack_chains(const Trellis& t, const ChainSearch& search, Workspace& work, int64_t n, uint8_t* out) {
  const int64_t chain = trellis_chain(t, n), codewords = trellis_codewords(t, chain);
  uint32_t pending = 0;
  int held = 0;
  for (int64_t first = 0; first < n; first += chain) {
    for (int64_t i = 0; i < codewords * t.values; ++i)
      work.targets.get()[i] = i < chain ? trellis_target(work.values.get()[first + i]) : 0.0f;
    search(work.targets.get(), codewords, work.costs.get(), work.decisions.get(), work.codes.get());
    for (int64_t i = 0; i < codewords; ++i) {
      pending |= static_cast<uint32_t>(work.codes[i]) << held;
      for (held += t.bits; held >= 8; held -= 8, pending >>= 8) *out++ = static_cast<uint8_t>(pending);
    }
  }
  if (held) *out = static_cast<uint8_t>(pending);
}

static int64_t encode_piece(const Trellis& t, const ChainSearch& search, const float* x, int64_t n, const Key& key,
                            uint64_t index, float gain, Workspace& work, uint8_t* out) {
  const int64_t nbytes = trellis_piece_nbytes(t, n);
  float* const y = work.values.get();
  const auto measure = [&](const float* from) {
    if (t.rotated) return rotate_piece<Measure::YES>(from, n, key, ROTATE_FIRST, index, y);
    return Measured{energy_of_piece(from, n), 0.0f};
  };
  Measured measured = measure(x);
  int exponent = 0;
  if (!ordinary(measured.energy)) {
    const uint32_t top = largest_bits_of(x, n);
    if (top == 0) return encode_scale(0, nbytes, out);
    if (top >= SCALE32_INFINITY) return encode_scale(SCALE32_NON_FINITE, nbytes, out);
    exponent = exponent_of(float_of(top));
    if (!work.scaled) work.scaled = aligned_floats(trellis_span(t));
    for (int64_t i = 0; i < n; ++i) work.scaled.get()[i] = scale_by_power(x[i], -exponent);
    x = work.scaled.get();
    measured = measure(x);
  }
  const float energy = measured.energy, size = static_cast<float>(n);
  const bool twice = t.rotated && measured.most * 32.0f > energy;
  if (twice) rotate_piece<Measure::NO>(y, n, key, ROTATE_SECOND, index, y);
  const float deviation = square_root(!t.rotated ? divide(energy, size) : twice ? energy * size : energy);
  const float factor = t.spread * divide(1.0f, deviation);
  if (t.rotated) flip_signs(y, n, key, index);
  for (int64_t i = 0; i < n; i += 16) store(y + i, load((t.rotated ? y : x) + i) * all(factor));
  pack_chains(t, search, work, n, out + 4);

  float product = 0.0f, square = 0.0f;
  float* const z = work.levels.get();
  piece_levels(t, out + 4, n, z);
  over_blocks(n, [&](int64_t i, int rows) {
    Floats p[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)}, q[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
    for (int row = 0; row < rows; ++row) {
      const Floats level = load(z + i + 16 * row);
      p[row % 4] = p[row % 4] + load(y + i + 16 * row) * level;
      q[row % 4] = q[row % 4] + level * level;
    }
    product += fold(p);
    square += fold(q);
  });
  const float gram = !t.rotated ? 1.0f : twice ? size * size : size;
  const uint32_t scale = trellis_scale(energy, factor, product, square, gram, t.centroid || !t.rotated, exponent, gain);
  return encode_scale(scale && twice ? scale | SCALE32_TWO_ROTATIONS : scale, nbytes, out);
}

void encode(const TrellisPayload& p, const float* x, float gain, uint8_t* out) {
  const Trellis& t = p.trellis;
  Workspace work;
  std::unique_ptr<const ChainSearch> search;
  trellis_pieces(t, p.numel, [&](int64_t first, int64_t n) {
    const uint64_t index = static_cast<uint64_t>(p.offset + first);
    if (n < SMALLEST_PIECE) {
      encode(Payload{trellis_rest(t), p.key, p.offset + first, n}, x + first, gain, out, THIS_ISA);
      return;
    }
    if (!search) {  // the first piece is the largest
      const int64_t codewords = trellis_codewords(t, trellis_chain(t, n));
      search.reset(new ChainSearch(t));
      work.values = aligned_floats(n);
      work.levels = aligned_floats(n);
      work.targets = aligned_floats(codewords * t.values);
      work.costs = aligned_floats(search->cost_floats());
      work.decisions = aligned_floats(search->decision_floats(codewords));
      work.codes.reset(new uint8_t[codewords]);
    }
    out += encode_piece(t, *search, x + first, n, p.key, index, gain, work, out);
  });
}

static int64_t decode_piece(const Trellis& t, const uint8_t* in, int64_t n, const Key& key, uint64_t index, float* z,
                            float* out, const Sink& sink) {
  const int64_t nbytes = trellis_piece_nbytes(t, n);
  uint32_t scale;
  memcpy(&scale, in, 4);
  if (scale == 0 || scale == SCALE32_NON_FINITE) {
    deliver_constant(out, n, scale ? float_of(0x7FC00000u) : 0.0f, sink);
    return nbytes;
  }
  piece_levels(t, in + 4, n, z);
  const float scalar = float_of(scale & ~SCALE32_TWO_ROTATIONS) * sink.gain;
  const bool ordinary_scale = scalar <= LARGE_SCALE;
  const Floats factor = all(scalar), beta = all(sink.beta);
  const auto put = [&](float* to, Floats v) __attribute__((always_inline)) {
    if (ordinary_scale) {
      with_delivery(sink.delivery, [&](auto delivery) { deliver<delivery>(to, v * factor, beta); });
    } else {
      float lanes[16];
      store(lanes, v);
      for (int lane = 0; lane < 16; ++lane) deliver(to + lane, finite_product(lanes[lane], scalar), sink);
    }
  };
  if (!t.rotated) {
    for (int64_t i = 0; i < n; i += 16) put(out + i, load(z + i));
    return nbytes;
  }
  flip_signs(z, n, key, index);
  if (scale & SCALE32_TWO_ROTATIONS) {
    rotate_blocks(z, n);
    over_blocks(n, [&](int64_t i, int rows) {
      rotate_near(z + i, rows);
      unrotate_far(z + i, rows, Signs(key, ROTATE_SECOND, index + i, 16 * rows),
                   [&](int row, Floats v) __attribute__((always_inline)) { store(z + i + 16 * row, v); });
    });
  }
  rotate_blocks(z, n);
  over_blocks(n, [&](int64_t i, int rows) {
    rotate_near(z + i, rows);
    unrotate_far(z + i, rows, Signs(key, ROTATE_FIRST, index + i, 16 * rows),
                 [&](int row, Floats v) __attribute__((always_inline)) { put(out + i + 16 * row, v); });
  });
  return nbytes;
}

void decode(const TrellisPayload& p, const uint8_t* in, float* out, bool accumulate, float gain, float beta) {
  const Trellis& t = p.trellis;
  const Sink sink{delivery_of(accumulate, false, beta), gain, beta};
  Aligned z;
  trellis_pieces(t, p.numel, [&](int64_t first, int64_t n) {
    if (n < SMALLEST_PIECE) {
      decode(Payload{trellis_rest(t), p.key, p.offset + first, n}, in, out + first, accumulate, gain, beta, THIS_ISA);
      return;
    }
    if (!z) z = aligned_floats(n);
    in += decode_piece(t, in, n, p.key, static_cast<uint64_t>(p.offset + first), z.get(), out + first, sink);
  });
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
