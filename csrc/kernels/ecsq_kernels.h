// The loops of the entropy-coded quantisers over one block of 512 coordinates, which each code path brings.
#pragma once
#include <vector>

#include "entropy_model.h"
#include "kernels.h"

namespace commpress {

constexpr int64_t ECSQ_BLOCK = 512;  // coordinates that share a class
constexpr float ECSQ_MOST = 4194304.0f, ECSQ_FARTHEST = 0x1p100f;

struct EcsqQuantiser {
  float gain, inverse, offset;
  int raw;
  bool dither;
};

struct EcsqEscape {
  int64_t index;
  float value;  // in steps
};

// What the encoder keeps for one class. Sums are over coordinates with a symbol, by magnitude 1, 2 and beyond; w =
// rint(256 |v|).
struct EcsqClassCoder {
  EcsqQuantiser quantiser;
  int largest;
  bool empty, folded;
  uint32_t entry[entropy::CELLS][entropy::SYMBOLS];  // frequency | start << 16
  int64_t n1 = 0, n2 = 0, n3 = 0, w1 = 0, w2 = 0, w3 = 0, q3 = 0, x3 = 0, squares = 0;
};

struct EcsqClassDecoder {
  int raw, largest;
  bool empty, folded, dither;
  std::vector<uint32_t> slots;     // 4096 for each row: frequency | bias << 12 | symbol << 24; none if empty
  float values[entropy::SYMBOLS];  // of each symbol, without dither and raw bits
};

struct EcsqStream {
  const uint8_t *in, *end;
  int lanes;
  uint32_t states[32];
};

struct EcsqKernels {
  // Sum of magnitudes and bits of the largest, for one block.
  void (*statistics)(const float* x, int64_t n, float& sum, uint32_t& largest);
  // Adds the symbols of a block; without dither those of magnitudes alone, at 32 + magnitude.
  void (*count)(const EcsqQuantiser& q, const float* x, const int32_t* w, int64_t n, entropy::Counts& counts);
  // The same for coordinates whose symbol is alike under both quantisers, and so under any whose inverse and offset lie
  // between theirs; values and dithers of all others go to `open` and `open_w`. Returns how many; eight more entries
  // may be overwritten.
  int64_t (*settle)(const EcsqQuantiser& least, const EcsqQuantiser& most, const float* x, const int32_t* w, int64_t n,
                    entropy::Counts& counts, float* open, int32_t* open_w);
  // Writes downwards from `out`; 2 n bytes must be free below. Appends escapes; writes packed low bits to `low`.
  uint8_t* (*encode)(EcsqClassCoder& c, const float* x, const int32_t* w, int64_t n, int64_t index, uint32_t* states,
                     int lanes, uint8_t* out, uint8_t* low, std::vector<EcsqEscape>& escapes);
  // Values in steps (with dither or raw bits) or as `values` says; positions of escapes. With 32 lanes sixteen bytes
  // behind the low bits may be read.
  void (*decode)(const EcsqClassDecoder& c, EcsqStream& stream, const int32_t* w, const uint8_t* low, int64_t n,
                 float* z, std::vector<int32_t>& escapes);
  void (*dither)(const Key& key, int64_t index, int64_t n, int32_t* w);
  // From x to y, which may be x; n is a power of two from 128 to 4096.
  void (*rotate)(const float* x, float* y, int64_t n, const Key& key, int64_t index);
  // z = factor z, but no infinity.
  void (*scale)(float* z, int64_t n, double factor);
  // Copies to memory that is a multiple of 64 bytes past the caches, where the machine can do that; n is a multiple
  // of 16.
  void (*stream)(const float* z, int64_t n, float* out);
  // out = beta * out + z
  void (*accumulate)(const float* z, int64_t n, float beta, float* out);
  void (*finish_stream)();
  void (*unrotate)(float* x, int64_t n, const Key& key, int64_t index);
};

const EcsqKernels& ecsq_kernels(Isa isa);

}  // namespace commpress
