// Atomic operations. CUDA's own are relaxed: to ThreadSanitizer they order nothing but themselves. For the types that
// nvcc has overloads for, and no others.
#pragma once
#include <type_traits>

namespace simt {

// What another thread wrote before store_release is seen after load_acquire has read the stored value. Kernels reach
// them through wrappers that are PTX under nvcc.
template <class T>
T load_acquire(const T* address) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}
template <class T>
void store_release(T* address, T value) {
  __atomic_store_n(address, value, __ATOMIC_RELEASE);
}

template <class T, class... Others>
constexpr bool is_one_of = (std::is_same_v<T, Others> || ...);

template <class T>
constexpr bool is_atomic_word = is_one_of<T, int, unsigned, unsigned long long>;

// Replaces the value by `change(value)`, and gives the one before.
template <class T, class Change>
T atomic_change(T* address, Change change) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(address, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

// A parameter of this type takes no part in the deduction of T: atomicAdd(&counter, 1) works on unsigned counters.
template <class T>
using Value = std::common_type_t<T>;

}  // namespace simt

template <class T>
T atomicAdd(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T> || simt::is_one_of<T, float, double>);
  if constexpr (std::is_integral_v<T>) return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  return simt::atomic_change(address, [=](T before) { return before + value; });
}
template <class T>
T atomicAnd(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T>);
  return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T>);
  return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicXor(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T>);
  return __atomic_fetch_xor(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicExch(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T> || std::is_same_v<T, float>);
  return simt::atomic_change(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::Value<T> expected, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T> || std::is_same_v<T, unsigned short>);
  __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T>
T atomicMax(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T> || std::is_same_v<T, long long>);
  return simt::atomic_change(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
T atomicMin(T* address, simt::Value<T> value) {
  static_assert(simt::is_atomic_word<T> || std::is_same_v<T, long long>);
  return simt::atomic_change(address, [=](T before) { return value < before ? value : before; });
}
