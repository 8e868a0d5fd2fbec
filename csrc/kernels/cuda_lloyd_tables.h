// The Lloyd-Max tables in device memory, and the look-ups of the fast way, by magnitude: the quantisers are symmetric.
#pragma once
#include "cuda_device.h"
#include "quantise.h"

namespace commpress {
namespace cuda {

template <int B>
struct LloydTables {
  static constexpr int CELLS = LloydMax<B>::CELLS, HALF = 1 << (B - 1);
  struct alignas(8) Cell {
    float threshold;  // in this cell, or out of reach
    int32_t code4;    // four times the code of what lies below it
  };
  Cell cell[CELLS];
  float product_level[HALF];  // of the codes for what is not negative
  float level[2 * HALF];
};
template <int B>
constexpr LloydTables<B> make_tables() {
  using L = LloydMax<B>;
  using Tables = LloydTables<B>;
  Tables tables{};
  for (int i = 0; i < L::CELLS; ++i) tables.cell[i] = {L::CELL_THRESHOLD[L::CELLS + i], 4 * L::CELL_BASE[L::CELLS + i]};
  for (int i = 0; i < Tables::HALF; ++i) tables.product_level[i] = L::PRODUCT_LEVEL[Tables::HALF + i];
  for (int i = 0; i < 2 * Tables::HALF; ++i) tables.level[i] = L::LEVEL[i];
  return tables;
}

#if defined(__CUDACC__)
template <int B>
__device__ const LloydTables<B> LLOYD_TABLES = make_tables<B>();
#else
template <int B>
static constexpr LloydTables<B> LLOYD_TABLES = make_tables<B>();
#endif

struct Coded {
  int32_t code4;  // four times the code, as lloyd_code() of quantise.h gives it: what addresses a word needs no shift
  float product;  // v times the code's PRODUCT_LEVEL
};
template <int B>
COMMPRESS_DEVICE Coded coded(const LloydTables<B>& tables, float v) {
  constexpr int half = 1 << (B - 1);
  const float a = fabsf(v);
  int32_t code4 = 4 * half;  // of the magnitude
  float level = LloydMax<B>::PRODUCT_LEVEL[half];
  if constexpr (B == 2 || B == 3) {  // fewer comparisons than a look-up takes
    constexpr float first = positive_threshold<B>(0), second = positive_threshold<B>(B == 3 ? 1 : 0),
                    third = positive_threshold<B>(B == 3 ? 2 : 0);
    constexpr float above[4] = {LloydMax<B>::PRODUCT_LEVEL[half], LloydMax<B>::PRODUCT_LEVEL[half + 1],
                                LloydMax<B>::PRODUCT_LEVEL[half + (B == 3 ? 2 : 1)],
                                LloydMax<B>::PRODUCT_LEVEL[half + (B == 3 ? 3 : 1)]};
    code4 += a >= first ? 4 : 0;
    level = a >= first ? above[1] : level;
    if (B == 3) {
      code4 += (a >= second ? 4 : 0) + (a >= third ? 4 : 0);
      level = a >= third ? above[3] : a >= second ? above[2] : level;
    }
  } else if constexpr (B > 3) {
    const auto cell = tables.cell[__float2int_rz(fminf(a, LloydMax<B>::CELLS - 0.0625f))];
    code4 = cell.code4 + (a >= cell.threshold ? 4 : 0);
    level = *reinterpret_cast<const float*>(reinterpret_cast<const char*>(tables.product_level) + (code4 - 4 * half));
  }
  return {v < 0.0f ? code4 ^ (4 * (2 * half - 1)) : code4, a * level};
}

}  // namespace cuda
}  // namespace commpress
