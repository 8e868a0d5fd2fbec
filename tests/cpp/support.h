// What the tests of the kernels share: guarded buffers, portable inputs, checksums. No torch, no libm, the same on
// every machine.
#pragma once
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace test {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  std::exit(1);
}
inline void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

// SplitMix64: small, portable, and no relative of what it tests.
struct Noise {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float unit() { return static_cast<float>(next() >> 40) * 0x1p-24f; }  // [0, 1)
};

// Bytes between two guards that must survive, and that ASan may not even read. `shift` moves the start off any
// alignment.
class Buffer {
 public:
  static constexpr int64_t GUARD = 128;
  Buffer(int64_t size, int64_t shift, uint8_t poison)
      : size_(size), start_(GUARD + shift), bytes_(start_ + size + GUARD, 0xA5) {
    for (int64_t i = 0; i < size; ++i) bytes_[start_ + i] = poison;
    ASAN_POISON_MEMORY_REGION(bytes_.data(), start_);
    ASAN_POISON_MEMORY_REGION(bytes_.data() + start_ + size_, GUARD);
  }
  ~Buffer() { ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size()); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() { return bytes_.data() + start_; }
  float* floats() { return reinterpret_cast<float*>(data()); }
  int64_t size() const { return size_; }
  void check_guards(const std::string& what) {
    ASAN_UNPOISON_MEMORY_REGION(bytes_.data(), bytes_.size());
    for (int64_t i = 0; i < start_; ++i) require(bytes_[i] == 0xA5, what + ": wrote before the buffer");
    for (int64_t i = start_ + size_; i < start_ + size_ + GUARD; ++i)
      require(bytes_[i] == 0xA5, what + ": wrote behind the buffer");
    ASAN_POISON_MEMORY_REGION(bytes_.data(), start_);
    ASAN_POISON_MEMORY_REGION(bytes_.data() + start_ + size_, GUARD);
  }

 private:
  int64_t size_, start_;
  std::vector<uint8_t> bytes_;
};

// FNV-1a. A NaN counts as one NaN: its sign and payload after arithmetic differ between processors.
struct Checksum {
  uint64_t value = 0xCBF29CE484222325u;
  void byte(uint8_t b) { value = (value ^ b) * 0x100000001B3u; }
  void bytes(const uint8_t* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) byte(p[i]);
  }
  void floats(const float* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t u = p[i] != p[i] ? 0x7FC00000u : commpress::bits_of(p[i]);
      for (int k = 0; k < 4; ++k) byte(static_cast<uint8_t>(u >> 8 * k));
    }
  }
};

enum Kind : int { NORMAL, WIDE, SPARSE, ONE_SPIKE, CONSTANT, ZERO, TINY, HUGE_VALUES, NON_FINITE, SIGNED_ZEROS, KINDS };
inline const char* const KIND_NAME[KINDS] = {"normal", "wide", "sparse", "spike",     "constant",
                                             "zero",   "tiny", "huge",   "nonfinite", "zeros"};

// Values of many shapes, made by exactly rounded operations alone.
inline void fill(float* x, int64_t n, Kind kind, uint64_t seed) {
  Noise noise{seed * KINDS + kind};
  for (int64_t i = 0; i < n; ++i) {
    float z = -2.0f;
    for (int k = 0; k < 4; ++k) z += noise.unit();
    z *= 1.7320508f;  // unit variance, nearly normal
    const uint64_t r = noise.next();
    switch (kind) {
      case NORMAL:
        break;
      case WIDE:
        z *= commpress::float_of(static_cast<uint32_t>(127 - 12 + static_cast<int>(r % 25)) << 23);
        break;
      case SPARSE:
        z = r % 97 ? 0.0f : z;
        break;
      case ONE_SPIKE:
        z = i == n / 3 ? -3.5f : 0.0f;
        break;
      case CONSTANT:
        z = 0.7f;
        break;
      case ZERO:
        z = 0.0f;
        break;
      case TINY:
        z *= i % 4096 < 2048 ? 0x1p-149f * 1024 : 0x1p-130f;
        break;
      case HUGE_VALUES:
        z *= 0x1p125f;
        break;
      case NON_FINITE:
        z = r % 1024 == 0 ? commpress::float_of(r & 1024 ? 0x7F800000u : 0xFFC00001u) : z;
        break;
      default:
        z = r % 3 ? -0.0f : z;
    }
    x[i] = z;
  }
}

inline const char* const ISA_NAME[3] = {"plain", "avx2", "avx512"};

inline std::vector<commpress::Isa> available() {
  std::vector<commpress::Isa> all;
  for (int i = 0; i < 3; ++i)
    if (commpress::isa_available(static_cast<commpress::Isa>(i))) all.push_back(static_cast<commpress::Isa>(i));
  return all;
}

inline std::vector<commpress::Codec> codecs() {
  using namespace commpress;
  std::vector<Codec> all = {{CAST_FP16, 0, false}, {CAST_BF16, 0, false}};
  for (int32_t rate : {1, 1000, 125000, 500000, 999999, 1000000, 1500000, 2000000, 2333333, 3000000, 4000000, 5000000,
                       6000000, 7000000, 7999999, 8000000}) {
    all.push_back({UNIFORM, rate, false});
    all.push_back({LLOYD, rate, false});
    all.push_back({HADAMARD_LLOYD, rate, false});
    all.push_back({HADAMARD_LLOYD, rate, true});
  }
  return all;
}

inline std::string name_of(const commpress::Codec& codec) {
  static const char* const FAMILY[] = {"?", "cast:fp16", "cast:bf16", "uniform", "lloyd", "hadamard+lloyd"};
  char text[64];
  std::snprintf(text, sizeof text, "%s", FAMILY[codec.family]);
  if (codec.family > commpress::CAST_BF16)
    std::snprintf(text, sizeof text, "%s:%d.%06d%s", FAMILY[codec.family], codec.rate / 1000000, codec.rate % 1000000,
                  codec.centroid ? ",scale=centroid" : "");
  return text;
}

}  // namespace test
