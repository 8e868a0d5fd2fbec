// What kernels may use beyond scalar code: under nvcc CUDA itself, elsewhere the emulator of tests/cuda/simt, which
// runs the same source on the host.
#pragma once
#include "hd.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define COMMPRESS_SHARED(T, name, N) __shared__ T name[N]
#define COMMPRESS_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#define COMMPRESS_DEVICE __device__ __forceinline__
#define COMMPRESS_SELDOM static __device__ __noinline__  // kept out of the way of what runs always
#define COMMPRESS_UNROLL_ALL _Pragma("unroll")
#define COMMPRESS_ROLLED _Pragma("unroll 1")
// An int that nothing is known about: what follows from it is computed where it is used, and takes no registers before.
#define COMMPRESS_OPAQUE(x) asm volatile("" : "+r"(x))
// Says of a pointer that it leads to global memory, which the compiler cannot know of one that was in memory itself.
#define COMMPRESS_GLOBAL(p) __builtin_assume(__isGlobal(p))
#else
#include "simt.h"
using cudaStream_t = void*;
#define COMMPRESS_SHARED(T, name, N) auto& name = simt::shared_array<T, N>([] {})
#define COMMPRESS_LAUNCH(kernel, grid, block, stream, ...) simt::launch(grid, block, [=] { kernel(__VA_ARGS__); })
#define COMMPRESS_DEVICE inline
#define COMMPRESS_SELDOM static __attribute__((noinline))
#define COMMPRESS_UNROLL_ALL
#define COMMPRESS_ROLLED
#define COMMPRESS_OPAQUE(x) (void)(x)
#define COMMPRESS_GLOBAL(p) (void)(p)
#endif

namespace commpress {
namespace cuda {

constexpr uint32_t ALL_LANES = 0xFFFFFFFFu;
constexpr uint32_t QUIET_NAN = 0x7FC00000u;

COMMPRESS_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
COMMPRESS_DEVICE int threads() { return static_cast<int>(blockDim.x); }
COMMPRESS_DEVICE int smaller(int a, int b) { return a < b ? a : b; }
COMMPRESS_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

// |x| as the bits of a float: integers order as floats do, with infinities and NaN on top.
COMMPRESS_DEVICE uint32_t magnitude(float x) { return bits_of(x) & 0x7FFFFFFFu; }

// The largest of the warp's values, in every lane.
COMMPRESS_DEVICE uint32_t warp_largest(uint32_t value) { return __reduce_max_sync(ALL_LANES, value); }

// The largest of the block's values, in every thread. `scratch`: a word per warp. Ends in step.
COMMPRESS_DEVICE uint32_t block_largest(uint32_t value, uint32_t* scratch) {
  value = warp_largest(value);
  if (thread() % 32 == 0) scratch[thread() / 32] = value;
  __syncthreads();
  uint32_t most = 0;
  for (int warp = 0; warp < threads() / 32; ++warp) most = larger(most, scratch[warp]);
  __syncthreads();
  return most;
}

// 32 bits from bit `shift` (0 to 31) of the 64-bit number high:low on.
COMMPRESS_DEVICE uint32_t window_of(uint32_t low, uint32_t high, int shift) {
  return __funnelshift_r(low, high, static_cast<uint32_t>(shift));
}

}  // namespace cuda
}  // namespace commpress
