// The emulator's interface: schedules, launches, shared arrays, and the calls under the intrinsics. What it checks:
//   warp collectives   lanes meet per warp and mask; the mask holds the caller and no lane that has exited, and all of
//                      them come from the same call of the same operation
//   barriers           every thread of the block arrives, at the same line
//   progress           a deadlock is reported with what each thread waits for, and so is a polling loop that never ends
//   shared memory      filled with a chosen byte before use, at most 48 KB, guarded on both sides of each array
//   stacks             256 KB for each thread, with a guard word
// AddressSanitizer sees the edges of shared arrays and each thread's stack. To ThreadSanitizer every CUDA thread is a
// thread of its own, and only __syncthreads, __syncwarp and acquire with release order one before another, so it
// reports races inside of a block and between blocks. An error prints a line that begins with "simt: ERROR" and aborts.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#if __has_include(<source_location>)
#include <source_location>
#endif

#include "types.h"

namespace simt {

enum class Order {
  IN_ORDER,  // the first lane, warp and block that can run
  REVERSED,  // the last
  RANDOM,    // any of them, drawn anew at every wait and after every collective
};

struct Schedule {
  Order order = Order::IN_ORDER;
  uint64_t seed = 0;  // of RANDOM
  // Blocks that have begun and not ended. ThreadSanitizer has room for about 6,000 threads in them.
  unsigned blocks_in_flight = 1;
  uint8_t shared_fill = 0xA5;  // every byte of shared memory that nothing has written yet
};

// Of every launch from here on.
void set_schedule(const Schedule& schedule);

void run(dim3 grid, dim3 block, void (*body)(void*), void* argument);

// Calls `kernel()` once for each thread and returns when all have ended. Launches from several host threads take turns.
template <class Kernel>
void launch(dim3 grid, dim3 block, Kernel&& kernel) {
  using Callable = std::remove_reference_t<Kernel>;
  run(
      grid, block, [](void* argument) { (*static_cast<Callable*>(argument))(); },
      const_cast<void*>(static_cast<const void*>(&kernel)));
}

void* shared_memory(const void* key, size_t nbytes, size_t alignment);

template <class T, size_t N>
using Array = T[N];

// The running block's array of this place in the source, named by the type of a lambda that is written there.
template <class T, size_t N, class Place>
Array<T, N>& shared_array(Place) {
  static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 128);
  static const char key = 0;
  return *static_cast<Array<T, N>*>(shared_memory(&key, sizeof(T) * N, alignof(T)));
}

// ---- under the intrinsics ----

// Where a call stands. Of a function template each instance is a place of its own: to a GPU these are different
// instructions, which lanes of one warp may not mix. (Older compilers don't tell instances apart.)
#if defined(__cpp_lib_source_location)
#define SIMT_FUNCTION std::source_location::current().function_name()
#else
#define SIMT_FUNCTION ""
#endif
struct Site {
  const char* file;
  int line;
  const char* function = "";
  // As a default argument of a function: where that function is called.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                             const char* function = SIMT_FUNCTION) {
    return {file, line, function};
  }
};

struct Thread {
  uint3 thread_index, block_index;
};
extern Thread* current;
extern dim3 grid_size, block_size;

enum class Operation : uint8_t {
  SYNCWARP,
  VOTE,
  SHUFFLE,
  SHUFFLE_UP,
  SHUFFLE_DOWN,
  SHUFFLE_XOR,
  MATCH,
  REDUCE_ADD,
  REDUCE_MIN,
  REDUCE_MAX,
  REDUCE_MIN_SIGNED,
  REDUCE_MAX_SIGNED,
  REDUCE_AND,
  REDUCE_OR,
  REDUCE_XOR,
};

// Waits for the lanes of `mask`, then gives this lane its result. `parameter` and `width` are those of shuffles.
uint64_t collective(Operation operation, unsigned mask, uint64_t value, unsigned parameter, int width, Site site);

// Waits for the threads of the block, and counts those whose `predicate` holds.
int barrier(bool predicate, Site site);

// Lets other threads run: a polling loop ends only if they do.
void yield(Site site);

[[noreturn]] void trap(Site site);

}  // namespace simt
