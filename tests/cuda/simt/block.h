// Barriers, fences and pauses of a block.
#pragma once
#include "engine.h"

inline void __syncthreads(simt::Site site = simt::Site::here()) { simt::barrier(false, site); }
inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::here()) {
  return simt::barrier(predicate == 0, site) == 0;
}

// Threads take turns on one host thread, so memory is never out of order. To ThreadSanitizer a fence orders nothing: it
// knows no fences, and a flag must be written with release and read with acquire (atomics.h).
inline void __threadfence() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

inline void __nanosleep(unsigned, simt::Site site = simt::Site::here()) { simt::yield(site); }
[[noreturn]] inline void __trap(simt::Site site = simt::Site::here()) { simt::trap(site); }
