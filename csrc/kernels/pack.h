// Bit packing (docs/wire-format.md section 3): vector form for full groups, bit strings for shorter runs. Include after
// a lanes_*.h.
#pragma once
#include <utility>

namespace commpress {
namespace COMMPRESS_ISA {

#define COMMPRESS_INLINE inline __attribute__((always_inline))

// f(i) for i = 0 .. N-1. Where lanes are registers, i is an integral_constant and the calls are unrolled; in portable
// C++ it is an int and this is a loop.
#if defined(COMMPRESS_UNROLL)
template <class F, int... I>
static COMMPRESS_INLINE void each(std::integer_sequence<int, I...>, F&& f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, class F>
static COMMPRESS_INLINE void each(F&& f) {
  each(std::make_integer_sequence<int, N>{}, f);
}
#else
template <int N, class F>
static COMMPRESS_INLINE void each(F&& f) {
  for (int i = 0; i < N; ++i) f(i);
}
#endif

// Rows far apart defeat the hardware's prefetchers, so the next block is asked for by hand. A prefetch may point
// anywhere.
static COMMPRESS_INLINE void prefetch_line(const float* p) { __builtin_prefetch(p, 0, 2); }
static COMMPRESS_INLINE void prefetch_line_to_write(const float* p) { __builtin_prefetch(p, 1, 2); }

// Puts the codes of a row of a group into the group's B words per lane; rows come in order.
template <int B>
static COMMPRESS_INLINE void put(Ints (&words)[B], int row, Ints code) {
  const int k = row * B / 32, shift = row * B % 32;
  words[k] = shift == 0 ? code : kept(words[k] | shift_left(code, shift));
  if (shift + B > 32) words[k + 1] = shift_right(code, 32 - shift);
}

// The same for a code that lies in the top B bits of its lane, whatever the bits below hold.
template <int B>
static COMMPRESS_INLINE void put_top(Ints (&words)[B], int row, Ints top) {
  const int k = row * B / 32, shift = row * B % 32, end = shift + B;
  constexpr uint32_t ones = (1u << B) - 1;
  if (shift == 0) {
    words[k] = shift_right(top, 32 - B);
  } else if (end == 32) {
    words[k] = merge(words[k], top, ones << shift);
  } else if (end < 32) {
    words[k] = merge(words[k], shift_right(top, 32 - end), ones << shift);
  } else {
    words[k] = merge(words[k], shift_left(top, end - 32), ones << shift);
    words[k + 1] = shift_right(top, 64 - end);
  }
}

// The codes of a row, with whatever lies above them left in the upper bits.
template <int B>
static COMMPRESS_INLINE Ints get(const Ints (&words)[B], int row) {
  const int k = row * B / 32, shift = row * B % 32;
  if (shift == 0) return words[k];
  return shift + B > 32 ? shift_right(words[k], shift) | shift_left(words[k + 1], 32 - shift)
                        : shift_right(words[k], shift);
}

// The codes of a row as signed numbers, where B divides 32.
template <int B>
static COMMPRESS_INLINE Ints get_signed(const Ints (&words)[B], int row) {
  static_assert(32 % B == 0, "a code lies in one word");
  const int k = row * B / 32, shift = row * B % 32;
  return shift_right_signed(shift + B == 32 ? words[k] : shift_left(words[k], 32 - B - shift), 32 - B);
}

[[maybe_unused]] static void pack_string(const uint32_t* codes, int64_t n, int bits, uint8_t* out) {
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0; i < n; ++i) {
    pending |= static_cast<uint64_t>(codes[i]) << held;
    for (held += bits; held >= 8; held -= 8, pending >>= 8) *out++ = static_cast<uint8_t>(pending);
  }
  if (held) *out = static_cast<uint8_t>(pending);
}

[[maybe_unused]] static void unpack_string(const uint8_t* in, int64_t n, int bits, uint32_t* codes) {
  const uint32_t mask = ~0u >> (32 - bits);
  uint64_t pending = 0;
  int held = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (; held < bits; held += 8) pending |= static_cast<uint64_t>(*in++) << held;
    codes[i] = static_cast<uint32_t>(pending) & mask;
    pending >>= bits;
    held -= bits;
  }
}

// Calls f(integral_constant<int, bits>).
template <class F>
static COMMPRESS_INLINE void with_bits(int bits, F&& f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    case 6:
      return f(std::integral_constant<int, 6>{});
    case 7:
      return f(std::integral_constant<int, 7>{});
    default:
      return f(std::integral_constant<int, 8>{});
  }
}

// What a decoder does with a value: write it, write it past the caches (it is so much that it would drive out
// everything else), add it to what is there, or add it to beta times what is there.
enum class Delivery { WRITE, STREAM, ADD, BLEND };
struct Sink {
  Delivery delivery;
  float gain, beta;
};

static COMMPRESS_INLINE Delivery delivery_of(bool accumulate, bool stream, float beta) {
  return accumulate ? beta == 1.0f ? Delivery::ADD : Delivery::BLEND : stream ? Delivery::STREAM : Delivery::WRITE;
}

template <Delivery DELIVERY>
static COMMPRESS_INLINE void deliver(float* out, Floats value, Floats beta) {
  if constexpr (DELIVERY == Delivery::BLEND)
    store(out, load(out) * beta + value);
  else if constexpr (DELIVERY == Delivery::ADD)
    store(out, load(out) + value);
  else if constexpr (DELIVERY == Delivery::STREAM)
    store_past_caches(out, value);
  else
    store(out, value);
}

// Calls f(integral_constant<Delivery, delivery>).
template <class F>
static COMMPRESS_INLINE void with_delivery(Delivery delivery, F&& f) {
  switch (delivery) {
    case Delivery::WRITE:
      return f(std::integral_constant<Delivery, Delivery::WRITE>{});
    case Delivery::STREAM:
      return f(std::integral_constant<Delivery, Delivery::STREAM>{});
    case Delivery::ADD:
      return f(std::integral_constant<Delivery, Delivery::ADD>{});
    default:
      return f(std::integral_constant<Delivery, Delivery::BLEND>{});
  }
}

static COMMPRESS_INLINE void deliver(float* out, float value, const Sink& sink) {
  *out = sink.delivery == Delivery::ADD     ? *out + value
         : sink.delivery == Delivery::BLEND ? *out * sink.beta + value
                                            : value;
}

[[maybe_unused]] static void deliver_constant(float* out, int64_t n, float value, const Sink& sink) {
  for (int64_t i = 0; i < n; ++i) deliver(out + i, value, sink);
}

}  // namespace COMMPRESS_ISA
}  // namespace commpress
