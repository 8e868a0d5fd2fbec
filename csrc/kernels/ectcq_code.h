// The codes of `trellis`: Ungerboeck's systematic feedback codes of one dimension ("Channel coding with
// multilevel/phase signals", 1982; "Trellis-coded modulation with redundant signal sets", 1987).
#pragma once
#include "hd.h"

namespace commpress {

// The quantiser in force is the lowest bit of the state; an index moves the state by its parity. With polynomials h0,
// h1 of the parity check, `feedback` is h0 div 2 and `parity` h1 div 2.
struct EctcqCode {
  int states;
  uint32_t feedback, parity;

  COMMPRESS_HD uint32_t next(uint32_t state, uint32_t odd) const {
    return state >> 1 ^ (state & 1 ? feedback : 0) ^ (odd ? parity : 0);
  }
};

constexpr EctcqCode ECTCQ_CODES[] = {{8, 013 >> 1, 04 >> 1},      {16, 023 >> 1, 04 >> 1},
                                     {32, 045 >> 1, 010 >> 1},    {64, 0103 >> 1, 024 >> 1},
                                     {128, 0235 >> 1, 0126 >> 1}, {256, 0515 >> 1, 0362 >> 1}};

// Null if there is none of so many states.
constexpr const EctcqCode* ectcq_code(int64_t states) {
  for (const EctcqCode& code : ECTCQ_CODES)
    if (code.states == states) return &code;
  return nullptr;
}

// The code of so many states, which there is, where the table cannot be read: on a device.
COMMPRESS_HD EctcqCode ectcq_code_of_states(int states) {
  constexpr EctcqCode of8 = ECTCQ_CODES[0], of16 = ECTCQ_CODES[1], of32 = ECTCQ_CODES[2], of64 = ECTCQ_CODES[3],
                      of128 = ECTCQ_CODES[4], of256 = ECTCQ_CODES[5];
  return states == 8     ? of8
         : states == 16  ? of16
         : states == 32  ? of32
         : states == 64  ? of64
         : states == 128 ? of128
                         : of256;
}

// The other way: both predecessors of a state have its highest bit as their lowest, and differ in the parity that leads
// on from them.
template <int STATES>
struct EctcqTrellis {
  static constexpr EctcqCode CODE = *ectcq_code(STATES);
  static constexpr int HIGHEST = STATES == 8     ? 2
                                 : STATES == 16  ? 3
                                 : STATES == 32  ? 4
                                 : STATES == 64  ? 5
                                 : STATES == 128 ? 6
                                                 : 7;
  static COMMPRESS_HD constexpr uint32_t quantiser(uint32_t state) { return state >> HIGHEST; }
  static COMMPRESS_HD constexpr uint32_t from(uint32_t state, uint32_t odd) {
    const uint32_t q = quantiser(state);
    return (state ^ (q ? CODE.feedback : 0) ^ (odd ? CODE.parity : 0)) << 1 | q;
  }
};

}  // namespace commpress
