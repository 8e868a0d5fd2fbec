// The bitshift trellis, encoded. A block of threads has a piece: rotated in its share of a global scratch memory, then
// searched chain by chain by Viterbi's algorithm, all nodes in parallel, with the decisions of a chain in that scratch
// memory too. Costs are in shared memory up to a length of 12.
#pragma once
#include "cuda_trellis.h"

namespace commpress {
namespace cuda {

constexpr int SHARED_SEARCH = 2 * 2048 + 2 * 1024;  // floats: costs before and after, products and energies of rows

struct TrellisEncoderSpace : TrellisSpace {
  alignas(16) float search[SHARED_SEARCH];  // its beginning is the block of values outside of a search
  float codeword[TRELLIS_WIDEST];           // the targets of one
  int32_t node;
};

// A share of the scratch memory.
struct Memory {
  float* y;             // the piece
  float* search;        // as in shared memory, for longer states
  uint32_t* decisions;  // of a chain: k bits for every node, [codeword][bit][node / 32]
  uint8_t* codes;       // of the piece
};
COMMPRESS_DEVICE Memory memory_of(const Trellis& t, uint32_t* words) {
  Memory memory;
  memory.y = reinterpret_cast<float*>(words);
  memory.search = memory.y + trellis_span(t);
  memory.decisions = words + trellis_span(t) + search_floats(t);
  memory.codes = reinterpret_cast<uint8_t*>(memory.decisions + decision_words(t));
  return memory;
}

// f(block) for the blocks of the piece.
template <class F>
COMMPRESS_DEVICE void over_blocks(const Part& part, F&& f) {
  for (int block = 0; block * static_cast<int>(BLOCK) < part.n; ++block) f(block, block * static_cast<int>(BLOCK));
}

// y = H D y of the whole piece; load(first) brings a block to shared memory, in step. Ends in step.
template <class Load>
COMMPRESS_DEVICE void rotate_piece(TrellisEncoderSpace& s, const Key& key, uint32_t purpose, float* y,
                                   const Load& load) {
  const Part& part = s.part;
  over_blocks(part, [&](int, int first) {
    load(first);
    careful_rotate(s.workspace(s.search), key, purpose, part.index + first, part.size);
    for (int i = thread(); i < part.size; i += threads()) y[first + i] = s.search[i];
    __syncthreads();
  });
  for (int stride = static_cast<int>(BLOCK); stride < part.n; stride *= 2) {
    for (int pair = thread(); pair < part.n / 2; pair += threads()) {
      const int i = (pair & ~(stride - 1)) * 2 + (pair & (stride - 1));
      const float a = y[i], b = y[i + stride];
      y[i] = a + b;
      y[i + stride] = a - b;
    }
    __syncthreads();
  }
}

// The piece's targets of the search, before their last rounding, to memory.y; what the scale follows from.
struct Scaling {
  float energy, factor, gram;
  int exponent;
  bool twice;
  uint32_t scale;  // where there is nothing to search
};
COMMPRESS_DEVICE bool prepare_piece(TrellisEncoderSpace& s, const Values& x, const Key& key, float* y, Scaling& found) {
  const Part& part = s.part;
  const Trellis t = s.trellis();
  const Workspace w = s.workspace(s.search);
  uint32_t top = 0;
  const auto load = [&](int first) {
    for (int i = thread(); i < part.size; i += threads()) w.y[i] = scale_by_power(x[first + i], -found.exponent);
    __syncthreads();
  };
  const auto energy = [&] {
    float sum = 0.0f;
    over_blocks(part, [&](int, int first) {
      load(first);
      top = larger(top, careful_largest(w, part.size));
      sum += careful_energy(w, part.size);
    });
    return sum;
  };
  found = {0.0f, 0.0f, 1.0f, 0, false, 0};
  found.energy = energy();
  if (!ordinary(found.energy)) {
    found.scale = top == 0 ? 0 : SCALE32_NON_FINITE;
    if (top == 0 || top >= SCALE32_INFINITY) return false;
    found.exponent = exponent_of(float_of(top));
    top = 0;
    found.energy = energy();
  }
  const float size = static_cast<float>(part.n), most = float_of(top) * float_of(top);
  found.twice = t.rotated && most * 32.0f > found.energy;
  if (t.rotated) rotate_piece(s, key, ROTATE_FIRST, y, load);
  if (found.twice)
    rotate_piece(s, key, ROTATE_SECOND, y, [&](int first) {
      for (int i = thread(); i < part.size; i += threads()) w.y[i] = y[first + i];
      __syncthreads();
    });
  const float deviation = square_root(!t.rotated    ? divide(found.energy, size)
                                      : found.twice ? found.energy * size
                                                    : found.energy);
  found.factor = t.spread * divide(1.0f, deviation);
  found.gram = !t.rotated ? 1.0f : found.twice ? size * size : size;
  over_blocks(part, [&](int, int first) {
    if (t.rotated) fill_signs_by(thread(), s.signs, key, TRELLIS_SIGN, part.index + first, part.size);
    __syncthreads();
    for (int i = thread(); i < part.size; i += threads())
      y[first + i] = (t.rotated ? with_sign(y[first + i], s.signs[i / 512 * 16 + i % 16], i / 16)
                                : scale_by_power(x[first + i], -found.exponent)) *
                     found.factor;
    __syncthreads();
  });
  return true;
}

// The search of bitshift_search.h: its candidates, order and roundings.
struct Search {
  TrellisEncoderSpace& s;
  const float* codebook;
  const float* y;  // of the chain
  uint32_t* decisions;
  float *before, *after, *products, *energies;
  int length, bits, values, nodes, rows, codewords, coordinates;

  COMMPRESS_DEVICE Search(TrellisEncoderSpace& space, const Memory& memory)
      : s(space), codebook(space.codebook), y(memory.y), decisions(memory.decisions) {
    const Trellis t = s.trellis();
    length = t.length;
    bits = t.bits;
    values = t.values;
    nodes = 1 << (length - bits);
    rows = 1 << (length - 2);
    codewords = s.part.count / bits;
    coordinates = 1 << s.part.chain_digits;
    before = search_floats(t) <= SHARED_SEARCH ? s.search : memory.search;
    after = before + nodes;
    products = after + nodes;
    energies = products + rows;
  }

  // Half the energies of the rows. Ends in step.
  COMMPRESS_DEVICE void fill_energies() const {
    for (int row = thread(); row < rows; row += threads()) {
      int square = 0;
      for (int v = 0; v < values; ++v) {
        const int g = static_cast<int>(__ldg(codebook + row * values + v) * (1.0f / CODEBOOK_UNIT));
        square += g * g;
      }
      energies[row] = static_cast<float>(square) * (CODEBOOK_UNIT * CODEBOOK_UNIT / 2);
    }
    __syncthreads();
  }

  // One codeword: costs after it and decisions. Begins and ends in step.
  COMMPRESS_DEVICE void step(int codeword, uint32_t* chosen) const {
    const int first = codeword * values;
    if (thread() < values)
      s.codeword[thread()] = first + thread() < coordinates ? trellis_target(y[first + thread()]) : 0.0f;
    __syncthreads();
    for (int row = thread(); row < rows; row += threads()) {
      float product = s.codeword[0] * __ldg(codebook + row * values);
      for (int v = 1; v < values; ++v) product = product + s.codeword[v] * __ldg(codebook + row * values + v);
      products[row] = product;
    }
    __syncthreads();
    for (int node = thread(); node < nodes; node += threads()) {  // a warp's lanes all, or none
      const int newest = node >> (length - 2 * bits);
      float best = 0.0f;
      int choice = 0;
      for (int p = 0; p < 1 << bits; ++p) {
        const int from = (node << bits | p) & (nodes - 1);
        const uint32_t state = static_cast<uint32_t>(newest << (length - bits) | from),
                       row = trellis_row(state, length);
        const float sum = before[from] + energies[row];
        const float cost = trellis_sign(state, length) ? sum + products[row] : sum - products[row];
        if (p == 0 || cost < best) {
          best = cost;
          choice = p;
        }
      }
      after[node] = best;
      for (int b = 0; b < bits; ++b) {
        const uint32_t word = __ballot_sync(ALL_LANES, choice >> b & 1);
        if (thread() % 32 == 0) chosen[(b * nodes + node) / 32] = word;
      }
    }
    __syncthreads();
  }

  // Over `count` codewords of the circle; `before` then has the costs at the end.
  COMMPRESS_DEVICE void walk(int first, int count) {
    COMMPRESS_ROLLED
    for (int i = 0; i < count; ++i) {
      step((first + i) % codewords, decisions + i * (bits * nodes / 32));
      float* const swapped = before;
      before = after;
      after = swapped;
    }
  }

  COMMPRESS_DEVICE int previous(int i, int node) const {
    const uint32_t* const chosen = decisions + i * (bits * nodes / 32);
    int p = 0;
    for (int b = 0; b < bits; ++b) p |= static_cast<int>(chosen[(b * nodes + node) / 32] >> (node % 32) & 1) << b;
    return (node << bits | p) & (nodes - 1);
  }

  // The node of least cost, the first of equals, in every thread. Ends in step.
  COMMPRESS_DEVICE int best_node() const {
    float best = float_of(SCALE32_INFINITY);
    int node = nodes;
    const auto consider = [&](float cost, int other) {
      if (cost < best || (cost == best && other < node)) {
        best = cost;
        node = other;
      }
    };
    for (int m = thread(); m < nodes; m += threads()) consider(before[m], m);
    for (int distance = 16; distance; distance /= 2) {
      const float cost = __shfl_xor_sync(ALL_LANES, best, distance);
      const int other = __shfl_xor_sync(ALL_LANES, node, distance);
      consider(cost, other);
    }
    if (thread() % 32 == 0) {
      s.scratch[thread() / 32] = bits_of(best);
      s.scratch[16 + thread() / 32] = static_cast<uint32_t>(node);
    }
    __syncthreads();
    for (int warp = 0; warp < TRELLIS_THREADS / 32; ++warp)
      consider(float_of(s.scratch[warp]), static_cast<int>(s.scratch[16 + warp]));
    __syncthreads();
    return node;
  }

  // Codes of a chain. Begins and ends in step.
  COMMPRESS_DEVICE void run(uint8_t* codes) {
    const int warm = smaller(codewords, static_cast<int>(TRELLIS_WARM_UP));
    for (int m = thread(); m < nodes; m += threads()) before[m] = 0.0f;
    __syncthreads();
    walk(codewords - warm, 2 * warm);
    int node = best_node();
    if (thread() == 0) {
      for (int i = 2 * warm - 1; i >= warm; --i) node = previous(i, node);
      s.node = node;
    }
    __syncthreads();
    node = s.node;
    for (int m = thread(); m < nodes; m += threads()) before[m] = m == node ? 0.0f : float_of(SCALE32_INFINITY);
    __syncthreads();
    walk(0, codewords);
    if (thread() == 0)
      for (int i = codewords - 1; i >= 0; --i) {
        codes[i] = static_cast<uint8_t>(node >> (length - 2 * bits));
        node = previous(i, node);
      }
    __syncthreads();
  }
};

// All codes as the piece's bit string, to s.bits, and a word of zeros behind it. Ends in step.
COMMPRESS_DEVICE void pack_codes(TrellisSpace& s, const uint8_t* codes, int count) {
  const int bits = s.trellis().bits, words = (count * bits + 31) / 32;
  for (int w = thread(); w <= words; w += threads()) {
    uint32_t word = 0;
    for (int i = 32 * w / bits; i < count && i * bits < 32 * w + 32; ++i) {
      const uint32_t code = codes[i];
      const int shift = i * bits - 32 * w;
      word |= shift >= 0 ? code << shift : code >> -shift;
    }
    s.bits[w] = word;
  }
  __syncthreads();
}

// Writes a piece without codes, or with those in s.bits. Ends in step.
COMMPRESS_DEVICE void write_trellis(const TrellisSpace& s, uint32_t scale, uint8_t* out) {
  const int nbytes = s.part.nbytes - 4;
  if (thread() == 0) store_word(scale, out);
  if (scale == 0 || scale == SCALE32_NON_FINITE)
    for (int i = thread(); i < nbytes; i += threads()) out[4 + i] = 0;
  else
    store_bytes(s.bits, nbytes, out + 4, thread(), threads());
  __syncthreads();
}

COMMPRESS_DEVICE void encode_piece(TrellisEncoderSpace& s, const Values& x, float gain, const Memory& memory,
                                   uint8_t* out) {
  Scaling found;
  if (!prepare_piece(s, x, s.key, memory.y, found)) {
    write_trellis(s, found.scale, out);
    return;
  }
  const Part& part = s.part;
  Search search(s, memory);
  search.fill_energies();
  int count = 0;
  for (int first = 0; first < part.n; first += search.coordinates, count += search.codewords) {
    search.y = memory.y + first;
    search.run(memory.codes + count);
  }
  pack_codes(s, memory.codes, count);
  const Workspace w = s.workspace(s.search);
  float product = 0.0f, square = 0.0f;
  over_blocks(part, [&](int, int first) {
    product += sum_by_rows(w, part.size, [&](int i) { return memory.y[first + i] * level_at(s, first + i); });
    square += sum_by_rows(w, part.size, [&](int i) {
      const float level = level_at(s, first + i);
      return level * level;
    });
  });
  const Trellis t = s.trellis();
  const uint32_t scale = trellis_scale(found.energy, found.factor, product, square, found.gram,
                                       t.centroid || !t.rotated, found.exponent, gain);
  write_trellis(s, scale && found.twice ? scale | SCALE32_TWO_ROTATIONS : scale, out);
}

// Neighbouring blocks of coordinates are of one block of threads, so that each has its share of pieces.
static __global__ void __launch_bounds__(TRELLIS_THREADS, 2)
    encode_trellis_kernel(const __grid_constant__ Job job, const __grid_constant__ Values x, float gain, uint8_t* out,
                          const __grid_constant__ Scratch scratch) {
  COMMPRESS_SHARED(TrellisEncoderSpace, shared, 1);
  TrellisEncoderSpace& s = shared[0];
  const int64_t each = (job.units + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * each,
                stop = begin + each < job.units ? begin + each : job.units;
  for (int64_t unit = begin; unit < stop; ++unit)
    for (int done = 0; next_part(s, job, unit, done); done += s.part.size) {
      const Part& part = s.part;
      const Values from = x.from(part.first);
      uint8_t* const to = out + part.byte;
      if (part.n < SMALLEST_PIECE) {
        const Codec codec = trellis_rest(s.trellis());
        const Workspace w = s.workspace(s.search);
        if (s.trellis().rotated)
          rotated_encode_any(w, from, part.n, {codec.rate, codec.centroid}, s.key, part.index, gain, to);
        else
          lloyd_encode_careful(w, from, part.n, codec.rate, s.key, part.index, gain, to);
      } else if (part.block == 0) {
        encode_piece(s, from, gain, memory_of(s.trellis(), scratch.words + blockIdx.x * scratch.each), to);
      }
    }
}

inline void launch_encode_trellis(const Job& job, const Gradient& x, float gain, uint8_t* out, const Scratch& scratch,
                                  const Queue& queue) {
  const Values values{x.data, x.input};
  const unsigned grid = static_cast<unsigned>(job.units < scratch.count ? job.units : scratch.count);
  COMMPRESS_LAUNCH(encode_trellis_kernel, grid, TRELLIS_THREADS, static_cast<cudaStream_t>(queue.stream), job, values,
                   gain, out, scratch);
}

}  // namespace cuda
}  // namespace commpress
