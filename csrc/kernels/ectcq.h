// `trellis`: entropy-coded trellis-coded quantisation, as one more mode of the segments of ecsq.h (docs/wire-format.md,
// section 4.10). Blocks of a class have indices of the trellis of tcq.h, which the interleaved coders of ecsq code
// under two tables for each class, one for each quantiser. Thirty-two chains run side by side: coordinate i of a block
// belongs to chain i mod 32, as it does to coder i mod 32.
#pragma once
#include <vector>

#include "ecsq.h"
#include "ecsq_kernels.h"
#include "ectcq_code.h"

namespace commpress {

class EcsqClasses;

constexpr int64_t ECTCQ_LEAST_NBYTES = 8192;  // shorter segments are those of ecsq
constexpr int ECTCQ_LANES = 32;
constexpr int64_t ECTCQ_SPAN = 32;             // trellis blocks from one start of the chains to the next
constexpr int64_t ECTCQ_MOST_LEVEL = 6144;     // classes above that level (1/2048 octave) are uniformly quantised
constexpr int64_t ECTCQ_COARSER = 1704;        // with a step so much coarser, where a bit has the same price
constexpr int ECTCQ_INDICES = 32;              // |k| < ECTCQ_INDICES
constexpr float ECTCQ_MOST_MAGNITUDE = 60.0f;  // in steps, that the search knows
constexpr int ECTCQ_MOST_COST = 4095;          // of one choice in 1/256 squared step
constexpr uint32_t ECTCQ_FARTHEST = 63 * 256;  // in 1/256 step; beyond, a value is sent as it is

// What the wire says of a class. Level of index k of quantiser q: 2k - q + places[q][min(k, 3) - 1] / 128.
struct EctcqModel {
  int largest = 0, escape = 0;
  int8_t places[2][3] = {{0}};
  // Codes of the frequencies of k and -k, 1 .. largest; what is left is zero's, or with `ample` that of 1 and -1, and
  // then the code of 1 is zero's.
  uint8_t codes[2][ECTCQ_INDICES] = {{0}};
  bool ample[2] = {false, false};
  COMMPRESS_HD bool empty() const { return largest == 0 && !escape; }
  COMMPRESS_HD int64_t nbytes() const { return 7 + 2 * largest; }
};

// A frequency is a float of 5 bits: exact below 64.
COMMPRESS_HD int32_t ectcq_frequency(int code) { return code < 32 ? code : (32 + (code & 31)) << ((code >> 5) - 1); }

// In 1/4096 step; `place`: the three of quantiser q.
template <class Places>
COMMPRESS_HD int32_t ectcq_magnitude(const Places& place, int q, int k) {
  return k == 0 ? 0 : 4096 * (2 * k - q) + 32 * place[(k < 3 ? k : 3) - 1];
}
COMMPRESS_HD int64_t ectcq_level(const EctcqModel& m, int q, int k) { return ectcq_magnitude(m.places[q], q, k); }

// What was met of a class: for each 32 q + k the number << 40 | sum of magnitudes in 1/256 step, in four parts so that
// neighbours do not wait for each other; and the number of those beyond ECTCQ_FARTHEST for each q.
struct EctcqCounts {
  uint64_t parts[4][64] = {{0}};
  int64_t beyond[2] = {0};
  int64_t squares = 0;  // of those magnitudes

  uint64_t sum(int cell) const { return parts[0][cell] + parts[1][cell] + parts[2][cell] + parts[3][cell]; }
  int64_t number(int q, int k) const { return static_cast<int64_t>(sum(32 * q + k) >> 40); }
  int64_t magnitude(int q, int k) const { return static_cast<int64_t>(sum(32 * q + k) & ((uint64_t{1} << 40) - 1)); }
  void take_away(const EctcqCounts& other) {
    for (int i = 0; i < 256; ++i) parts[i / 64][i % 64] -= other.parts[i / 64][i % 64];
    for (int q = 0; q < 2; ++q) beyond[q] -= other.beyond[q];
    squares -= other.squares;
  }
};

// The model that fits, and its cost in 2^-16 bit, its own bytes and escaped values included.
EctcqModel ectcq_fit(const EctcqCounts& counts, int64_t& cost);

// What the search weighs: [2 quantiser + parity][|k| div 2], in 1/512 step and 1/256 squared step. |k| div 2 of a
// magnitude a is (a + offset) div 2048, at least 0.
struct EctcqTables {
  uint16_t levels[4][16], prices[4][16];
  int16_t offsets[4];
};
struct EctcqBlock {
  const float* x;
  const EctcqTables* tables;
  uint8_t* cells;  // 32 q + |k| of every coordinate
};

// What is sent of a value that has no symbol: its lowest bit is the parity of the index.
COMMPRESS_HD float ectcq_kept(float v, uint32_t parity) {
  constexpr float MOST = 0x1.fffffep99f;  // so that it stays below ECSQ_FARTHEST with its lowest bit set
  const float kept = v < -MOST ? -MOST : v > MOST ? MOST : v;
  return float_of((bits_of(kept) & ~1u) | parity);
}

struct EctcqClassCoder {
  int largest;
  bool empty;
  uint32_t entry[2][entropy::SYMBOLS];  // frequency | start << 16
  int64_t escaped = 0;                  // squares of magnitudes that have an index, but no symbol
};

struct EctcqClassDecoder {
  int largest;
  bool empty;
  std::vector<uint32_t> slots;  // 4096 for each quantiser: frequency | bias << 12 | symbol << 24; none if empty
  float values[2][entropy::SYMBOLS];
};

struct EctcqKernels {
  // At most ECTCQ_SPAN blocks, from state 0 on; `scratch` has ectcq_scratch_nbytes() bytes.
  void (*search)(int states, const EctcqBlock* blocks, int64_t count, float gain, float inverse, void* scratch);
  void (*count)(const EctcqBlock& block, float gain, float inverse, EctcqCounts& counts);
  // As EcsqKernels::encode.
  uint8_t* (*encode)(EctcqClassCoder& c, const EctcqBlock& block, float gain, float inverse, int64_t index,
                     uint32_t* states, uint8_t* out, std::vector<EcsqEscape>& escapes);
  // As EcsqKernels::decode; `at` are the states of the 32 chains, `parity` the floats of `left` escapes.
  void (*decode)(const EctcqCode& code, const EctcqClassDecoder& c, EcsqStream& stream, uint32_t* at,
                 const uint8_t* parity, int64_t left, float* z, std::vector<int32_t>& escapes);
};

const EctcqKernels& ectcq_kernels(Isa isa);

// Two bytes for each coordinate of a span, and two for each set of up to sixteen states.
constexpr int64_t ectcq_scratch_nbytes(int states) {
  return 2 * ECTCQ_SPAN * ECSQ_BLOCK * (1 + (states < 16 ? 1 : states / 16));
}

// False: there is not enough room, and nothing was written that counts.
bool ectcq_encode(const EcsqClasses& source, uint8_t* out, Isa isa);

}  // namespace commpress
