// Collectives of a warp. None but __syncwarp orders memory.
#pragma once
#include "engine.h"

namespace simt {

// nvcc has overloads for these sizes alone.
template <class T>
uint64_t bits_of_lane(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T shuffle(Operation operation, unsigned mask, T value, unsigned parameter, int width, Site site) {
  const uint64_t bits = collective(operation, mask, bits_of_lane(value), parameter, width, site);
  T result;
  __builtin_memcpy(&result, &bits, sizeof(T));
  return result;
}

inline uint32_t reduce(Operation operation, unsigned mask, uint32_t value, Site site) {
  return static_cast<uint32_t>(collective(operation, mask, value, 0, 32, site));
}

inline unsigned vote(unsigned mask, bool predicate, Site site) {
  return static_cast<unsigned>(collective(Operation::VOTE, mask, predicate, 0, 32, site));
}

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, simt::Site site = simt::Site::here()) {
  simt::collective(simt::Operation::SYNCWARP, mask, 0, 0, 32, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::vote(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::vote(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return simt::vote(mask, predicate == 0, site) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, simt::Site site = simt::Site::here()) {
  return simt::shuffle(simt::Operation::SHUFFLE, mask, value, static_cast<unsigned>(lane), width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, simt::Site site = simt::Site::here()) {
  return simt::shuffle(simt::Operation::SHUFFLE_UP, mask, value, distance, width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, simt::Site site = simt::Site::here()) {
  return simt::shuffle(simt::Operation::SHUFFLE_DOWN, mask, value, distance, width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, simt::Site site = simt::Site::here()) {
  return simt::shuffle(simt::Operation::SHUFFLE_XOR, mask, value, static_cast<unsigned>(lanes), width, site);
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::here()) {
  return static_cast<unsigned>(simt::collective(simt::Operation::MATCH, mask, simt::bits_of_lane(value), 0, 32, site));
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_ADD, mask, value, site);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_MIN, mask, value, site);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_MAX, mask, value, site);
}
inline int __reduce_add_sync(unsigned mask, int value, simt::Site site = simt::Site::here()) {
  return static_cast<int>(simt::reduce(simt::Operation::REDUCE_ADD, mask, static_cast<uint32_t>(value), site));
}
inline int __reduce_min_sync(unsigned mask, int value, simt::Site site = simt::Site::here()) {
  return static_cast<int>(simt::reduce(simt::Operation::REDUCE_MIN_SIGNED, mask, static_cast<uint32_t>(value), site));
}
inline int __reduce_max_sync(unsigned mask, int value, simt::Site site = simt::Site::here()) {
  return static_cast<int>(simt::reduce(simt::Operation::REDUCE_MAX_SIGNED, mask, static_cast<uint32_t>(value), site));
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_AND, mask, value, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_OR, mask, value, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, simt::Site site = simt::Site::here()) {
  return simt::reduce(simt::Operation::REDUCE_XOR, mask, value, site);
}
