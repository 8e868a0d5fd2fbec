// Stacks, the switch between them, and what the sanitizers must be told about both. The engine itself is compiled
// without sanitizers, with SIMT_ASAN or SIMT_TSAN defined to say which one the kernels are compiled with.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#endif
#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {

constexpr size_t STACK_NBYTES = 256 << 10;
// At a power of two the tops of all stacks would share one set of each cache.
constexpr size_t STACK_STRIDE = STACK_NBYTES + 17 * 64;

struct Context {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // its lowest byte; of the host's stack only AddressSanitizer knows
  size_t stack_nbytes = 0;
  void* sanitizer = nullptr;  // ThreadSanitizer's fiber, or AddressSanitizer's fake stack
};

// The first switch to the context calls `entry`, which begins with finish_first_switch and never returns.
void prepare(Context& context, char* stack, void (*entry)());
bool stack_guard_holds(const Context& context);
void dispose(Context& context);

// Makes the caller's own context one that can be switched to.
void adopt_host(Context& host);

void switch_context(Context& from, Context& to, bool from_ends);
void finish_first_switch(Context& host);

// Zeros. To ThreadSanitizer the memory has no past, even where the same addresses had.
char* map_memory(size_t nbytes);
void unmap_memory(char* memory, size_t nbytes);

// What happened before a release at an address happens before what follows an acquire there.
#if defined(SIMT_TSAN)
inline void order_release(void* address) { __tsan_release(address); }
inline void order_acquire(void* address) { __tsan_acquire(address); }
#else
inline void order_release(void*) {}
inline void order_acquire(void*) {}
#endif

#if defined(SIMT_ASAN)
inline void poison(void* address, size_t nbytes) { __asan_poison_memory_region(address, nbytes); }
inline void unpoison(void* address, size_t nbytes) { __asan_unpoison_memory_region(address, nbytes); }
#else
inline void poison(void*, size_t) {}
inline void unpoison(void*, size_t) {}
#endif

}  // namespace simt
