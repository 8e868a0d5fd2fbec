// What of the kernels of the bitshift trellis is tested by itself, under the emulator.
#pragma once
#include <cstdint>

namespace commpress {
namespace cuda {

// The node of least cost of the first 2^digits, as each of TRELLIS_THREADS threads finds it; digits <= 11, so that they
// are in shared memory.
void best_nodes(const float* costs, int digits, int32_t* found);

}  // namespace cuda
}  // namespace commpress
