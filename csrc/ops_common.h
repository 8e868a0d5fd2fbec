// What all operators share. The ops_*.cpp are the only files that know torch: schemas, argument checks, dispatch.
// Stable ABI, so that one shared object serves every torch from 2.10 on.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "kernels/kernels.h"
#include "kernels/reduce.h"

namespace commpress {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A ParallelFor (kernels/parallel.h) on torch's threads.
inline void torch_parallel(int64_t count, int64_t grain, void (*body)(void*, int64_t, int64_t), void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

inline Isa isa_of(int64_t isa) {
  if (isa < 0) return best_isa();
  STD_TORCH_CHECK(isa <= 2 && isa_available(static_cast<Isa>(isa)), "commpress: code path ", isa,
                  " is not available on this machine");
  return static_cast<Isa>(isa);
}

inline Key key_of(int64_t seed, int64_t step, int64_t sender_phase, int64_t tensor) {
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(step), static_cast<uint32_t>(sender_phase),
          static_cast<uint32_t>(tensor)};
}

inline void check_kinds(const Tensor& values, const Tensor& payload) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float && values.dim() == 1 && values.is_contiguous(),
                  "commpress: values must be a contiguous 1-D float32 tensor");
  STD_TORCH_CHECK(payload.scalar_type() == ScalarType::Byte && payload.dim() == 1 && payload.is_contiguous(),
                  "commpress: a payload must be a contiguous 1-D uint8 tensor");
}

// -1, or -2 if the result is not finite, or the position of an invalid payload.
inline int64_t code_of(const Outcome& outcome) {
  return outcome.invalid >= 0 ? outcome.invalid : outcome.finite ? -1 : -2;
}

// Several payloads of the same coordinates, and the keys that encoded them.
struct Senders {
  std::vector<Key> keys;
  std::vector<const uint8_t*> from;
};

inline Senders senders_of(const std::vector<Tensor>& payloads, const std::vector<int64_t>& sender_phases, Key key,
                          int64_t byte = 0) {
  STD_TORCH_CHECK(payloads.size() == sender_phases.size() && !payloads.empty(),
                  "commpress: as many senders as payloads, and at least one, got ", payloads.size(), " payloads");
  Senders senders;
  for (size_t i = 0; i < payloads.size(); ++i) {
    key.sender_phase = static_cast<uint32_t>(sender_phases[i]);
    senders.keys.push_back(key);
    senders.from.push_back(payloads[i].const_data_ptr<uint8_t>() + byte);
  }
  return senders;
}

}  // namespace commpress
