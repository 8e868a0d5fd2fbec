// Entropy coders: one step of rANS (Duda 2013; Giesen 2014), and an adaptive binary coder for the classes of blocks.
#pragma once
#include <cstdint>

#include "hd.h"

namespace commpress {
namespace entropy {

constexpr uint32_t RANS_LOW = 1u << 16;  // states lie in [2^16, 2^32)
constexpr int MOST_LANES = 32;

// The decoder's step; words beyond `end` are zero.
inline uint32_t rans_advance(uint32_t x, uint32_t frequency, uint32_t bias, const uint8_t*& in, const uint8_t* end) {
  x = frequency * (x >> 12) + bias;
  if (x < RANS_LOW) {
    uint32_t word = 0;
    if (end - in >= 2) {
      word = in[0] | static_cast<uint32_t>(in[1]) << 8;
      in += 2;
    }
    x = x << 16 | word;
  }
  return x;
}

// The encoder's: a state that is full gives a word away first. `out` moves down. Two bytes must be free below it.
COMMPRESS_HD bool rans_full(uint32_t x, uint32_t frequency) { return x >> 20 >= frequency; }
COMMPRESS_HD uint32_t rans_after(uint32_t x, uint32_t frequency, uint32_t start) {
  return (x / frequency << 12) + x % frequency + start;
}
inline uint32_t rans_put(uint32_t x, uint32_t frequency, uint32_t start, uint8_t*& out) {
  if (rans_full(x, frequency)) {
    out -= 2;
    out[0] = static_cast<uint8_t>(x);
    out[1] = static_cast<uint8_t>(x >> 8);
    x >>= 16;
  }
  return rans_after(x, frequency, start);
}

enum Kind : int16_t { KIND_ZERO = -1, KIND_NAN = -2 };  // beside the classes 0, 1, ...

// Adaptive probabilities, 65536 times that of a 1: special or not, which special, same class, direction, magnitude.
struct ClassContexts {
  uint32_t special[2], which[1], other[3], up[3], more[8];
  int was_special, last, change;

  COMMPRESS_HD void begin() {
    special[0] = which[0] = other[0] = 2048;
    special[1] = 61440;
    other[1] = 8192;
    other[2] = 16384;
    for (uint32_t& p : up) p = 32768;
    for (uint32_t& p : more) p = 32768;
    was_special = last = change = 0;
  }
  COMMPRESS_HD void moved(int kind) {
    was_special = kind < 0;
    if (kind < 0) return;
    change = kind - last;
    last = kind;
  }
  COMMPRESS_HD int size() const { return change < -1 || change > 1 ? 2 : change != 0; }
  COMMPRESS_HD int direction() const { return change == 0 ? 0 : change > 0 ? 1 : 2; }
};

COMMPRESS_HD void learn(uint32_t& p, bool bit) {
  if (bit)
    p += (65536 - p) >> 5;
  else
    p -= p >> 5;
}

// put(byte) for each byte.
template <class Put>
class BinaryEncoder {
 public:
  COMMPRESS_HD explicit BinaryEncoder(Put& put) : put_(put) {}
  COMMPRESS_HD void bit(uint32_t& p, bool value) {
    const uint32_t middle = low_ + static_cast<uint32_t>((static_cast<uint64_t>(high_ - low_) * p) >> 16);
    (value ? high_ : low_) = value ? middle : middle + 1;
    learn(p, value);
    while (!((low_ ^ high_) >> 24)) {
      put_(static_cast<uint8_t>(high_ >> 24));
      low_ <<= 8;
      high_ = high_ << 8 | 0xFF;
    }
  }
  COMMPRESS_HD void finish() { put_(static_cast<uint8_t>((low_ >> 24) + 1)); }

 private:
  Put& put_;
  uint32_t low_ = 0, high_ = 0xFFFFFFFFu;
};

class BinaryDecoder {
 public:
  COMMPRESS_HD void begin(const uint8_t* in, int64_t nbytes) {
    in_ = in;
    left_ = static_cast<uint32_t>(nbytes);
    low_ = code_ = 0;
    high_ = 0xFFFFFFFFu;
    for (int i = 0; i < 4; ++i) code_ = code_ << 8 | next();
  }
  COMMPRESS_HD bool bit(uint32_t& p) {
    const uint32_t middle = low_ + static_cast<uint32_t>((static_cast<uint64_t>(high_ - low_) * p) >> 16);
    const bool value = code_ <= middle;
    (value ? high_ : low_) = value ? middle : middle + 1;
    learn(p, value);
    while (!((low_ ^ high_) >> 24)) {
      low_ <<= 8;
      high_ = high_ << 8 | 0xFF;
      code_ = code_ << 8 | next();
    }
    return value;
  }

 private:
  COMMPRESS_HD uint32_t next() {
    if (left_ == 0) return 0;
    --left_;
    return *in_++;
  }
  const uint8_t* in_;
  uint32_t left_, low_, high_, code_;
};

// Classes of n blocks; put(byte) for each byte. What `c` held before does not matter.
template <class Kinds, class Put>
COMMPRESS_HD void encode_classes(const Kinds& kinds, int64_t n, ClassContexts& c, Put&& put) {
  c.begin();
  BinaryEncoder<Put> coder(put);
  for (int64_t b = 0; b < n; ++b) {
    const int kind = kinds[b];
    coder.bit(c.special[c.was_special], kind < 0);
    if (kind < 0) {
      coder.bit(c.which[0], kind == KIND_NAN);
    } else {
      const int d = kind - c.last, size = d < 0 ? -d : d;
      coder.bit(c.other[c.size()], d != 0);
      if (d) coder.bit(c.up[c.direction()], d > 0);
      for (int i = 1; i < size; ++i) coder.bit(c.more[i < 8 ? i - 1 : 7], true);
      if (d) coder.bit(c.more[size < 8 ? size - 1 : 7], false);
    }
    c.moved(kind);
  }
  coder.finish();
}

// The next block's; false where it is out of range.
COMMPRESS_HD bool decode_class(ClassContexts& c, BinaryDecoder& coder, int classes, int& kind) {
  kind = c.last;
  if (coder.bit(c.special[c.was_special])) {
    kind = coder.bit(c.which[0]) ? KIND_NAN : KIND_ZERO;
  } else {
    if (coder.bit(c.other[c.size()])) {
      const int sign = coder.bit(c.up[c.direction()]) ? 1 : -1;
      int size = 1;
      while (coder.bit(c.more[size < 8 ? size - 1 : 7]))
        if (++size > classes) return false;
      kind += sign * size;
    }
    if (kind < 0 || kind >= classes) return false;
  }
  c.moved(kind);
  return true;
}

// False where a class is out of range.
inline bool decode_classes(const uint8_t* in, int64_t nbytes, int classes, int16_t* kinds, int64_t n) {
  ClassContexts c;
  BinaryDecoder coder;
  c.begin();
  coder.begin(in, nbytes);
  for (int64_t b = 0; b < n; ++b) {
    int kind;
    if (!decode_class(c, coder, classes, kind)) return false;
    kinds[b] = static_cast<int16_t>(kind);
  }
  return true;
}

}  // namespace entropy
}  // namespace commpress
